"""What a consumer of the Hopper kernel does: the attention of its rows of each tile.

Where it stands is five numbers, ``at``: the slot and the phase to wait for of the ring of keys, of
that of values, and the phase of its turn.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from cosmos_fast_kernels import hopper_tma as tma
from cosmos_fast_kernels.attention_hopper_decay import next_maximum, scaled
from cosmos_fast_kernels.attention_hopper_pipeline import (
    announce_free,
    load_first,
    meet,
    next_slot,
    open_slots,
    release_slot,
    tile_place,
)
from cosmos_fast_kernels.attention_hopper_products import (
    added_values,
    both_products,
    first_product,
    left_layout,
    result_layout,
    start_values,
    wait_values,
)
from cosmos_fast_kernels.attention_hopper_softmax import ragged, row_maximum, softmax, weights


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
def _first_softmax(s, s_tail, key_blocks, numbers, CONFIG: gl.constexpr, ZERO_KEYS: gl.constexpr):
    """(P, its tail, its sums by thread, the maxima) of the first block, which may be ragged."""
    scale, _, _, keys, _ = numbers
    first = (key_blocks - 1) * (CONFIG.keys + CONFIG.tail)
    s, s_tail = ragged(s, s_tail, first, keys, CONFIG)
    top = row_maximum(s, s_tail, CONFIG)
    if ZERO_KEYS:
        top = gl.maximum(top, 0.0)
    p, p_tail, total = softmax(s, s_tail, top, top * scale, scale, CONFIG)
    return p, p_tail, total, top


@gluon.jit
def _finish(
    out, p, p_tail, total, top, v_ring, at, numbers, CONFIG: gl.constexpr, ZERO_KEYS: gl.constexpr
):
    """(the output with the values of the last block, the sum of each row's weights)."""
    scale, zero_keys, _, _, _ = numbers
    _, _, slot, phase, _ = at
    _, _, ready, free = v_ring
    mbarrier.wait(ready.index(slot), phase)
    out = start_values(p, p_tail, v_ring, slot, out, CONFIG)
    row_total = gl.convert_layout(gl.sum(total, 1), top.type.layout)
    if ZERO_KEYS:
        row_total += zero_keys * gl.exp2(-top * scale)
    out = wait_values(out, p, p_tail, CONFIG)
    if CONFIG.loader:
        announce_free(free, slot, 1, CONFIG)
    return out, row_total


@gluon.jit
def _attend(
    left,
    rings,
    blocks,
    numbers,
    at,
    CONSUMER: gl.constexpr,
    CONFIG: gl.constexpr,
    ZERO_KEYS: gl.constexpr,
):
    """(the output, not yet divided, its divisors, the maxima, and ``at`` moved on) of one tile."""
    k_slot, k_phase, v_slot, v_phase, turn_phase = at
    k_ring, v_ring, _ = rings
    _, _, key_blocks = blocks
    _, _, k_ready, _ = k_ring
    scale, _, _, _, _ = numbers
    STAGES: gl.constexpr = CONFIG.stages
    P: gl.constexpr = left_layout(CONFIG.head_dim, gl.num_warps())
    DTYPE: gl.constexpr = v_ring[0][0].dtype

    mbarrier.wait(k_ready.index(k_slot), k_phase)
    s, s_tail = first_product(left, rings, k_slot, turn_phase, CONSUMER, CONFIG)
    turn_phase ^= 1
    release_slot(0, k_ring, k_slot, blocks, 0, CONFIG)
    k_slot, k_phase = next_slot(k_slot, k_phase, STAGES)
    p, p_tail, total, top = _first_softmax(s, s_tail, key_blocks, numbers, CONFIG, ZERO_KEYS)
    p, p_tail = weights(p, p_tail, P, DTYPE)
    OUT: gl.constexpr = result_layout(CONFIG.head_dim, gl.num_warps())
    out = gl.full([CONFIG.rows, CONFIG.head_dim], 0.0, gl.float32, OUT)
    decay = gl.full([CONFIG.rows], 1.0, gl.float32, top.type.layout)

    if not CONFIG.late_keys:
        mbarrier.wait(k_ready.index(k_slot), k_phase, pred=key_blocks > 1)
    for turn in range(1, key_blocks):
        if CONFIG.late_keys:
            mbarrier.wait(k_ready.index(k_slot), k_phase)
        at = (k_slot, k_phase, v_slot, v_phase, turn_phase)
        s, s_tail, out = both_products(left, p, p_tail, out, decay, rings, at, CONSUMER, CONFIG)
        turn_phase ^= 1
        release_slot(turn, k_ring, k_slot, blocks, 0, CONFIG)
        k_slot, k_phase = next_slot(k_slot, k_phase, STAGES)

        new_top = next_maximum(top, row_maximum(s, s_tail, CONFIG), scale, CONFIG)
        # Without a branch ahead of the wait for the values, the assembler moves that wait up,
        # above everything since the scores. The wait for the next keys is one.
        if CONFIG.late_keys:
            new_top = _behind_a_branch(new_top)
        decay = gl.exp2((top - new_top) * scale)
        top = new_top
        if CONFIG.early_values:
            if not CONFIG.late_keys:
                mbarrier.wait(k_ready.index(k_slot), k_phase, pred=turn + 1 < key_blocks)
            out = added_values(out, p, p_tail, turn - 1, v_ring, v_slot, blocks, CONFIG)
            out = scaled(out, decay, CONFIG)
        new_p, new_p_tail, sums = softmax(s, s_tail, top, top * scale, scale, CONFIG)
        SUM_ROWS: gl.constexpr = gl.SliceLayout(1, total.type.layout)
        total = total * gl.convert_layout(decay, SUM_ROWS)[:, None] + sums
        if not CONFIG.early_values:
            mbarrier.wait(k_ready.index(k_slot), k_phase, pred=turn + 1 < key_blocks)
            out = added_values(out, p, p_tail, turn - 1, v_ring, v_slot, blocks, CONFIG)
            if not CONFIG.late_decay:
                out = scaled(out, decay, CONFIG)
        v_slot, v_phase = next_slot(v_slot, v_phase, STAGES)
        p, p_tail = weights(new_p, new_p_tail, P, DTYPE)

    if CONFIG.late_decay:
        out = scaled(out, decay, CONFIG)
    at = (k_slot, k_phase, v_slot, v_phase, turn_phase)
    out, divisors = _finish(out, p, p_tail, total, top, v_ring, at, numbers, CONFIG, ZERO_KEYS)
    v_slot, v_phase = next_slot(v_slot, v_phase, STAGES)
    return out, divisors, top, k_slot, k_phase, v_slot, v_phase, turn_phase


@gluon.jit
def _save_sums(top, divisors, batch, head, row, heads, numbers, CONFIG: gl.constexpr):
    """The logarithms of the rows' sums of exponentials, to where they belong."""
    scale, _, queries, _, log_sum_exp_pointer = numbers
    rows = row + gl.arange(0, CONFIG.rows, top.type.layout)
    place = (gl.cast(batch, gl.int64) * queries + rows) * heads + head
    value = (top * scale + gl.log2(divisors)) * 0.6931471805599453
    gl.store(log_sum_exp_pointer + place, value, mask=rows < queries)


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
    k_ring = (k_descs, k_rings, k_ready, k_free)
    v_ring = (v_descs, v_rings, v_ready, v_free)
    rings = (k_ring, v_ring, turns)
    WARPS: gl.constexpr = gl.num_warps()

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
        row = (block * CONFIG.consumers + CONSUMER) * CONFIG.rows
        if not CONFIG.loader:
            place = (batch, head, row)
            load_first(descs, buffers, bars, place, k_slot, v_slot, key_blocks, CONFIG)

        q_place = q_slot * CONFIG.consumers + CONSUMER
        q = q_buffers.index(q_place).reshape([CONFIG.rows, CONFIG.head_dim])
        mbarrier.wait(q_ready.index(q_place), q_phase)
        left = q
        if CONFIG.q_registers:
            left = q.load(left_layout(CONFIG.keys, WARPS))
        at = (k_slot, k_phase, v_slot, v_phase, turn_phase)
        blocks = (batch, head, key_blocks)
        out, divisors, top, k_slot, k_phase, v_slot, v_phase, turn_phase = _attend(
            left, rings, blocks, numbers, at, CONSUMER, CONFIG, ZERO_KEYS
        )
        if LOG_SUM_EXP:
            _save_sums(top, divisors, batch, head, row, heads, numbers, CONFIG)
        # Q was read for the last time: its place in shared memory takes the output.
        OUT_ROWS: gl.constexpr = gl.SliceLayout(1, out.type.layout)
        factors = gl.convert_layout(1.0 / divisors, OUT_ROWS)[:, None]
        q.store((out * factors).to(o_desc.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [batch, head, row, 0], q_buffers.index(q_place))
        tma.store_wait(0)
        if CONFIG.loader:
            mbarrier.arrive(q_free.index(q_place), count=1)
        q_slot, q_phase = next_slot(q_slot, q_phase, CONFIG.q_stages)

    if CONFIG.turns == "named" and CONSUMER == 0:
        meet(True, 8)
