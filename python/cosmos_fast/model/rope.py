"""Rotary position angles along (t, h, w), NTK-scaled, as NVIDIA's ``VideoRopePosition3DEmb``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    from cosmos_fast.config import DiTConfig, RopeTable
    from cosmos_fast.types import TokenLayout

_THETA = 10000.0


class Rope(NamedTuple):
    """The rotation of each token; R = head_dim / 2 angles, [temporal | height | width]."""

    cos_NR: torch.Tensor
    """float32, shape (N, R)."""
    sin_NR: torch.Tensor
    """float32, shape (N, R)."""


def rope(
    config: DiTConfig, layout: TokenLayout, table: RopeTable, device: torch.device | str
) -> Rope:
    """Cosines and sines of the rotary angles of every token of ``layout``, made on ``device``.

    Raises:
        InputError: the grid is beyond the positions that the network knows.
    """
    angles_NR = rope_angles(config, layout, table, device)
    return Rope(angles_NR.cos(), angles_NR.sin())


def rope_angles(
    config: DiTConfig, layout: TokenLayout, table: RopeTable, device: torch.device | str
) -> torch.Tensor:
    """The angles themselves, in radians: float32, shape (N, R)."""
    axes = [
        _axis_angles(patches, dim, ratio, table, device)
        for patches, dim, ratio in zip(
            _checked_grid(config, layout),
            axis_dims(config.head_dim),
            config.rope_scale,
            strict=True,
        )
    ]
    if layout.raster_index is not None:
        positions_N3 = layout.positions(device)
        return torch.cat([axes[axis][positions_N3[:, axis]] for axis in range(3)], dim=1)
    frames, rows, columns = layout.grid
    t_TR, h_hR, w_wR = axes
    return torch.cat(
        (
            t_TR[:, None, None].expand(-1, rows, columns, -1),
            h_hR[None, :, None].expand(frames, -1, columns, -1),
            w_wR[None, None, :].expand(frames, rows, -1, -1),
        ),
        dim=-1,
    ).flatten(0, 2)


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Features of a head that turn with (t, h, w): (44, 42, 42) of 128, (24, 20, 20) of 64."""
    spatial = head_dim // 6 * 2
    return head_dim - 2 * spatial, spatial, spatial


def _checked_grid(config: DiTConfig, layout: TokenLayout) -> tuple[int, int, int]:
    limit = (
        config.max_size[0],
        config.max_size[1] // config.patch,
        config.max_size[2] // config.patch,
    )
    for patches, most in zip(layout.grid, limit, strict=True):
        if not 1 <= patches <= most:
            raise InputError(f"{layout.grid = } patches along (t, h, w): 1 to {limit} are possible")
    return layout.grid


def _axis_angles(
    positions: int, dim: int, ratio: float, table: RopeTable, device: torch.device | str
) -> torch.Tensor:
    """float32 (positions, dim / 2): position times frequency, rounded as ``table`` says.

    NVIDIA's module keeps positions and exponents as buffers, which become bfloat16 with the rest
    of the network: base, exponent, power, reciprocal and product are each rounded.
    """
    dtype = torch.bfloat16 if table == "reference" else torch.float32
    theta = _THETA * ratio ** (dim / (dim - 2)) if dim > 2 else _THETA
    exponents = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    base = torch.full((), theta, device=device, dtype=dtype)
    frequencies = 1.0 / base ** exponents.to(dtype)
    steps = torch.arange(positions, device=device, dtype=torch.float32).to(dtype)
    return torch.outer(steps, frequencies).float()
