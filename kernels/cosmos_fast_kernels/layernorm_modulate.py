"""LayerNorm without weights, then times (1 + scale) plus shift by frame, in one pass over memory.

Axes: B batch, N tokens, D features, T frames.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cosmos_fast_kernels.launching import launch
from cosmos_fast_kernels.modulation_checks import check_layout, check_modulation


@triton.jit(do_not_specialize=["tokens_per_frame"])
def _layernorm_modulate_kernel(
    x_pointer,
    shift_pointer,
    scale_pointer,
    frame_pointer,
    out_pointer,
    x_stride_b,
    x_stride_n,
    shift_stride_b,
    shift_stride_t,
    scale_stride_b,
    scale_stride_t,
    out_stride_b,
    out_stride_n,
    tokens_per_frame,
    eps,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
    INDEXED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    mask = feature < FEATURES
    frame = token // tokens_per_frame
    if INDEXED:
        frame = tl.load(frame_pointer + token).to(tl.int64)

    x_start = batch * x_stride_b + token * x_stride_n
    x = tl.load(x_pointer + x_start + feature, mask=mask, other=0.0).to(tl.float32)  # [BLOCK]
    # Rounded correctly: where FEATURES is no power of two, the plain division is a product with an
    # inexact reciprocal, and a constant token would not equal its mean.
    mean = tl.math.div_rn(tl.sum(x, axis=0), FEATURES * 1.0)
    # Two passes over registers: a mean of squares would cancel where outliers shift the mean.
    centred = tl.where(mask, x - mean, 0.0)
    variance = tl.math.div_rn(tl.sum(centred * centred, axis=0), FEATURES * 1.0)
    normed = centred * tl.rsqrt(variance + eps)

    shift_start = batch * shift_stride_b + frame * shift_stride_t
    scale_start = batch * scale_stride_b + frame * scale_stride_t
    shift = tl.load(shift_pointer + shift_start + feature, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_pointer + scale_start + feature, mask=mask, other=0.0).to(tl.float32)
    out_start = batch * out_stride_b + token * out_stride_n
    # Triton converts to the dtype of the pointer, rounding to nearest even.
    tl.store(out_pointer + out_start + feature, normed * (1.0 + scale) + shift, mask=mask)


def layernorm_modulate(
    x_BND: torch.Tensor,
    shift_BTD: torch.Tensor,
    scale_BTD: torch.Tensor,
    frame_N: torch.Tensor | None,
    eps: float,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``reference.layernorm_modulate`` in one launch.

    Args:
        x_BND: bfloat16, float16 or float32; any strides with the last axis contiguous.
        shift_BTD, scale_BTD: as x, of any of these dtypes; a batch or frame stride of 0 is fine.
        frame_N: int32 or int64, contiguous: the frame of each token, 0 to T - 1 (not checked: the
            device would have to wait). None: N / T consecutive tokens to a frame.
        eps: added to the variance.
        out: where to write, shaped like x; x itself is allowed. None: a new contiguous tensor.

    Raises:
        ValueError: shapes, dtypes, devices or strides that the kernel cannot take.
    """
    out = torch.empty_like(x_BND, memory_format=torch.contiguous_format) if out is None else out
    _check(x_BND, shift_BTD, scale_BTD, frame_N, out)
    batch, tokens, features = x_BND.shape
    if x_BND.numel() == 0:
        return out
    shift_BTD, scale_BTD = shift_BTD.expand(batch, -1, -1), scale_BTD.expand(batch, -1, -1)
    block = triton.next_power_of_2(features)
    with torch.cuda.device_of(x_BND):  # Triton launches on the current device
        launch(
            _layernorm_modulate_kernel,
            (tokens, batch),
            x_BND,
            shift_BTD,
            scale_BTD,
            frame_N,
            out,
            *x_BND.stride()[:2],
            *shift_BTD.stride()[:2],
            *scale_BTD.stride()[:2],
            *out.stride()[:2],
            tokens // shift_BTD.shape[1],
            eps,
            FEATURES=features,
            BLOCK=block,
            INDEXED=frame_N is not None,
            num_warps=min(8, max(1, block // 512)),
        )
    return out


def _check(
    x_BND: torch.Tensor,
    shift_BTD: torch.Tensor,
    scale_BTD: torch.Tensor,
    frame_N: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    if x_BND.ndim != 3 or out.shape != x_BND.shape or out.dtype != x_BND.dtype:
        raise ValueError(
            f"x of shape {tuple(x_BND.shape)} and {x_BND.dtype}, out of shape {tuple(out.shape)} "
            f"and {out.dtype}: (B, N, D), both alike, is needed"
        )
    vectors = {"shift": shift_BTD, "scale": scale_BTD}
    check_modulation(x_BND, vectors, frame_N)
    check_layout({"x": x_BND, **vectors, "out": out}, x_BND.device)
