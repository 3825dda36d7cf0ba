"""The two products of the Hopper kernel on wgmma: S = Q K^T, and O += P V.

Their arithmetic, which a quantised form has to change, stands in :func:`_scores` and
:func:`_add_values`. A block of keys may have a tail, shapes being powers of two; where it has none,
what is called tail is the block once more, and not looked at.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from cosmos_fast_kernels.attention_hopper_decay import scaled
from cosmos_fast_kernels.attention_hopper_pipeline import pass_turn, release_slot, wait_turn


@gluon.constexpr_function
def result_layout(columns, warps):
    """Of a product of so many columns in the registers of a warpgroup."""
    return gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, columns, 16])


@gluon.constexpr_function
def left_layout(columns, warps):
    """Of the left operand, in registers, of a product of so many columns."""
    return gl.DotOperandLayout(0, result_layout(columns, warps), 2)


@gluon.jit
def _scores(q, k, KEYS: gl.constexpr, LAYOUT: gl.constexpr):
    """Start S = Q K^T."""
    zeros = gl.full([q.shape[0], KEYS], 0.0, gl.float32, LAYOUT)
    return warpgroup_mma(q, k.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _add_values(p, v, out):
    """Start O += P V."""
    return warpgroup_mma(p, v, out, is_async=True)


@gluon.jit
def start_scores(q, k_ring, slot, CONFIG: gl.constexpr):
    """Start (the scores of one block of keys, those of its tail)."""
    WARPS: gl.constexpr = gl.num_warps()
    _, rings, _, _ = k_ring
    k = rings[0].index(slot).reshape([CONFIG.keys, CONFIG.head_dim])
    s = _scores(q, k, CONFIG.keys, result_layout(CONFIG.keys, WARPS))
    s_tail = s
    if CONFIG.tail > 0:
        k_tail = rings[1].index(slot).reshape([CONFIG.tail, CONFIG.head_dim])
        q_tail = q
        if CONFIG.q_registers:
            q_tail = gl.convert_layout(q, left_layout(CONFIG.tail, WARPS))
        s_tail = _scores(q_tail, k_tail, CONFIG.tail, result_layout(CONFIG.tail, WARPS))
    return s, s_tail


@gluon.jit
def wait_scores(s, s_tail, OUTSTANDING: gl.constexpr, CONFIG: gl.constexpr):
    if CONFIG.tail > 0:
        s, s_tail = warpgroup_mma_wait(OUTSTANDING, deps=(s, s_tail))
    else:
        s = warpgroup_mma_wait(OUTSTANDING, deps=(s,))
        s_tail = s
    return s, s_tail


@gluon.jit
def start_values(p, p_tail, v_ring, slot, out, CONFIG: gl.constexpr):
    """Start adding the values of one block, weighted."""
    _, rings, _, _ = v_ring
    out = _add_values(p, rings[0].index(slot).reshape([CONFIG.keys, CONFIG.head_dim]), out)
    if CONFIG.tail > 0:
        v_tail = rings[1].index(slot).reshape([CONFIG.tail, CONFIG.head_dim])
        out = _add_values(p_tail, v_tail, out)
    return out


@gluon.jit
def wait_values(out, p, p_tail, CONFIG: gl.constexpr):
    if CONFIG.tail > 0:
        done, _, _ = warpgroup_mma_wait(0, deps=(out, p, p_tail))
    else:
        done, _ = warpgroup_mma_wait(0, deps=(out, p))
    return done


@gluon.jit
def added_values(out, p, p_tail, turn, v_ring, slot, blocks, CONFIG: gl.constexpr):
    """Wait for the values of a block, and give their slot back."""
    out = wait_values(out, p, p_tail, CONFIG)
    release_slot(turn, v_ring, slot, blocks, 1, CONFIG)
    return out


@gluon.jit
def first_product(left, rings, slot, turn_phase, CONSUMER: gl.constexpr, CONFIG: gl.constexpr):
    """(the scores, their tail) of a tile's first block: no values are added meanwhile."""
    k_ring, _, turns = rings
    wait_turn(turns, turn_phase, CONSUMER, CONFIG)
    s, s_tail = start_scores(left, k_ring, slot, CONFIG)
    pass_turn(turns, CONSUMER, CONFIG)
    return wait_scores(s, s_tail, 0, CONFIG)


@gluon.jit
def both_products(
    left, p, p_tail, out, decay, rings, at, CONSUMER: gl.constexpr, CONFIG: gl.constexpr
):
    """(the scores of a block, their tail, the output with the values of the block before).

    The scores are there; the values may still be under way, until :func:`added_values`.
    """
    k_ring, v_ring, turns = rings
    k_slot, _, v_slot, v_phase, turn_phase = at
    _, _, v_ready, _ = v_ring
    if CONFIG.overlap:
        wait_turn(turns, turn_phase, CONSUMER, CONFIG)
        s, s_tail = start_scores(left, k_ring, k_slot, CONFIG)
        mbarrier.wait(v_ready.index(v_slot), v_phase)
        if CONFIG.late_decay:
            out = scaled(out, _here(decay), CONFIG)
        out = start_values(p, p_tail, v_ring, v_slot, out, CONFIG)
        pass_turn(turns, CONSUMER, CONFIG)
        BEHIND: gl.constexpr = 2 if CONFIG.tail > 0 else 1  # products in flight behind the scores
        s, s_tail = wait_scores(s, s_tail, BEHIND, CONFIG)
    else:
        mbarrier.wait(v_ready.index(v_slot), v_phase)
        wait_turn(turns, turn_phase, CONSUMER, CONFIG)
        out = start_values(p, p_tail, v_ring, v_slot, out, CONFIG)
        s, s_tail = start_scores(left, k_ring, k_slot, CONFIG)
        pass_turn(turns, CONSUMER, CONFIG)
        s, s_tail = wait_scores(s, s_tail, 0, CONFIG)
    return s, s_tail, out


@gluon.jit
def _here(x):
    """x, in a way that keeps the compiler from doing what follows from it any earlier."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [x], gl.float32, False, 1)
