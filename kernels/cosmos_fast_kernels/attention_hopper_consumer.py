"""What a consumer of the Hopper kernel does: two products on wgmma, and the softmax between them.

The arithmetic of the products, which a quantised form has to change, stands in :func:`_scores` and
:func:`_add_values`.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from cosmos_fast_kernels.attention_hopper_decay import next_maximum, scaled
from cosmos_fast_kernels.attention_hopper_pipeline import (
    announce_free,
    load_first,
    meet,
    next_slot,
    open_slots,
    pass_turn,
    release_slot,
    tile_place,
    wait_turn,
)
from cosmos_fast_kernels.attention_hopper_softmax import ragged, row_maximum, softmax, weights


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
def _scores_of(q, k_rings, slot, CONFIG: gl.constexpr, S: gl.constexpr, T: gl.constexpr):
    """Start the scores of one block of keys."""
    k = k_rings[0].index(slot).reshape([CONFIG.keys, CONFIG.head_dim])
    s = _scores(q, k, CONFIG.keys, S)
    s_tail = s
    if CONFIG.tail > 0:
        k_tail = k_rings[1].index(slot).reshape([CONFIG.tail, CONFIG.head_dim])
        q_tail = q
        if CONFIG.q_registers:
            q_tail = gl.convert_layout(q, gl.DotOperandLayout(0, T, 2))
        s_tail = _scores(q_tail, k_tail, CONFIG.tail, T)
    return s, s_tail


@gluon.jit
def _wait_scores(s, s_tail, OUTSTANDING: gl.constexpr, CONFIG: gl.constexpr):
    if CONFIG.tail > 0:
        s, s_tail = warpgroup_mma_wait(OUTSTANDING, deps=(s, s_tail))
    else:
        s = warpgroup_mma_wait(OUTSTANDING, deps=(s,))
        s_tail = s
    return s, s_tail


@gluon.jit
def _values_of(p, p_tail, v_rings, slot, out, CONFIG: gl.constexpr):
    """Start adding the values of one block, weighted."""
    out = _add_values(p, v_rings[0].index(slot).reshape([CONFIG.keys, CONFIG.head_dim]), out)
    if CONFIG.tail > 0:
        v_tail = v_rings[1].index(slot).reshape([CONFIG.tail, CONFIG.head_dim])
        out = _add_values(p_tail, v_tail, out)
    return out


@gluon.jit
def _wait_values(out, p, p_tail, CONFIG: gl.constexpr):
    if CONFIG.tail > 0:
        done, _, _ = warpgroup_mma_wait(0, deps=(out, p, p_tail))
    else:
        done, _ = warpgroup_mma_wait(0, deps=(out, p))
    return done


@gluon.jit
def _added_values(out, p, p_tail, turn, slot_of_values, CONFIG: gl.constexpr):
    """Wait for the values of a block, and give their slot back."""
    descs, rings, ready, free, slot, place, key_blocks = slot_of_values
    out = _wait_values(out, p, p_tail, CONFIG)
    release_slot(turn, descs, rings, ready, free, slot, place, key_blocks, 1, CONFIG)
    return out


@gluon.jit
def _here(x):
    """x, in a way that keeps the compiler from doing what follows from it any earlier."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [x], gl.float32, False, 1)


@gluon.jit
def _behind_a_branch(top):
    """The maxima of two rows, behind a branch that only one of -inf takes, and then once.

    It sleeps no time: without an effect in it, the assembler dissolves the branch.
    """
    return gl.inline_asm_elementwise(
        """{
        .reg .pred other;
        .reg .f32 seen;
        mov.b32 seen, $2;
        AGAIN:
        setp.neu.f32 other, seen, 0fFF800000;
        @other bra DONE;
        nanosleep.u32 0;
        mov.b32 seen, 0f00000000;
        bra AGAIN;
        DONE:
        mov.b32 $0, $2;
        mov.b32 $1, $3;
        }""",
        "=f,=f,f,f",
        [top],
        gl.float32,
        False,
        2,
    )


