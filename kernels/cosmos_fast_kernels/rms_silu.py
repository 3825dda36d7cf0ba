"""From one causal convolution of the VAE to the next, in one pass over memory.

Adds what the last convolution left to do (its bias, the shortcut with a bias of its own), norms
the channel vector of every position, applies SiLU, and writes the result where the next one reads
it: behind the frames it saw before, and once more into what it has to remember.

Everything is channels last. Axes: B batch, T frames, H W rows and columns, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from cosmos_fast_kernels.launching import launch

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TILE = 4096
"""Values in one program."""


class Assembled(NamedTuple):
    """What the next convolution of a chunk needs."""

    total: torch.Tensor | None
    """(B, T, H, W, C): the sum before the norm, where it is wanted."""
    padded: torch.Tensor
    """(B, history + T, H + 2 * border, W, C): input of the convolution."""
    kept: torch.Tensor
    """(B, history, H, W, C): its last frames, for the next chunk."""


@triton.jit(do_not_specialize=["positions", "padded_positions", "frames", "follows"])
def _assemble_kernel(
    x_pointer,
    bias_pointer,
    residual_pointer,
    residual_bias_pointer,
    gamma_pointer,
    earlier_pointer,
    total_pointer,
    padded_pointer,
    kept_pointer,
    positions,
    padded_positions,
    frames,
    follows,
    gain,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HISTORY: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RESIDUAL_BIAS: tl.constexpr,
    TOTAL: tl.constexpr,
):
    position = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
    place = tl.program_id(1)  # frame among history + frames
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    in_channels = channel < CHANNELS
    mask = (position < positions)[:, None] & in_channels[None, :]  # [P, C]
    within = position[:, None] * CHANNELS + channel[None, :]
    frame_size = positions.to(tl.int64) * CHANNELS
    padded_size = padded_positions.to(tl.int64) * CHANNELS  # of a frame with its borders
    padded_frame = (batch * (HISTORY + frames) + place) * padded_size
    kept_frame = (batch * HISTORY + place - frames) * frame_size

    if place < HISTORY:
        value = tl.zeros([BLOCK_P, BLOCK_C], padded_pointer.dtype.element_ty)
        if follows > 0:
            earlier_frame = (batch * HISTORY + place) * frame_size
            value = tl.load(earlier_pointer + earlier_frame + within, mask=mask, other=0.0)
    else:
        frame = (batch * frames + place - HISTORY) * frame_size
        total = tl.load(x_pointer + frame + within, mask=mask, other=0.0).to(tl.float32)
        if BIAS:
            bias = tl.load(bias_pointer + channel, mask=in_channels, other=0.0)
            total += bias.to(tl.float32)[None, :]
        if RESIDUAL_BIAS:
            bias = tl.load(residual_bias_pointer + channel, mask=in_channels, other=0.0)
            total += bias.to(tl.float32)[None, :]
        if RESIDUAL:
            residual = tl.load(residual_pointer + frame + within, mask=mask, other=0.0)
            total += residual.to(tl.float32)
        value = total.to(padded_pointer.dtype.element_ty)
        if TOTAL:
            tl.store(total_pointer + frame + within, value, mask=mask)
        if NORM:
            wide = value.to(tl.float32)
            square = tl.maximum(tl.sum(wide * wide, axis=1), 1e-24)
            gamma = tl.load(gamma_pointer + channel, mask=in_channels, other=0.0).to(tl.float32)
            normed = wide * (tl.rsqrt(square) * gain)[:, None] * gamma[None, :]
            value = (normed / (1.0 + tl.exp(-normed))).to(padded_pointer.dtype.element_ty)
    tl.store(padded_pointer + padded_frame + within, value, mask=mask)
    if HISTORY > 0 and place >= frames:
        tl.store(kept_pointer + kept_frame + within, value, mask=mask)


def rms_silu(
    x_BTHWC: torch.Tensor,
    gamma_C: torch.Tensor | None,
    bias_C: torch.Tensor | None,
    residual_BTHWC: torch.Tensor | None,
    residual_bias_C: torch.Tensor | None,
    earlier_BTHWC: torch.Tensor | None,
    history: int,
    *,
    keep_total: bool,
    kept_BTHWC: torch.Tensor | None = None,
    border: int = 0,
    out: Assembled | None = None,
) -> Assembled:
    """``reference.rms_silu`` in one launch.

    Args:
        x_BTHWC: bfloat16, float16 or float32, contiguous.
        gamma_C: gains of the norm; None: neither norm nor SiLU, the sum itself is assembled.
        bias_C, residual_bias_C: what to add to every position; None: nothing.
        residual_BTHWC: what to add, shaped and typed like x, contiguous; None: nothing.
        earlier_BTHWC: ``kept`` of the chunk before; None: zeros, at the start of a clip.
        history: frames that the convolution sees before the first one.
        keep_total: whether the sum is wanted too.
        kept_BTHWC: where the last frames go, contiguous, like ``earlier`` and not the same memory;
            None: a new tensor.
        border: rows above and below each frame of ``padded`` that are left as they are.
        out: where to write all of it, contiguous tensors of the shapes of :class:`Assembled` and
            x's dtype. None: new ones.

    Raises:
        ValueError: shapes, dtypes, devices or strides that the kernel cannot take.
    """
    _check(x_BTHWC, gamma_C, bias_C, residual_BTHWC, residual_bias_C, earlier_BTHWC, history)
    if border < 0:
        raise ValueError(f"{border = }: 0 rows or more are needed")
    batch, frames, height, width, channels = x_BTHWC.shape
    out = _made(x_BTHWC, history, keep_total, kept_BTHWC, border) if out is None else out
    _check_out(x_BTHWC, history, keep_total, border, out)
    total, padded, kept = out
    overwritten = earlier_BTHWC is not None and kept.data_ptr() == earlier_BTHWC.data_ptr()
    if overwritten and history and not x_BTHWC.is_meta:
        raise ValueError("kept: earlier is read while it is written; another tensor is needed")
    if x_BTHWC.numel() == 0:
        return out
    block_c = triton.next_power_of_2(channels)
    block_p = max(1, _TILE // block_c)
    positions = height * width
    with torch.cuda.device_of(x_BTHWC):  # Triton launches on the current device
        launch(
            _assemble_kernel,
            (triton.cdiv(positions, block_p), history + frames, batch),
            x_BTHWC,
            bias_C,
            residual_BTHWC,
            residual_bias_C,
            gamma_C,
            padded if earlier_BTHWC is None else earlier_BTHWC,
            total,
            padded[:, :, border:] if border else padded,
            kept,
            positions,
            (height + 2 * border) * width,
            frames,
            int(earlier_BTHWC is not None),  # a first chunk has the kernels of those that follow
            channels**0.5,
            CHANNELS=channels,
            BLOCK_C=block_c,
            BLOCK_P=block_p,
            HISTORY=history,
            NORM=gamma_C is not None,
            BIAS=bias_C is not None,
            RESIDUAL=residual_BTHWC is not None,
            RESIDUAL_BIAS=residual_bias_C is not None,
            TOTAL=keep_total,
            num_warps=4,
        )
    return out


def _made(
    x_BTHWC: torch.Tensor,
    history: int,
    keep_total: bool,
    kept_BTHWC: torch.Tensor | None,
    border: int,
) -> Assembled:
    batch, frames, *rest = x_BTHWC.shape
    height, *others = rest
    return Assembled(
        torch.empty_like(x_BTHWC) if keep_total else None,
        x_BTHWC.new_empty((batch, history + frames, height + 2 * border, *others)),
        x_BTHWC.new_empty((batch, history, *rest)) if kept_BTHWC is None else kept_BTHWC,
    )


def _check_out(
    x_BTHWC: torch.Tensor, history: int, keep_total: bool, border: int, out: Assembled
) -> None:
    batch, frames, height, *rest = x_BTHWC.shape
    shapes = {
        "total": (batch, frames, height, *rest) if keep_total else None,
        "padded": (batch, history + frames, height + 2 * border, *rest),
        "kept": (batch, history, height, *rest),
    }
    for name, tensor in zip(Assembled._fields, out, strict=True):
        shape = shapes[name]
        if (None if tensor is None else tuple(tensor.shape)) != shape:
            raise ValueError(f"out: {name} of another shape than {shape}")
        if tensor is not None and not (
            tensor.is_contiguous()
            and tensor.dtype == x_BTHWC.dtype
            and tensor.device == x_BTHWC.device
        ):
            raise ValueError(
                f"out: {name}: contiguous {x_BTHWC.dtype} on {x_BTHWC.device} is needed"
            )


def _check(
    x_BTHWC: torch.Tensor,
    gamma_C: torch.Tensor | None,
    bias_C: torch.Tensor | None,
    residual_BTHWC: torch.Tensor | None,
    residual_bias_C: torch.Tensor | None,
    earlier_BTHWC: torch.Tensor | None,
    history: int,
) -> None:
    if x_BTHWC.ndim != 5 or x_BTHWC.dtype not in _DTYPES or history < 0:
        raise ValueError(
            f"x of shape {tuple(x_BTHWC.shape)} and {x_BTHWC.dtype}, {history = }: (B, T, H, W, C) "
            f"in bfloat16, float16 or float32, and a history of 0 or more, are needed"
        )
    batch, _, height, width, channels = x_BTHWC.shape
    shapes = {
        "x": (x_BTHWC, tuple(x_BTHWC.shape)),
        "residual": (residual_BTHWC, tuple(x_BTHWC.shape)),
        "earlier": (earlier_BTHWC, (batch, history, height, width, channels)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or tensor.dtype != x_BTHWC.dtype:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} and {tensor.dtype}: {shape} and "
                f"{x_BTHWC.dtype} are needed"
            )
        if not tensor.is_contiguous() or tensor.device != x_BTHWC.device:
            raise ValueError(f"{name}: a contiguous tensor on {x_BTHWC.device} is needed")
    vectors = {"gamma": gamma_C, "bias": bias_C, "residual bias": residual_bias_C}
    for name, vector in vectors.items():
        if vector is None:
            continue
        if vector.shape != (channels,) or not vector.is_contiguous():
            raise ValueError(f"{name} of shape {tuple(vector.shape)}: contiguous ({channels},)")
        if vector.device != x_BTHWC.device:
            raise ValueError(f"{name} on {vector.device}: x is on {x_BTHWC.device}")
