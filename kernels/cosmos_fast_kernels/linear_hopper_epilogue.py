"""What happens to a product before it is stored: nothing, GELU, or gate and residual.

In registers and in float32, 64 columns at a time. What happens to heads has a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language.core import constexpr_type

KEEP_NANS: Final = gl.constexpr(tl.PropagateNan.ALL)


@dataclass(frozen=True)
class Epilogue:
    """What becomes of a product."""

    kind: Literal["none", "gelu", "gated", "norm", "rope"] = "none"
    indexed: bool = False
    """Of "gated": whether each row's frame is read from memory, and not counted."""
    round_first: bool = False
    """Round the product to bfloat16 before the rest, as where a kernel of its own does the rest."""
    features: int = 0
    """Of "norm" and "rope": of a head, 64 or 128."""

    @property
    def type(self) -> constexpr_type:
        """What Gluon asks of a compile-time value that travels in a tuple."""
        return constexpr_type(self)


@gluon.jit
def gelu(x):
    """x Φ(x), Φ the normal distribution: ``torch.nn.functional.gelu`` as it is without arguments.

    max(x, 0) - |x| Φ(-|x|), and log2 of Φ(-a) as a polynomial of degree 7, fitted over 0 to 7 by
    Lawson's iteration: relative error 4e-6 up to a = 4.5, 8e-5 up to 7, where Φ(-a) is 1e-12;
    beyond, it falls faster than Φ(-a) does. Computing 1 + erf(x / √2) in float32 instead cancels
    all digits at x = -5. Eleven instructions, erf has about 25.
    """
    a = gl.minimum(gl.abs(x), 16.0, propagate_nan=KEEP_NANS)
    log_tail = a * -1.76173725e-06 + 6.01659651e-05
    log_tail = log_tail * a - 9.19456656e-04
    log_tail = log_tail * a + 8.46497777e-03
    log_tail = log_tail * a - 5.38724330e-02
    log_tail = log_tail * a - 4.58554371e-01
    log_tail = log_tail * a - 1.15121156
    log_tail = log_tail * a - 1.0
    return gl.maximum(x, 0.0, propagate_nan=KEEP_NANS) - a * gl.exp2(log_tail)


@gluon.jit
def gated(product, residual, gate):
    """residual + gate · product."""
    return residual.to(gl.float32) + gate.to(gl.float32) * product


@gluon.jit
def frames_of(
    frame_pointer,
    row,
    rows,
    rows_per_frame,
    ROWS: gl.constexpr,
    INDEXED: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """The frame of each of ``ROWS`` rows from ``row`` on; beyond the end, that of the last row."""
    index = gl.minimum(row + gl.arange(0, ROWS, LAYOUT), rows - 1)
    frame = gl.cast(index // rows_per_frame, gl.int64)
    if INDEXED:
        frame = gl.cast(gl.load(frame_pointer + index), gl.int64)
    return frame


@gluon.jit
def halves(x):
    """The left and the right half of the columns: registers under other names."""
    ROWS: gl.constexpr = x.shape[0]
    COLUMNS: gl.constexpr = x.shape[1]
    return x.reshape([ROWS, 2, COLUMNS // 2]).permute((0, 2, 1)).split()


@gluon.jit
def pieces_of(x, LAYOUT: gl.constexpr):
    """x in pieces of 64 columns, from left to right."""
    if x.shape[1] == 64:
        return (gl.convert_layout(x, LAYOUT),)
    elif x.shape[1] == 128:
        left, right = halves(x)
        return (gl.convert_layout(left, LAYOUT), gl.convert_layout(right, LAYOUT))
    else:
        left, right = halves(x)
        first, second = halves(left)
        third, fourth = halves(right)
        return (
            gl.convert_layout(first, LAYOUT),
            gl.convert_layout(second, LAYOUT),
            gl.convert_layout(third, LAYOUT),
            gl.convert_layout(fourth, LAYOUT),
        )