@gluon.jit
def consume(
    descs,
    buffers,
    bars,
    sizes,
    numbers,
    CONSUMER: gl.constexpr,
    CONFIG: gl.constexpr,
    ZERO_KEYS: gl.constexpr,
    LOG_SUM_EXP: gl.constexpr,
):
    """One consumer: the attention of its rows of each tile."""
    _, k_descs, v_descs, o_desc = descs
    q_buffers, k_rings, v_rings = buffers
    q_ready, q_free, k_ready, k_free, v_ready, v_free, turns = bars
    query_blocks, heads, tiles, key_blocks = sizes
    scale, zero_keys, queries, keys, log_sum_exp_pointer = numbers

    ROWS: gl.constexpr = CONFIG.rows
    KEYS: gl.constexpr = CONFIG.keys
    TAIL: gl.constexpr = CONFIG.tail
    STAGES: gl.constexpr = CONFIG.stages
    DTYPE: gl.constexpr = o_desc.dtype
    WARPS: gl.constexpr = gl.num_warps()
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, KEYS, 16])
    T: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, max(TAIL, 8), 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, CONFIG.head_dim, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    OUT_ROWS: gl.constexpr = gl.SliceLayout(1, OUT)
    BEHIND: gl.constexpr = 2 if TAIL > 0 else 1  # products in flight behind the scores

    q_slot = 0
    k_slot = 0
    k_phase = 0
    v_slot = 0
    v_phase = 0
    q_phase = 0
    turn_phase = 0
    if CONFIG.turns == "named" and CONFIG.consumers - 1 == CONSUMER:
        meet(False, 8)

    open_slots(False, CONFIG)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        block, head, batch = tile_place(tile, query_blocks, heads)
        row = (block * CONFIG.consumers + CONSUMER) * ROWS
        if not CONFIG.loader:
            place = (batch, head, row)
            load_first(descs, buffers, bars, place, k_slot, v_slot, key_blocks, CONFIG)

        q_place = q_slot * CONFIG.consumers + CONSUMER
        q = q_buffers.index(q_place).reshape([ROWS, CONFIG.head_dim])
        mbarrier.wait(q_ready.index(q_place), q_phase)
        left = q
        if CONFIG.q_registers:
            left = q.load(gl.DotOperandLayout(0, S, 2))
        mbarrier.wait(k_ready.index(k_slot), k_phase)
        wait_turn(turns, turn_phase, CONSUMER, CONFIG)
        s, s_tail = _scores_of(left, k_rings, k_slot, CONFIG, S, T)
        pass_turn(turns, CONSUMER, CONFIG)
        turn_phase ^= 1
        s, s_tail = _wait_scores(s, s_tail, 0, CONFIG)
        release_slot(
            0, k_descs, k_rings, k_ready, k_free, k_slot, (batch, head), key_blocks, 0, CONFIG
        )
        k_slot, k_phase = next_slot(k_slot, k_phase, STAGES)

        first = (key_blocks - 1) * (KEYS + TAIL)
        s, s_tail = ragged(s, s_tail, first, keys, CONFIG)
        top = row_maximum(s, s_tail, CONFIG)
        if ZERO_KEYS:
            top = gl.maximum(top, 0.0)
        p, p_tail, total = softmax(s, s_tail, top, top * scale, scale, CONFIG)
        p, p_tail = weights(p, p_tail, P, DTYPE)
        out = gl.full([ROWS, CONFIG.head_dim], 0.0, gl.float32, OUT)
        decay = gl.full([ROWS], 1.0, gl.float32, top.type.layout)

        if not CONFIG.late_keys:
            mbarrier.wait(k_ready.index(k_slot), k_phase, pred=key_blocks > 1)
        for turn in range(1, key_blocks):
            if CONFIG.late_keys:
                mbarrier.wait(k_ready.index(k_slot), k_phase)
            if CONFIG.overlap:
                wait_turn(turns, turn_phase, CONSUMER, CONFIG)
                s, s_tail = _scores_of(left, k_rings, k_slot, CONFIG, S, T)
                mbarrier.wait(v_ready.index(v_slot), v_phase)
                if CONFIG.late_decay:
                    out = scaled(out, _here(decay), CONFIG)
                out = _values_of(p, p_tail, v_rings, v_slot, out, CONFIG)
                pass_turn(turns, CONSUMER, CONFIG)
                s, s_tail = _wait_scores(s, s_tail, BEHIND, CONFIG)
            else:
                mbarrier.wait(v_ready.index(v_slot), v_phase)
                wait_turn(turns, turn_phase, CONSUMER, CONFIG)
                out = _values_of(p, p_tail, v_rings, v_slot, out, CONFIG)
                s, s_tail = _scores_of(left, k_rings, k_slot, CONFIG, S, T)
                pass_turn(turns, CONSUMER, CONFIG)
                s, s_tail = _wait_scores(s, s_tail, 0, CONFIG)
            turn_phase ^= 1
            release_slot(
                turn,
                k_descs,
                k_rings,
                k_ready,
                k_free,
                k_slot,
                (batch, head),
                key_blocks,
                0,
                CONFIG,
            )
            k_slot, k_phase = next_slot(k_slot, k_phase, STAGES)

            new_top = next_maximum(top, row_maximum(s, s_tail, CONFIG), scale, CONFIG)
            # Without a branch ahead of the wait for the values, the assembler moves that wait up,
            # above everything since the scores. The wait for the next keys is one.
            if CONFIG.late_keys:
                new_top = _behind_a_branch(new_top)
            decay = gl.exp2((top - new_top) * scale)
            top = new_top
            free_v = (v_descs, v_rings, v_ready, v_free, v_slot, (batch, head), key_blocks)
            if CONFIG.early_values:
                if not CONFIG.late_keys:
                    mbarrier.wait(k_ready.index(k_slot), k_phase, pred=turn + 1 < key_blocks)
                out = _added_values(out, p, p_tail, turn - 1, free_v, CONFIG)
                out = scaled(out, decay, CONFIG)
            new_p, new_p_tail, sums = softmax(s, s_tail, top, top * scale, scale, CONFIG)
            SUM_ROWS: gl.constexpr = gl.SliceLayout(1, total.type.layout)
            total = total * gl.convert_layout(decay, SUM_ROWS)[:, None] + sums
            if not CONFIG.early_values:
                mbarrier.wait(k_ready.index(k_slot), k_phase, pred=turn + 1 < key_blocks)
                out = _added_values(out, p, p_tail, turn - 1, free_v, CONFIG)
                if not CONFIG.late_decay:
                    out = scaled(out, decay, CONFIG)
            v_slot, v_phase = next_slot(v_slot, v_phase, STAGES)
            p, p_tail = weights(new_p, new_p_tail, P, DTYPE)

        if CONFIG.late_decay:
            out = scaled(out, decay, CONFIG)
        mbarrier.wait(v_ready.index(v_slot), v_phase)
        out = _values_of(p, p_tail, v_rings, v_slot, out, CONFIG)
        row_total = gl.convert_layout(gl.sum(total, 1), top.type.layout)
        if ZERO_KEYS:
            row_total += zero_keys * gl.exp2(-top * scale)
        out = _wait_values(out, p, p_tail, CONFIG)
        if CONFIG.loader:
            announce_free(v_free, v_slot, 1, CONFIG)
        v_slot, v_phase = next_slot(v_slot, v_phase, STAGES)

        if LOG_SUM_EXP:
            rows = row + gl.arange(0, ROWS, top.type.layout)
            place = (gl.cast(batch, gl.int64) * queries + rows) * heads + head
            value = (top * scale + gl.log2(row_total)) * 0.6931471805599453
            gl.store(log_sum_exp_pointer + place, value, mask=rows < queries)
        # Q was read for the last time: its place in shared memory takes the output.
        q.store((out * gl.convert_layout(1.0 / row_total, OUT_ROWS)[:, None]).to(DTYPE))
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [batch, head, row, 0], q_buffers.index(q_place))
        tma.store_wait(0)
        if CONFIG.loader:
            mbarrier.arrive(q_free.index(q_place), count=1)
        q_slot, q_phase = next_slot(q_slot, q_phase, CONFIG.q_stages)

    if CONFIG.turns == "named" and CONSUMER == 0:
        meet(True, 8)
