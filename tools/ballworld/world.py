"""Training data made on the device: scenes simulated in bulk, pictures painted when asked for.

Axes: N scenes, B of a batch, T frames, K balls, H W pixels, h w latent positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from tools.ballworld.words import token_table

from cosmos_fast.ballworld.motion import roll_out
from cosmos_fast.ballworld.picture import paint
from cosmos_fast.ballworld.scene import NUM_FRAMES, PALETTE, SIZE, sample
from cosmos_fast.types import SPATIAL_STRIDE, TEMPORAL_STRIDE

if TYPE_CHECKING:
    from cosmos_fast.ballworld.scene import Scenes

LATENT_ROWS: Final = SIZE.height // SPATIAL_STRIDE
LATENT_COLUMNS: Final = SIZE.width // SPATIAL_STRIDE


class World:
    """N scenes on a device: their tracks for all 33 frames, and what it takes to paint them."""

    def __init__(self, scenes: Scenes, device: torch.device) -> None:
        def there(array: object, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(array).to(device, dtype)

        self.scenes = scenes
        self.device = device
        self.centre = roll_out(
            there(scenes.position, torch.float64),
            there(scenes.velocity, torch.float64),
            there(scenes.radius, torch.float64),
            there(scenes.count == 2, torch.bool),
            there(scenes.gravity, torch.bool),
            num_frames=NUM_FRAMES,
            xp=torch,
        ).float()
        """float32 (N, T, K, 2)."""
        self.radius = there(scenes.radius, torch.float32)
        self.colour = there(PALETTE[scenes.colour], torch.float32)
        self.second = there(scenes.count == 2, torch.float32)
        self.background = there(scenes.background, torch.float32)
        self.rows = torch.arange(SIZE.height, device=device, dtype=torch.float32) + 0.5
        self.columns = torch.arange(SIZE.width, device=device, dtype=torch.float32) + 0.5

    @classmethod
    def draw(cls, number: int, seed: int, device: torch.device) -> World:
        """Scenes to train on; other splits are never drawn here."""
        return cls(sample(number, seed, "train"), device)

    def __len__(self) -> int:
        return len(self.scenes)

    def tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 (N, ROWS) ids and (N,) lengths of the prompts."""
        ids, lengths = token_table(self.scenes)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(lengths).to(self.device)

    def video(
        self,
        index_B: torch.Tensor,
        frame_BT: torch.Tensor | None = None,
        left_B: torch.Tensor | None = None,
        width: int = SIZE.width,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Paints scenes, as 8-bit values would come out.

        Args:
            index_B: int64, which scenes.
            frame_BT: int64, which frames of each; None is all of them.
            left_B: float32, left edge of a crop of ``width`` columns; None is the whole picture.

        Returns:
            float32 (B, 3, T, H, width) of -1 to 1, channels last in memory, and the nearness to a
            ball, (B, 1, T, H, width) of 0 to 1.
        """
        centre = self.centre[index_B]
        if frame_BT is not None:
            centre = self.centre[index_B[:, None], frame_BT]
        columns = self.columns[None, :width]
        planes, nearness = paint(
            centre,
            self.radius[index_B],
            self.colour[index_B],
            self.second[index_B],
            self.background[index_B],
            columns=columns if left_B is None else columns + left_B[:, None],
            rows=self.rows,
            xp=torch,
        )
        video = torch.stack(planes, dim=-1).permute(0, 4, 1, 2, 3)
        return video / 127.5 - 1, nearness[:, None]

    def touched(self, index_B: torch.Tensor) -> torch.Tensor:
        """Which latents a ball passes through: float32 (B, 1, T', h, w) of 0 to 1."""
        centre = self.centre[index_B]
        first, rest = centre[:, :1], centre[:, 1:]
        groups = torch.cat(
            (
                first[:, :, None].expand(-1, -1, TEMPORAL_STRIDE, -1, -1),
                rest.unflatten(1, (-1, TEMPORAL_STRIDE)),
            ),
            dim=1,
        )  # (B, T', 4, K, 2)
        y = (torch.arange(LATENT_ROWS, device=self.device) + 0.5) * SPATIAL_STRIDE
        x = (torch.arange(LATENT_COLUMNS, device=self.device) + 0.5) * SPATIAL_STRIDE
        dx = x - groups[..., 0, None, None]
        dy = y[:, None] - groups[..., 1, None, None]
        reach = self.radius[index_B][:, None, None, :, None, None] + 8.0
        near = ((reach - (dx * dx + dy * dy).sqrt()) / 4.0).clamp(0, 1)
        second = self.second[index_B][:, None, None, None, None]
        return torch.maximum(near[:, :, :, 0], near[:, :, :, 1] * second).amax(2)[:, None]
