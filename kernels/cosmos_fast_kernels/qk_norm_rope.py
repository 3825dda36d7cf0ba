"""RMS norm over each head of q and k, and rotary positions, in one pass over memory.

Reads q and k wherever the projection wrote them (any strides, last axis contiguous) and may write
over them. Axes: B batch, N tokens, H heads, D features of a head, R = D / 2 rotation angles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cosmos_fast_kernels.launching import launch

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def _norm_rope_tile(
    in_pointer,
    out_pointer,
    weight_pointer,
    in_offset,
    out_offset,
    angle,
    mask,
    cos,
    sin,
    eps,
    HALF: tl.constexpr,
    ROTATE: tl.constexpr,
):
    # A tile is some heads of one token, as two halves: feature j and its partner j + D/2.
    in_angle = mask & (angle < HALF)[None, :]  # [heads, R]
    first = tl.load(in_pointer + in_offset, mask=in_angle, other=0.0).to(tl.float32)
    second = tl.load(in_pointer + in_offset + HALF, mask=in_angle, other=0.0).to(tl.float32)
    mean_square = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / (2 * HALF)
    factor = tl.rsqrt(mean_square + eps)[:, None]
    in_weight = angle < HALF
    first_weight = tl.load(weight_pointer + angle, mask=in_weight, other=0.0).to(tl.float32)
    second_weight = tl.load(weight_pointer + HALF + angle, mask=in_weight, other=0.0)
    first = first * factor * first_weight[None, :]
    second = second * factor * second_weight.to(tl.float32)[None, :]
    if ROTATE:
        turned = first * cos - second * sin
        second = second * cos + first * sin
        first = turned
    # Triton converts to the dtype of the pointer, rounding to nearest even.
    tl.store(out_pointer + out_offset, first, mask=in_angle)
    tl.store(out_pointer + out_offset + HALF, second, mask=in_angle)


@triton.jit
def _norm_rope_kernel(
    q_pointer,
    k_pointer,
    q_out_pointer,
    k_out_pointer,
    q_weight_pointer,
    k_weight_pointer,
    cos_pointer,
    sin_pointer,
    q_stride_b,
    q_stride_n,
    q_stride_h,
    k_stride_b,
    k_stride_n,
    k_stride_h,
    q_out_stride_b,
    q_out_stride_n,
    q_out_stride_h,
    k_out_stride_b,
    k_out_stride_n,
    k_out_stride_h,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    BOTH: tl.constexpr,
    ROTATE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    head = (tl.program_id(1) * HEAD_BLOCK + tl.arange(0, HEAD_BLOCK)).to(tl.int64)
    angle = tl.arange(0, HALF_BLOCK)
    mask = (head < HEADS)[:, None]

    cos = 0.0
    sin = 0.0
    if ROTATE:
        row = token * HALF + angle
        cos = tl.load(cos_pointer + row, mask=angle < HALF, other=0.0)[None, :]
        sin = tl.load(sin_pointer + row, mask=angle < HALF, other=0.0)[None, :]

    q_offset = batch * q_stride_b + token * q_stride_n + head * q_stride_h
    q_out_offset = batch * q_out_stride_b + token * q_out_stride_n + head * q_out_stride_h
    _norm_rope_tile(
        q_pointer,
        q_out_pointer,
        q_weight_pointer,
        q_offset[:, None] + angle[None, :],
        q_out_offset[:, None] + angle[None, :],
        angle,
        mask,
        cos,
        sin,
        eps,
        HALF,
        ROTATE,
    )
    if BOTH:
        k_offset = batch * k_stride_b + token * k_stride_n + head * k_stride_h
        k_out_offset = batch * k_out_stride_b + token * k_out_stride_n + head * k_out_stride_h
        _norm_rope_tile(
            k_pointer,
            k_out_pointer,
            k_weight_pointer,
            k_offset[:, None] + angle[None, :],
            k_out_offset[:, None] + angle[None, :],
            angle,
            mask,
            cos,
            sin,
            eps,
            HALF,
            ROTATE,
        )


def qk_norm_rope(
    q_BNHD: torch.Tensor,
    k_BNHD: torch.Tensor,
    q_weight_D: torch.Tensor,
    k_weight_D: torch.Tensor,
    cos_NR: torch.Tensor,
    sin_NR: torch.Tensor,
    eps: float,
    *,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``reference.qk_norm_rope`` in one launch.

    Args:
        q_BNHD, k_BNHD: bfloat16, float16 or float32, one dtype and shape, any strides with the
            last axis contiguous: views of a fused projection are read in place.
        q_weight_D, k_weight_D: gains of the norms, contiguous.
        cos_NR, sin_NR: float32, contiguous, shape (N, D / 2).
        eps: added to the mean square.
        out: where to write q and k, shaped like them; q and k themselves are allowed. None: new
            contiguous tensors.

    Raises:
        ValueError: shapes, dtypes, devices or strides that the kernel cannot take.
    """
    q_out, k_out = out or (_empty_like(q_BNHD), _empty_like(k_BNHD))
    _check_heads("q", q_BNHD, q_weight_D, q_out)
    _check_heads("k", k_BNHD, k_weight_D, k_out)
    if k_BNHD.shape != q_BNHD.shape or k_BNHD.dtype != q_BNHD.dtype:
        raise ValueError(f"{k_BNHD.shape = } {k_BNHD.dtype}: as q, {q_BNHD.shape} {q_BNHD.dtype}")
    _check_angles(q_BNHD, cos_NR, sin_NR)
    _launch(q_BNHD, k_BNHD, q_out, k_out, q_weight_D, k_weight_D, cos_NR, sin_NR, eps)
    return q_out, k_out


