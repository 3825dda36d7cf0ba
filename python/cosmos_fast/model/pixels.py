"""Between pixels and what the VAE sees: uint8 of 0 to 255, floats of -1 to 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cosmos_fast.types import Frames


def to_video(frames: Frames, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Frames as the VAE's input.

    The division and subtraction are made in ``dtype``, as the reference makes them in bfloat16.

    Returns:
        ``dtype`` (1, 3, T, H, W) of -1 to 1 on ``device``.
    """
    pixels = frames.to("pt").to(device).permute(3, 0, 1, 2)[None]
    return pixels.to(dtype) / 127.5 - 1


def to_pixels(video: torch.Tensor) -> torch.Tensor:
    """The VAE's output as pixels: clamped to -1 to 1, mapped to 0 to 255, rounded half up.

    Args:
        video: (1, 3, T, H, W), about -1 to 1.

    Returns:
        uint8 (T, H, W, 3) on the same device.
    """
    scaled = (video[0].float() + 1).mul_(127.5).clamp_(0, 255).add_(0.5)
    return scaled.permute(1, 2, 3, 0).to(torch.uint8).contiguous()
