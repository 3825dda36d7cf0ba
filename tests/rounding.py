"""Whether a result is the exact one, rounded once."""

from __future__ import annotations

import torch

INTERPRETED = not torch.cuda.is_available()
"""Triton's interpreter runs the kernels of this session; it cuts bfloat16 where devices round."""


def assert_rounded_once(
    ours: torch.Tensor, exact: torch.Tensor, *, arithmetic: float, by_kernel: bool = True
) -> None:
    """``ours`` equals ``exact`` (float64) within float32 arithmetic and one rounding.

    Args:
        arithmetic: error of the float32 steps, relative to the largest value along the last axis.
        by_kernel: whether ``ours`` may come from Triton's interpreter.
    """
    cut = by_kernel and INTERPRETED and ours.dtype == torch.bfloat16
    unit = torch.finfo(ours.dtype).eps * (1.0 if cut else 0.5)
    allowed = exact.abs() * unit * 1.01 + exact.abs().amax(-1, keepdim=True) * arithmetic
    allowed = allowed.clamp_min(torch.finfo(ours.dtype).smallest_normal * unit)
    excess = (ours.double() - exact).abs() - allowed
    worst = excess.argmax()
    assert excess.flatten()[worst] <= 0, (  # NaN fails too
        f"element {int(worst)}: {ours.flatten()[worst]} where {exact.flatten()[worst]} is exact"
    )
