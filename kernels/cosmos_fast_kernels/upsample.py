"""Nearest-neighbour doubling of rows and columns, of frames too, in one pass over memory.

Reads each position once and writes it four times; adds the bias that the convolution before left
out; takes the pairs of frames that the temporal convolution leaves in its channels apart.

Everything is channels last. Axes: B batch, T frames, H W rows and columns, C channels of a result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cosmos_fast_kernels.launching import launch

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TILE = 4096
"""Values in one program."""


@triton.jit(do_not_specialize=["height", "width", "out_height"])
def _upsample_kernel(
    x_pointer,
    bias_pointer,
    out_pointer,
    height,
    width,
    out_height,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
):
    position = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
    frame = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    channel = tl.arange(0, BLOCK_C)
    in_channels = channel < CHANNELS
    positions = height.to(tl.int64) * width
    mask = (position < positions)[:, None] & in_channels[None, :]  # [P, C]

    row = (frame * positions + position) * (CHANNELS * PARTS) + part * CHANNELS
    value = tl.load(x_pointer + row[:, None] + channel[None, :], mask=mask, other=0.0)
    if BIAS:
        bias = tl.load(bias_pointer + part * CHANNELS + channel, mask=in_channels, other=0.0)
        value = value.to(tl.float32) + bias.to(tl.float32)[None, :]
    value = value.to(out_pointer.dtype.element_ty)

    out_frame = (frame * PARTS + part) * (out_height.to(tl.int64) * (2 * width))
    corner = out_frame + (position // width) * (4 * width) + (position % width) * 2
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            out_row = (corner + down * (2 * width) + right) * CHANNELS
            tl.store(out_pointer + out_row[:, None] + channel[None, :], value, mask=mask)


def upsample(
    x_BTHWC: torch.Tensor, bias_C: torch.Tensor | None, *, in_time: bool, border: int = 0
) -> torch.Tensor:
    """``reference.upsample`` in one launch.

    Args:
        x_BTHWC: bfloat16, float16 or float32, contiguous; with ``in_time`` of 2·C channels, those
            of the earlier frame first.
        bias_C: added to every position, as long as x has channels; None: nothing.
        in_time: whether twice as many frames come out.
        border: rows above and below each frame of the result that nobody has written.

    Returns:
        (B, T or 2·T, 2·H + 2·border, 2·W, C), contiguous, of x's dtype.

    Raises:
        ValueError: shapes, dtypes, devices or strides that the kernel cannot take.
    """
    parts = 2 if in_time else 1
    if x_BTHWC.ndim != 5 or x_BTHWC.dtype not in _DTYPES or x_BTHWC.shape[4] % parts:
        raise ValueError(
            f"x of shape {tuple(x_BTHWC.shape)} and {x_BTHWC.dtype}: (B, T, H, W, C), C a multiple "
            f"of {parts}, in bfloat16, float16 or float32 is needed"
        )
    if border < 0:
        raise ValueError(f"{border = }: 0 rows or more are needed")
    if not x_BTHWC.is_contiguous():
        raise ValueError(f"x with strides {x_BTHWC.stride()}: a contiguous tensor is needed")
    if bias_C is not None and (
        bias_C.shape != x_BTHWC.shape[4:]
        or not bias_C.is_contiguous()
        or bias_C.device != x_BTHWC.device
    ):
        raise ValueError(
            f"bias of shape {tuple(bias_C.shape)} on {bias_C.device}: contiguous "
            f"({x_BTHWC.shape[4]},) on {x_BTHWC.device} is needed"
        )
    batch, frames, height, width, wide = x_BTHWC.shape
    channels = wide // parts
    out_height = 2 * (height + border)
    out = x_BTHWC.new_empty((batch, parts * frames, out_height, 2 * width, channels))
    if x_BTHWC.numel() == 0:
        return out
    block_c = triton.next_power_of_2(channels)
    block_p = max(1, _TILE // block_c)
    with torch.cuda.device_of(x_BTHWC):  # Triton launches on the current device
        launch(
            _upsample_kernel,
            (triton.cdiv(height * width, block_p), batch * frames, parts),
            x_BTHWC,
            bias_C,
            out[:, :, border:] if border else out,
            height,
            width,
            out_height,
            CHANNELS=channels,
            BLOCK_C=block_c,
            BLOCK_P=block_p,
            PARTS=parts,
            BIAS=bias_C is not None,
            num_warps=4,
        )
    return out
