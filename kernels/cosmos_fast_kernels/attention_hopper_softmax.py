"""The softmax of the Hopper kernel, in base 2: maxima, exponentials, sums, and the ragged block.

Four threads share a row of the scores; each keeps its own part of the sum until the last block.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def row_maximum(s, s_tail, CONFIG: gl.constexpr):
    """The largest score of each row, without NaNs."""
    S_ROWS: gl.constexpr = gl.SliceLayout(1, s.type.layout)
    top = _thread_maximum(s, CONFIG.rows, CONFIG.keys)
    if CONFIG.tail > 0:
        tail_top = _thread_maximum(s_tail, CONFIG.rows, CONFIG.tail)
        top = gl.maximum(top, gl.convert_layout(tail_top, top.type.layout))
    return gl.convert_layout(gl.max(top, 1), S_ROWS)


@gluon.jit
def _thread_maximum(s, ROWS: gl.constexpr, KEYS: gl.constexpr):
    """Maxima over what each thread holds of a row, in chains short enough to hide each other."""
    return gl.max(gl.max(gl.max(s.reshape([ROWS, 4, KEYS // 32, 4, 2]), 4), 2), 1)  # [ROWS, 4]


@gluon.jit
def _thread_sum(p, ROWS: gl.constexpr, KEYS: gl.constexpr):
    """Sums over what each thread holds of a row: four threads share one, and meet at the end."""
    return gl.sum(gl.sum(gl.sum(p.reshape([ROWS, 4, KEYS // 32, 4, 2]), 4), 2), 1)  # [ROWS, 4]


@gluon.jit
def softmax(s, s_tail, top, shift, scale, CONFIG: gl.constexpr):
    """(P, its tail, its sums by thread) of scores whose running maximum is ``top``."""
    p = gl.exp2(s * scale - shift[:, None])
    sums = _thread_sum(p, CONFIG.rows, CONFIG.keys)
    p_tail = p
    if CONFIG.tail > 0:
        TAIL_SLICE: gl.constexpr = gl.SliceLayout(1, s_tail.type.layout)
        p_tail = gl.exp2(s_tail * scale - gl.convert_layout(shift, TAIL_SLICE)[:, None])
        tail_sums = _thread_sum(p_tail, CONFIG.rows, CONFIG.tail)
        sums += gl.convert_layout(tail_sums, sums.type.layout)
    return p, p_tail, sums


@gluon.jit
def weights(p, p_tail, LAYOUT: gl.constexpr, DTYPE: gl.constexpr):
    """P as the left operand of the second product: the same registers, rounded."""
    return gl.convert_layout(p.to(DTYPE), LAYOUT), gl.convert_layout(p_tail.to(DTYPE), LAYOUT)


@gluon.jit
def _masked(s, first, keys, KEYS: gl.constexpr):
    """Scores whose key ``first`` + column is past ``keys`` become -inf."""
    columns = first + gl.arange(0, KEYS, gl.SliceLayout(0, s.type.layout))
    return gl.where((columns < keys)[None, :], s, float("-inf"))


@gluon.jit
def ragged(s, s_tail, first, keys, CONFIG: gl.constexpr):
    """The scores of the last block, which may go beyond the end."""
    KEYS: gl.constexpr = CONFIG.keys
    TAIL: gl.constexpr = CONFIG.tail
    s = _masked(s, first, keys, KEYS)
    return s, (_masked(s_tail, first + KEYS, keys, TAIL) if TAIL > 0 else s)
