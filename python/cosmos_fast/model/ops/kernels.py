"""Our kernels as operations of ``Ops``: what comes first is overwritten, gradients go to torch.

This imports Triton, and is imported only where kernels were chosen or are tried.
"""

from __future__ import annotations

import torch

from cosmos_fast.model.ops.fallback import needs_gradient
from cosmos_fast_kernels import reference
from cosmos_fast_kernels.gated_layernorm_modulate import gated_layernorm_modulate, gated_residual
from cosmos_fast_kernels.layernorm_modulate import layernorm_modulate
from cosmos_fast_kernels.qk_norm_rope import head_norm, qk_norm_rope


def trial_error(device: torch.device, dtype: torch.dtype) -> float:
    """Relative error of the smallest kernel on a few numbers.

    Whatever keeps Triton from compiling or launching on this machine keeps it from this one: a
    cache folder that cannot be written, an assembler that does not know the device.
    """
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(1, 3, 2, 64, device=device, generator=generator).to(dtype)
    weight = torch.rand(64, device=device, generator=generator).to(dtype)
    exact = reference.head_norm(x.double(), weight, 1e-6)
    return float((head_norm(x, weight, 1e-6).double() - exact).norm() / exact.norm())


def qk_norm_rope_op(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    if needs_gradient(q, k, q_weight, k_weight):
        return reference.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps)
    return qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps, out=(q, k))


def head_norm_op(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    angles: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    if needs_gradient(x, weight):
        return reference.head_norm(x, weight, eps, angles)
    return head_norm(x, weight, eps, angles, out=x)


def layernorm_modulate_op(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    frame: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    if needs_gradient(x, shift, scale):
        return reference.layernorm_modulate(x, shift, scale, frame, eps)
    return layernorm_modulate(x, shift, scale, frame, eps)


def gated_residual_op(
    x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor, frame: torch.Tensor | None
) -> torch.Tensor:
    if needs_gradient(x, gate, y):
        return reference.gated_residual(x, gate, y, frame)
    return gated_residual(x, gate, y, frame, out=x)


def gated_layernorm_modulate_op(
    x: torch.Tensor,
    gate: torch.Tensor,
    y: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    frame: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    if needs_gradient(x, gate, y, shift, scale):
        return reference.gated_layernorm_modulate(x, gate, y, shift, scale, frame, eps)
    return gated_layernorm_modulate(x, gate, y, shift, scale, frame, eps, out=(x, y))
