"""Latents to patch vectors and back. The two orders differ, as in the reference.

Axes: B batch, C channels, T latent frames, H W latent rows and columns, h w patch rows and
columns, N patches (t slowest, w fastest), p side of a patch, E = C·p² values of a patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def patchify(x_BCTHW: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, N, E), values ordered (channel, row, column): channel slowest."""
    batch, channels, frames, height, width = x_BCTHW.shape
    rows, columns = height // patch, width // patch
    return (
        x_BCTHW.reshape(batch, channels, frames, rows, patch, columns, patch)
        .permute(0, 2, 3, 5, 1, 4, 6)
        .reshape(batch, frames * rows * columns, channels * patch**2)
    )


def unpatchify(values_BNE: torch.Tensor, grid: tuple[int, int, int], patch: int) -> torch.Tensor:
    """(B, C, T, H, W) from values ordered (row, column, channel): channel fastest."""
    batch, _, values = values_BNE.shape
    frames, rows, columns = grid
    channels = values // patch**2
    return (
        values_BNE.reshape(batch, frames, rows, columns, patch, patch, channels)
        .permute(0, 6, 1, 2, 4, 3, 5)
        .reshape(batch, channels, frames, rows * patch, columns * patch)
    )
