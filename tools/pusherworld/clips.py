"""Episodes on the device, as the ball world's training stages ask for them.

Axes: E episodes, B of a batch, T frames, H W pixels, h w latent positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from tools.pusherworld.tracker import COLOURS

from cosmos_fast.types import SPATIAL_STRIDE, TEMPORAL_STRIDE

if TYPE_CHECKING:
    from tools.pusherworld.episodes import Episodes


class Clips:
    """E episodes; indices count windows of ``frames`` frames that start at any action."""

    def __init__(self, episodes: Episodes, frames: int, device: torch.device) -> None:
        self.device = device
        self.pixels = torch.from_numpy(episodes.frames).to(device)
        self.actions = torch.from_numpy(episodes.actions).to(device)
        self.frames = frames
        self.windows = self.pixels.shape[1] - frames + 1
        """Of one episode."""
        self.colours = torch.tensor(list(COLOURS.values()), device=device)

    def __len__(self) -> int:
        return len(self.pixels) * self.windows

    def video(
        self, index_B: torch.Tensor, frame_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            index_B: int64, which windows.
            frame_BT: int64, which frames of each window; None is all.

        Returns:
            float32 (B, 3, T, H, W) of -1 to 1, and the nearness to disc or block (B, 1, T, H, W).
        """
        # Windows that follow each other in number lie in different episodes: a prefix is a sample.
        episode_B, start_B = index_B % len(self.pixels), index_B // len(self.pixels)
        if frame_BT is None:
            frame_BT = torch.arange(self.frames, device=self.device).expand(len(index_B), -1)
        picked = self.pixels[episode_B[:, None], start_B[:, None] + frame_BT]
        unit = picked.float() / 255
        near = torch.zeros_like(unit[..., 0])
        for colour in self.colours:
            near = torch.maximum(near, torch.exp(-(unit - colour).square().sum(-1) / 0.06))
        near = F.max_pool2d((near > 0.2).float(), 7, stride=1, padding=3)
        return unit.permute(0, 4, 1, 2, 3) * 2 - 1, near[:, None]

    def chunk(self, index_B: torch.Tensor) -> torch.Tensor:
        """float32 (B, frames - 1, 2): the actions between the frames of windows."""
        episode_B, start_B = index_B % len(self.pixels), index_B // len(self.pixels)
        at = start_B[:, None] + torch.arange(self.frames - 1, device=self.device)
        return self.actions[episode_B[:, None], at]

    def touched(self, index_B: torch.Tensor) -> torch.Tensor:
        """Which latents see disc or block: float32 (B, 1, T', h, w) of 0 to 1."""
        _, near = self.video(index_B)
        small = F.max_pool2d(near.squeeze(1), SPATIAL_STRIDE)
        first, rest = small[:, :1], small[:, 1:].unflatten(1, (-1, TEMPORAL_STRIDE)).amax(2)
        return torch.cat((first, rest), dim=1)[:, None]
