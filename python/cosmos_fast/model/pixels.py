"""Between pixels and what the VAE sees: uint8 of 0 to 255, floats of -1 to 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cosmos_fast.types import Frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


def with_host_copies(chunks: Iterator[Frames]) -> Iterator[tuple[Frames, Frames]]:
    """Each chunk where it was made, and on the host.

    On a CUDA device the next chunk is asked for, and its work queued, before the host waits for the
    copy of the last: the device computes while the host takes the pixels away. Elsewhere both are
    the same.
    """
    waiting: Callable[[], tuple[Frames, Frames]] | None = None
    for chunk in chunks:
        if chunk.device.type != "cuda":
            yield chunk, chunk
            continue
        begun = _begin_copy(chunk)
        if waiting is not None:
            yield waiting()
        waiting = begun
    if waiting is not None:
        yield waiting()


def _begin_copy(chunk: Frames) -> Callable[[], tuple[Frames, Frames]]:
    """Starts copying to pinned memory; what it returns waits for that and gives both."""
    pixels = chunk.to("pt")
    host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
    host.copy_(pixels, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(pixels.device))

    def finish() -> tuple[Frames, Frames]:
        done.synchronize()
        return chunk, Frames(host, chunk.fps)

    return finish