def head_norm(
    x_BNHD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    angles: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``reference.head_norm``: the norm of one tensor, and with ``angles`` (cos_NR, sin_NR) its
    rotation; arguments as those of :func:`qk_norm_rope`, and the same bytes."""
    out = _empty_like(x_BNHD) if out is None else out
    _check_heads("x", x_BNHD, weight_D, out)
    if angles is not None:
        _check_angles(x_BNHD, *angles)
    cos_NR, sin_NR = angles or (None, None)
    _launch(x_BNHD, None, out, None, weight_D, None, cos_NR, sin_NR, eps)
    return out


def _launch(
    q: torch.Tensor,
    k: torch.Tensor | None,
    q_out: torch.Tensor,
    k_out: torch.Tensor | None,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    eps: float,
) -> None:
    batch, tokens, heads, features = q.shape
    if q.numel() == 0:
        return
    # 40 heads of the 14B divide by 8, 16 and 20 of the others by 16 and 4: no lane idles.
    head_block = min(16, heads & -heads if heads >= 4 else triton.next_power_of_2(heads))
    half = features // 2
    strides = (*q.stride()[:3], *(q if k is None else k).stride()[:3])
    out_strides = (*q_out.stride()[:3], *(q_out if k_out is None else k_out).stride()[:3])
    with torch.cuda.device_of(q):  # Triton launches on the current device
        launch(
            _norm_rope_kernel,
            (tokens, triton.cdiv(heads, head_block), batch),
            q,
            k,
            q_out,
            k_out,
            q_weight,
            k_weight,
            cos,
            sin,
            *strides,
            *out_strides,
            eps,
            HEADS=heads,
            HALF=half,
            HALF_BLOCK=triton.next_power_of_2(half),
            HEAD_BLOCK=head_block,
            BOTH=k is not None,
            ROTATE=cos is not None,
            num_warps=4 if head_block * half >= 512 else 1,
        )


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _check_heads(
    name: str, x_BNHD: torch.Tensor, weight_D: torch.Tensor, out: torch.Tensor
) -> None:
    if x_BNHD.ndim != 4 or x_BNHD.shape[-1] % 2 or x_BNHD.dtype not in _DTYPES:
        raise ValueError(
            f"{name} of shape {tuple(x_BNHD.shape)} and {x_BNHD.dtype}: (B, N, H, D) with even D "
            f"in bfloat16, float16 or float32 is needed"
        )
    if out.shape != x_BNHD.shape or out.dtype != x_BNHD.dtype:
        raise ValueError(f"out of shape {tuple(out.shape)} and {out.dtype}: as {name} is needed")
    if x_BNHD.stride(-1) != 1 or out.stride(-1) != 1:
        raise ValueError(f"{name}: {x_BNHD.stride() = } and {out.stride() = } must end in 1")
    if weight_D.shape != x_BNHD.shape[-1:] or not weight_D.is_contiguous():
        raise ValueError(
            f"weight of {name} of shape {tuple(weight_D.shape)}: contiguous ({x_BNHD.shape[-1]},)"
        )
    if not x_BNHD.device == out.device == weight_D.device:
        raise ValueError(f"{x_BNHD.device = }, {out.device = } and {weight_D.device = } differ")


def _check_angles(x_BNHD: torch.Tensor, cos_NR: torch.Tensor, sin_NR: torch.Tensor) -> None:
    _, tokens, _, features = x_BNHD.shape
    for name, table in (("cos", cos_NR), ("sin", sin_NR)):
        if table.shape != (tokens, features // 2) or table.dtype != torch.float32:
            raise ValueError(
                f"{name} of shape {tuple(table.shape)} and {table.dtype}: float32 of shape "
                f"({tokens}, {features // 2}) is needed"
            )
        if not table.is_contiguous() or table.device != x_BNHD.device:
            raise ValueError(f"{name}: a contiguous tensor on {x_BNHD.device} is needed")
