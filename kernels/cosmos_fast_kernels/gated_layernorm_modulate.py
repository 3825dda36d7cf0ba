"""x + gate · y, and the LayerNorm and modulation that follow it, in one pass over memory.

The sum is rounded to the dtype of x before the norm sees it, as if the two had run one after the
other. Both results may be written over their inputs, so that a block allocates nothing here.

Axes: B batch, N tokens, D features, T frames.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cosmos_fast_kernels.launching import launch
from cosmos_fast_kernels.modulation_checks import check_layout, check_modulation


@triton.jit(do_not_specialize=["tokens_per_frame"])
def _gated_kernel(
    x_pointer,
    y_pointer,
    gate_pointer,
    shift_pointer,
    scale_pointer,
    frame_pointer,
    sum_pointer,
    normed_pointer,
    x_stride_b,
    x_stride_n,
    y_stride_b,
    y_stride_n,
    gate_stride_b,
    gate_stride_t,
    shift_stride_b,
    shift_stride_t,
    scale_stride_b,
    scale_stride_t,
    sum_stride_b,
    sum_stride_n,
    normed_stride_b,
    normed_stride_n,
    tokens_per_frame,
    eps,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
    INDEXED: tl.constexpr,
    NORM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    mask = feature < FEATURES
    frame = token // tokens_per_frame
    if INDEXED:
        frame = tl.load(frame_pointer + token).to(tl.int64)

    x_start = x_pointer + batch * x_stride_b + token * x_stride_n
    y_start = y_pointer + batch * y_stride_b + token * y_stride_n
    gate_start = gate_pointer + batch * gate_stride_b + frame * gate_stride_t
    x = tl.load(x_start + feature, mask=mask, other=0.0).to(tl.float32)  # [BLOCK]
    y = tl.load(y_start + feature, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_start + feature, mask=mask, other=0.0).to(tl.float32)
    total = (x + gate * y).to(sum_pointer.dtype.element_ty)
    sum_start = sum_pointer + batch * sum_stride_b + token * sum_stride_n
    tl.store(sum_start + feature, total, mask=mask)
    if NORM:
        total = total.to(tl.float32)
        # Rounded correctly: where FEATURES is no power of two, the plain division is a product with
        # an inexact reciprocal, and a constant token would not equal its mean.
        mean = tl.math.div_rn(tl.sum(total, axis=0), FEATURES * 1.0)
        # Two passes over registers: a mean of squares would cancel where outliers shift the mean.
        centred = tl.where(mask, total - mean, 0.0)
        variance = tl.math.div_rn(tl.sum(centred * centred, axis=0), FEATURES * 1.0)
        normed = centred * tl.rsqrt(variance + eps)
        shift_start = shift_pointer + batch * shift_stride_b + frame * shift_stride_t
        scale_start = scale_pointer + batch * scale_stride_b + frame * scale_stride_t
        shift = tl.load(shift_start + feature, mask=mask, other=0.0).to(tl.float32)
        scale = tl.load(scale_start + feature, mask=mask, other=0.0).to(tl.float32)
        normed_start = normed_pointer + batch * normed_stride_b + token * normed_stride_n
        # Triton converts to the dtype of the pointer, rounding to nearest even.
        tl.store(normed_start + feature, normed * (1.0 + scale) + shift, mask=mask)


def gated_layernorm_modulate(
    x_BND: torch.Tensor,
    gate_BTD: torch.Tensor,
    y_BND: torch.Tensor,
    shift_BTD: torch.Tensor,
    scale_BTD: torch.Tensor,
    frame_N: torch.Tensor | None,
    eps: float,
    *,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``reference.gated_layernorm_modulate`` in one launch: 2 tensors read, 2 written.

    Args:
        x_BND, y_BND: bfloat16, float16 or float32, of one dtype and shape; any strides with the
            last axis contiguous.
        gate_BTD, shift_BTD, scale_BTD: of any of these dtypes; a batch or frame stride of 0 is
            fine.
        frame_N: int32 or int64, contiguous: the frame of each token, 0 to T - 1 (not checked: the
            device would have to wait). None: N / T consecutive tokens to a frame.
        eps: added to the variance.
        out: where to write the sum and its norm, shaped like x; x and y themselves are allowed, in
            this order. None: new contiguous tensors.

    Raises:
        ValueError: shapes, dtypes, devices or strides that the kernel cannot take.
    """
    total, normed = out or (_empty_like(x_BND), _empty_like(x_BND))
    vectors = {"gate": gate_BTD, "shift": shift_BTD, "scale": scale_BTD}
    _check({"x": x_BND, "y": y_BND, "sum": total, "normed": normed}, vectors, frame_N)
    _launch(x_BND, y_BND, (gate_BTD, shift_BTD, scale_BTD), frame_N, total, normed, eps)
    return total, normed


def gated_residual(
    x_BND: torch.Tensor,
    gate_BTD: torch.Tensor,
    y_BND: torch.Tensor,
    frame_N: torch.Tensor | None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``reference.gated_residual`` in one launch: 2 tensors read, 1 written.

    Arguments and errors are those of :func:`gated_layernorm_modulate`.
    """
    out = _empty_like(x_BND) if out is None else out
    _check({"x": x_BND, "y": y_BND, "sum": out}, {"gate": gate_BTD}, frame_N)
    _launch(x_BND, y_BND, (gate_BTD, None, None), frame_N, out, None, 0.0)
    return out


def _launch(
    x_BND: torch.Tensor,
    y_BND: torch.Tensor,
    vectors: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    frame_N: torch.Tensor | None,
    total: torch.Tensor,
    normed: torch.Tensor | None,
    eps: float,
) -> None:
    batch, tokens, features = x_BND.shape
    if x_BND.numel() == 0:
        return
    spread = [one if one is None else one.expand(batch, -1, -1) for one in vectors]
    block = triton.next_power_of_2(features)
    strides = [
        stride
        for one in (x_BND, y_BND, *spread, total, normed)
        for stride in (x_BND if one is None else one).stride()[:2]
    ]
    with torch.cuda.device_of(x_BND):  # Triton launches on the current device
        launch(
            _gated_kernel,
            (tokens, batch),
            x_BND,
            y_BND,
            *spread,
            frame_N,
            total,
            normed,
            *strides,
            tokens // vectors[0].shape[1],
            eps,
            FEATURES=features,
            BLOCK=block,
            INDEXED=frame_N is not None,
            NORM=normed is not None,
            num_warps=min(8, max(1, block // 512)),
        )


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _check(
    tokens_BND: dict[str, torch.Tensor],
    vectors_BTD: dict[str, torch.Tensor],
    frame_N: torch.Tensor | None,
) -> None:
    x_BND = tokens_BND["x"]
    if x_BND.ndim != 3:
        raise ValueError(f"x of shape {tuple(x_BND.shape)}: (B, N, D) is needed")
    for name, one in tokens_BND.items():
        if one.shape != x_BND.shape or one.dtype != x_BND.dtype:
            raise ValueError(
                f"{name} of shape {tuple(one.shape)} and {one.dtype} beside x of shape "
                f"{tuple(x_BND.shape)} and {x_BND.dtype}: both alike are needed"
            )
    check_modulation(x_BND, vectors_BTD, frame_N)
    check_layout(tokens_BND | vectors_BTD, x_BND.device)
