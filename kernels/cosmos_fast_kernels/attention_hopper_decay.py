"""The running maximum of the Hopper kernel, and the scaling of its output when that grows.

Moving the maximum at every block is not needed: softmax is the same relative to any number, so long
as nothing overflows. With ``CONFIG.slack`` the maximum stays until it would grow by more than that
many powers of two; P is then at most 2 to that power. The idea is FlashAttention-4's. And whatever
the slack, a warp none of whose rows moved need not multiply its output by one.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def next_maximum(top, seen, scale, CONFIG: gl.constexpr):
    """The maximum that the coming block is relative to, of the last one and what was seen since."""
    new_top = gl.maximum(top, seen)
    if CONFIG.slack > 0:
        new_top = gl.where((new_top - top) * scale > CONFIG.slack, new_top, top)
    return new_top


@gluon.constexpr_function
def skipping_product(count: int) -> str:
    """PTX: ``count`` outputs times their factors, unless the warp's factors are all one.

    A thread holds ``count`` outputs of two rows, two and two in turn, so that the first and the
    third factor stand for all. The branch is the same for the whole warp.
    """
    first, third = f"${2 * count}", f"${2 * count + 2}"
    lines = [
        "{",
        ".reg .pred one, other;",
        f"setp.neu.f32 one, {first}, 0f3F800000;",
        f"setp.neu.f32 other, {third}, 0f3F800000;",
        "or.pred one, one, other;",
        "vote.sync.any.pred one, one, 0xffffffff;",
        "@!one bra.uni KEPT;",
        *(f"mul.f32 ${index}, ${index}, ${2 * count + index};" for index in range(count)),
        "KEPT:",
        "}",
    ]
    return "\n".join(lines)


@gluon.constexpr_function
def skipping_constraints(count: int) -> str:
    return ",".join(["=f"] * count + [str(index) for index in range(count)] + ["f"] * count)


@gluon.jit
def scaled(out, decay, CONFIG: gl.constexpr):
    """The output relative to the new maximum."""
    OUT_ROWS: gl.constexpr = gl.SliceLayout(1, out.type.layout)
    factors = gl.convert_layout(decay, OUT_ROWS)[:, None]
    if CONFIG.skip_decay:
        COUNT: gl.constexpr = CONFIG.head_dim // 2  # outputs of a thread, at 64 rows
        return gl.inline_asm_elementwise(
            skipping_product(COUNT),
            skipping_constraints(COUNT),
            [out, factors],
            gl.float32,
            False,
            COUNT,
        )
    return out * factors
