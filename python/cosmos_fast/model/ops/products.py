"""Which products of matrices run: our own on Hopper where the table prefers them, or torch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from cosmos_fast.model.linear_table import (
    CAPABILITY,
    ERROR_LIMIT,
    Epilogue,
    Following,
    Gated,
    Normed,
    design,
    self_test_error,
)
from cosmos_fast.model.obstacles import gluon_obstacle
from cosmos_fast.model.ops.fallback import needs_gradient, why_wrong

Product = Callable[[Epilogue, torch.Tensor, torch.Tensor, Following], torch.Tensor | None]


def no_product(*_: object) -> None:
    """Leaves every product to torch, and what follows it to a pass of its own."""


def has_designs(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether there are products of our own for a CUDA device, tested or not."""
    fits = dtype == torch.bfloat16 and head_dim in (64, 128)
    return fits and torch.cuda.get_device_capability(device) == CAPABILITY


def product_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> Product:
    """Our own products where there are designs for ``device`` that pass their test."""
    if not has_designs(device, dtype, head_dim):
        return no_product
    failure = gluon_obstacle()
    if failure is None:
        with torch.cuda.device(device):
            failure = why_wrong(
                lambda: self_test_error(_hopper_product, head_dim, str(device)), ERROR_LIMIT
            )
    if failure is None:
        return table_product
    warnings.warn(
        f"products fall back to torch: {failure}; please report this with your versions",
        RuntimeWarning,
        stacklevel=3,
    )
    return no_product


def table_product(
    epilogue: Epilogue, x_BNK: torch.Tensor, weight_EK: torch.Tensor, following: Following
) -> torch.Tensor | None:
    """The product that the shipped table prefers on Hopper; None where that is torch's.

    Whatever the kernel cannot take where it lies (strides, gradients, other dtypes) is torch's too.
    """
    chosen = design(epilogue, x_BNK.shape[:-1].numel(), x_BNK.shape[-1])
    tokens = (x_BNK, following.residual_BND) if isinstance(following, Gated) else (x_BNK,)
    others = [one for one in following or () if isinstance(one, torch.Tensor)]
    if chosen is None or needs_gradient(*tokens, weight_EK, *others):
        return None
    if not _is_laid_out(tokens, weight_EK):
        return None
    return _hopper_product(epilogue, chosen, x_BNK, weight_EK, following)


def _is_laid_out(tokens: tuple[torch.Tensor, ...], weight_EK: torch.Tensor) -> bool:
    """Whether TMA can move all of them from where they lie, clips as one."""
    whole = all(
        one.shape[0] == 1 or one.stride(0) == one.shape[1] * one.stride(1) for one in tokens
    )
    movable = all(
        one.dtype == torch.bfloat16
        and one.stride(-1) == 1
        and one.stride(-2) >= one.shape[-1]  # one row for all tokens is no matrix to TMA
        and one.stride(-2) % 8 == 0
        and one.data_ptr() % 16 == 0
        for one in (*tokens, weight_EK)
    )
    outputs, inputs = weight_EK.shape
    return whole and movable and outputs % 64 == 0 and inputs % 64 == 0


def _hopper_product(
    epilogue: Epilogue,
    name: str,
    x_BNK: torch.Tensor,
    weight_EK: torch.Tensor,
    following: Following,
) -> torch.Tensor:
    from cosmos_fast_kernels import linear_hopper as kernels

    given = (x_BNK.flatten(0, 1), weight_EK)
    options: dict[str, Any] = {"config": kernels.DESIGNS[name]}
    if isinstance(following, Gated):
        residual_MD = following.residual_BND.flatten(0, 1)
        gates = (following.gate_BTD.flatten(0, 1), _frame_of_rows(following))
        kernels.linear_gated_residual(*given, residual_MD, *gates, out=residual_MD, **options)
        return following.residual_BND
    if isinstance(following, Normed):
        out_ME = kernels.linear_head_norm(*given, *following, **options)
    else:
        multiply = kernels.linear_gelu if epilogue == "gelu" else kernels.linear
        out_ME = multiply(*given, **options)
    return out_ME.view(*x_BNK.shape[:2], -1)


def _frame_of_rows(gated: Gated) -> torch.Tensor | None:
    """The frame of each token among those of all clips."""
    batch, frames = gated.gate_BTD.shape[:2]
    if gated.frame_N is None or batch == 1:
        return gated.frame_N
    first_B1 = torch.arange(0, batch * frames, frames, device=gated.frame_N.device)[:, None]
    return (first_B1 + gated.frame_N).flatten()
