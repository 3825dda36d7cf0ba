"""The VAE's norm and SiLU in one pass each way, written where a causal convolution wants them.

Training is bound by memory traffic here: torch would go over the widest activations a dozen times.
Rows are the channel vectors of positions, C values each; M rows in, some zero rows added in front
of every clip, as the convolution's missing past.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

_TILE: Final = 4096
_PROGRAMS: Final = 1056
_TINY: Final = 1e-12


@triton.jit
def _forward(x_ptr, gamma_ptr, y_ptr, rows, clip, gap, C: tl.constexpr, R: tl.constexpr):
    channel = tl.arange(0, C)
    gain = tl.load(gamma_ptr + channel).to(tl.float32) * (C**0.5)
    first = tl.program_id(0).to(tl.int64) * R
    while first < rows:
        row = first + tl.arange(0, R)
        there = (row < rows)[:, None]
        x = tl.load(x_ptr + row[:, None] * C + channel[None, :], there, 0.0).to(tl.float32)
        length = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)
        a = x / length[:, None] * gain[None, :]
        y = a * tl.sigmoid(a)
        out = row + (row // clip + 1) * gap
        tl.store(y_ptr + out[:, None] * C + channel[None, :], y, there)
        first += tl.num_programs(0) * R


@triton.jit
def _backward(
    x_ptr, gamma_ptr, dy_ptr, dx_ptr, part_ptr, rows, clip, gap, C: tl.constexpr, R: tl.constexpr
):
    channel = tl.arange(0, C)
    gain = tl.load(gamma_ptr + channel).to(tl.float32) * (C**0.5)
    total = tl.zeros((C,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * R
    while first < rows:
        row = first + tl.arange(0, R)
        there = (row < rows)[:, None]
        x = tl.load(x_ptr + row[:, None] * C + channel[None, :], there, 0.0).to(tl.float32)
        out = row + (row // clip + 1) * gap
        dy = tl.load(dy_ptr + out[:, None] * C + channel[None, :], there, 0.0).to(tl.float32)
        length = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)
        unit = x / length[:, None]
        a = unit * gain[None, :]
        s = tl.sigmoid(a)
        da = dy * s * (1 + a * (1 - s))
        total += tl.sum(da * unit, 0)
        du = da * gain[None, :]
        dx = (du - unit * tl.sum(unit * du, 1)[:, None]) / length[:, None]
        tl.store(dx_ptr + row[:, None] * C + channel[None, :], dx, there)
        first += tl.num_programs(0) * R
    tl.store(part_ptr + tl.program_id(0) * C + channel, total)


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gamma: torch.Tensor, history: int) -> torch.Tensor:
        batch, frames, height, width, channels = x.shape
        y = x.new_empty((batch, frames + history, height, width, channels))
        y[:, :history].zero_()
        sizes = (x.numel() // channels, frames * height * width, history * height * width)
        grid = (min(_PROGRAMS, -(-sizes[0] * channels // _TILE)),)
        _forward[grid](x, gamma, y, *sizes, C=channels, R=_TILE // channels)
        ctx.save_for_backward(x, gamma)
        ctx.sizes = sizes
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, gamma = ctx.saved_tensors
        channels = x.shape[-1]
        dx = torch.empty_like(x)
        grid = (min(_PROGRAMS, -(-x.numel() // _TILE)),)
        part = x.new_empty((grid[0], channels), dtype=torch.float32)
        _backward[grid](
            x, gamma, dy.contiguous(), dx, part, *ctx.sizes, C=channels, R=_TILE // channels
        )
        dgamma = (part.sum(0) * channels**0.5).to(gamma.dtype)
        return dx, dgamma.view(gamma.shape), None


def norm_silu(x_BTHWC: torch.Tensor, gamma: torch.Tensor, history: int) -> torch.Tensor:
    """SiLU of the channel norm, with ``history`` zero frames in front.

    Args:
        x_BTHWC: contiguous; C a power of two.
        gamma: C values, any shape.

    Returns:
        (B, history + T, H, W, C), dtype of x.
    """
    if x_BTHWC.device.type == "cuda":
        made: torch.Tensor = _NormSilu.apply(x_BTHWC.contiguous(), gamma, history)
        return made
    return norm_silu_reference(x_BTHWC, gamma, history)


def norm_silu_reference(x_BTHWC: torch.Tensor, gamma: torch.Tensor, history: int) -> torch.Tensor:
    """The same in plain torch."""
    channels = x_BTHWC.shape[-1]
    unit = F.normalize(x_BTHWC.float(), dim=-1, eps=_TINY)
    y = F.silu(unit * (gamma.float().flatten() * channels**0.5)).to(x_BTHWC.dtype)
    return F.pad(y, (0, 0, 0, 0, 0, 0, history, 0))
