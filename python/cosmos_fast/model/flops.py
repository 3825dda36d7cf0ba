"""Floating-point operations of one forward pass, a multiply-add counted as two."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cosmos_fast.errors import InputError
from cosmos_fast.types import TEXT_ROWS

if TYPE_CHECKING:
    from cosmos_fast.config import DiTConfig


class Flops(NamedTuple):
    """Operations of the matrix products; norms, rotations and activations are not counted."""

    self_attention: int
    """The two products of dense self-attention, quadratic in the tokens."""
    other: int
    """Everything else: projections, cross-attention, MLP, AdaLN, embedding and final layer."""

    @property
    def total(self) -> int:
        return self.self_attention + self.other


def forward_flops(config: DiTConfig, latent_size: tuple[int, int, int]) -> Flops:
    """One evaluation of the DiT for one batch element, keys and values of the text included.

    Args:
        latent_size: latent frames, rows and columns (T, H, W).

    Raises:
        InputError: the size does not divide into patches.
    """
    frames, height, width = latent_size
    if min(latent_size) < 1 or height % config.patch or width % config.patch:
        raise InputError(
            f"{latent_size = } (T, H, W): at least 1 each, H and W multiples of {config.patch}"
        )
    tokens = frames * (height // config.patch) * (width // config.patch)
    d, layers = config.width, config.num_layers

    projections = 2 * tokens * (4 + 2) * d * d  # self q, k, v, output; cross q, output
    mlp = 2 * tokens * 2 * d * config.mlp_width
    text = 2 * TEXT_ROWS * 2 * config.text_dim * d + 4 * tokens * TEXT_ROWS * d
    modulation = 3 * 2 * frames * config.adaln_rank * (d + 3 * d)
    time = 2 * frames * (d * d + 3 * d * d)
    final = 2 * frames * config.adaln_rank * (d + 2 * d)
    edges = 2 * tokens * (config.patch_features + config.out_channels * config.patch**2) * d
    return Flops(
        self_attention=layers * 4 * tokens**2 * d,
        other=layers * (projections + mlp + text + modulation) + time + final + edges,
    )
