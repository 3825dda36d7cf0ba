"""Dense attention for Hopper, in Gluon: TMA, wgmma, warp specialisation.

One skeleton; :class:`HopperConfig` picks the design. A program walks over tiles, each a block of
queries of one head. In the specialised designs one warp, the loader, brings K and V through TMA
into two rings of shared memory, and each of the other warpgroups, the consumers, owns some rows of
the tile: S = Q K^T and O += P V on wgmma, between them the softmax in base 2 with P in registers.
Consumers may take turns: while one issues its two products, the other computes its softmax. The
ragged block of keys goes first, so that the loop over the others needs no mask.

What a quantised or a sparse form has to change stands in one function each: :func:`_scores` and
:func:`_add_values` (arithmetic of the two products), ``key_block`` (which keys come next).

Axes: B batch, S positions, H heads, D features of a head.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from cosmos_fast_kernels.attention import LOG2_E, check
from cosmos_fast_kernels.attention_hopper_decay import next_maximum, scaled
from cosmos_fast_kernels.attention_hopper_pipeline import (
    HopperConfig,
    announce_free,
    load_first,
    load_tiles,
    make_barriers,
    make_ring,
    meet,
    next_slot,
    open_slots,
    pass_turn,
    release_slot,
    tile_place,
    wait_turn,
)


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
def _row_maximum(s, s_tail, CONFIG: gl.constexpr):
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
def _softmax(s, s_tail, top, shift, scale, CONFIG: gl.constexpr):
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
def _weights(p, p_tail, LAYOUT: gl.constexpr, DTYPE: gl.constexpr):
    """P as the left operand of the second product: the same registers, rounded."""
    return gl.convert_layout(p.to(DTYPE), LAYOUT), gl.convert_layout(p_tail.to(DTYPE), LAYOUT)


@gluon.jit
def _masked(s, first, keys, KEYS: gl.constexpr):
    """Scores whose key ``first`` + column is past ``keys`` become -inf."""
    columns = first + gl.arange(0, KEYS, gl.SliceLayout(0, s.type.layout))
    return gl.where((columns < keys)[None, :], s, float("-inf"))


@gluon.jit
def _ragged(s, s_tail, first, keys, CONFIG: gl.constexpr):
    """The scores of the last block, which may go beyond the end."""
    KEYS: gl.constexpr = CONFIG.keys
    TAIL: gl.constexpr = CONFIG.tail
    s = _masked(s, first, keys, KEYS)
    return s, (_masked(s_tail, first + KEYS, keys, TAIL) if TAIL > 0 else s)


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
def _consume(
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
        s, s_tail = _ragged(s, s_tail, first, keys, CONFIG)
        top = _row_maximum(s, s_tail, CONFIG)
        if ZERO_KEYS:
            top = gl.maximum(top, 0.0)
        p, p_tail, total = _softmax(s, s_tail, top, top * scale, scale, CONFIG)
        p, p_tail = _weights(p, p_tail, P, DTYPE)
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

            new_top = next_maximum(top, _row_maximum(s, s_tail, CONFIG), scale, CONFIG)
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
            new_p, new_p_tail, sums = _softmax(s, s_tail, top, top * scale, scale, CONFIG)
            SUM_ROWS: gl.constexpr = gl.SliceLayout(1, total.type.layout)
            total = total * gl.convert_layout(decay, SUM_ROWS)[:, None] + sums
            if not CONFIG.early_values:
                mbarrier.wait(k_ready.index(k_slot), k_phase, pred=turn + 1 < key_blocks)
                out = _added_values(out, p, p_tail, turn - 1, free_v, CONFIG)
                if not CONFIG.late_decay:
                    out = scaled(out, decay, CONFIG)
            v_slot, v_phase = next_slot(v_slot, v_phase, STAGES)
            p, p_tail = _weights(new_p, new_p_tail, P, DTYPE)

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


@gluon.jit(do_not_specialize=["zero_keys", "batches", "queries", "keys", "heads"])
def _attention_kernel(
    q_desc,
    k_desc,
    v_desc,
    k_tail_desc,
    v_tail_desc,
    o_desc,
    log_sum_exp_pointer,
    scale,
    zero_keys,
    batches,
    queries,
    keys,
    heads,
    CONFIG: gl.constexpr,
    ZERO_KEYS: gl.constexpr,
    LOG_SUM_EXP: gl.constexpr,
):
    BLOCK: gl.constexpr = CONFIG.keys + CONFIG.tail
    query_blocks = gl.cdiv(queries, CONFIG.rows * CONFIG.consumers)
    sizes = (query_blocks, heads, query_blocks * heads * batches, gl.cdiv(keys, BLOCK))
    numbers = (scale, zero_keys, queries, keys, log_sum_exp_pointer)
    descs = (q_desc, (k_desc, k_tail_desc), (v_desc, v_tail_desc), o_desc)

    q_buffers = make_ring(q_desc, CONFIG.q_stages * CONFIG.consumers)
    k_ring = make_ring(k_desc, CONFIG.stages)
    v_ring = make_ring(v_desc, CONFIG.stages)
    k_tail_ring = k_ring
    v_tail_ring = v_ring
    if CONFIG.tail > 0:
        k_tail_ring = make_ring(k_tail_desc, CONFIG.stages)
        v_tail_ring = make_ring(v_tail_desc, CONFIG.stages)
    buffers = (q_buffers, (k_ring, k_tail_ring), (v_ring, v_tail_ring))
    bars = (
        make_barriers(CONFIG.q_stages * CONFIG.consumers, 1),
        make_barriers(CONFIG.q_stages * CONFIG.consumers, 1),
        make_barriers(CONFIG.stages, 1),
        make_barriers(CONFIG.stages, CONFIG.consumers),
        make_barriers(CONFIG.stages, 1),
        make_barriers(CONFIG.stages, CONFIG.consumers),
        make_barriers(CONFIG.consumers, 1),
    )
    if CONFIG.consumers == 1:
        _consume(descs, buffers, bars, sizes, numbers, 0, CONFIG, ZERO_KEYS, LOG_SUM_EXP)
    elif CONFIG.consumers == 2:
        gl.warp_specialize(
            [
                (
                    _consume,
                    (descs, buffers, bars, sizes, numbers, 0, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (
                    _consume,
                    (descs, buffers, bars, sizes, numbers, 1, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (load_tiles, (descs, buffers, bars, sizes, CONFIG)),
            ],
            [4, 1],
            [CONFIG.registers, CONFIG.loader_registers],
        )
    else:
        gl.warp_specialize(
            [
                (
                    _consume,
                    (descs, buffers, bars, sizes, numbers, 0, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (
                    _consume,
                    (descs, buffers, bars, sizes, numbers, 1, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (
                    _consume,
                    (descs, buffers, bars, sizes, numbers, 2, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (load_tiles, (descs, buffers, bars, sizes, CONFIG)),
            ],
            [4, 4, 1],
            [CONFIG.registers, CONFIG.registers, CONFIG.loader_registers],
        )


SHORT: Final = 1024
"""Keys up to which filling the tensor cores at a tile's ends counts for more than its middle."""


def shipped(head_dim: int, keys: int) -> HopperConfig:
    """The design that ships: on an H200 at 27,216 keys 662 TFLOP/s, where two tiles of queries and
    nothing else make 624; at 512 keys the other way round, 516 and 537."""
    if keys <= SHORT:
        return HopperConfig(head_dim=head_dim)
    return HopperConfig(
        head_dim=head_dim,
        turns="named",
        free="named",
        early_values=True,
        q_registers=True,
        skip_decay=True,
    )


def obstacle(*tensors_BSHD: torch.Tensor) -> str | None:
    """Why TMA cannot read these tensors where they lie; None if it can."""
    for tensor in tensors_BSHD:
        if tensor.data_ptr() % 16:
            return f"data at {tensor.data_ptr():#x}: an address that 16 divides is needed"
        for size, stride in zip(tensor.shape[:3], tensor.stride()[:3], strict=True):
            if size > 1 and (stride <= 0 or stride * tensor.element_size() % 16):
                return f"strides {tensor.stride()}: steps of whole 16 bytes are needed"
    return None


def hopper_attention(
    q_BSHD: torch.Tensor,
    k_BSHD: torch.Tensor,
    v_BSHD: torch.Tensor,
    *,
    scale: float,
    zero_keys: int = 0,
    log_sum_exp: bool = False,
    out: torch.Tensor | None = None,
    config: HopperConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """softmax(q k^T scale) v on a GPU of compute capability 9.0.

    Arguments and results are those of :func:`cosmos_fast_kernels.attention.attention`.

    Args:
        config: the design; None: the one that ships for this size of head and number of keys.

    Raises:
        ValueError: what the portable kernel refuses, or what :func:`obstacle` names.
    """
    if out is None:
        out = torch.empty_like(q_BSHD, memory_format=torch.contiguous_format)
    check(q_BSHD, k_BSHD, v_BSHD, out, scale, zero_keys)
    batches, queries, heads, head_dim = q_BSHD.shape
    keys = k_BSHD.shape[1]
    config = shipped(head_dim, keys) if config is None else config
    if config.head_dim != head_dim:
        raise ValueError(f"a design for heads of {config.head_dim} features, but {head_dim = }")
    if reason := obstacle(q_BSHD, k_BSHD, v_BSHD, out):
        raise ValueError(reason)
    sums_BSH = None
    if log_sum_exp:
        sums_BSH = q_BSHD.new_empty((batches, queries, heads), dtype=torch.float32)
    if q_BSHD.numel() == 0:
        return out, sums_BSH
    if keys == 0:
        return out.zero_(), None if sums_BSH is None else sums_BSH.fill_(math.log(zero_keys))

    tiles = triton.cdiv(queries, config.rows * config.consumers) * heads * batches
    processors = torch.cuda.get_device_properties(q_BSHD.device).multi_processor_count
    tail = config.tail or config.keys
    with torch.cuda.device(q_BSHD.device):
        _attention_kernel[(min(tiles, processors),)](
            _descriptor(q_BSHD, config.rows),
            _descriptor(k_BSHD, config.keys),
            _descriptor(v_BSHD, config.keys),
            _descriptor(k_BSHD, tail),
            _descriptor(v_BSHD, tail),
            _descriptor(out, config.rows),
            sums_BSH,
            scale * LOG2_E,
            zero_keys,
            batches,
            queries,
            keys,
            heads,
            CONFIG=config,
            ZERO_KEYS=zero_keys > 0,
            LOG_SUM_EXP=log_sum_exp,
            num_warps=config.num_warps,
        )
    return out, sums_BSH


def _descriptor(tensor_BSHD: torch.Tensor, rows: int) -> TensorDescriptor:
    """What TMA needs to move ``rows`` positions of one head; beyond the end it reads zeros."""
    tensor_BHSD = tensor_BSHD.transpose(1, 2)
    block = [1, 1, rows, tensor_BHSD.shape[3]]
    # The stride of an axis of length 1 is arbitrary, and may be one that TMA refuses.
    strides = [
        stride if size > 1 else tensor_BHSD.shape[3]
        for size, stride in zip(tensor_BHSD.shape, tensor_BHSD.stride(), strict=True)
    ]
    strides[3] = 1
    dtype = gl.bfloat16 if tensor_BSHD.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for(block, dtype)
    return TensorDescriptor(tensor_BHSD, list(tensor_BHSD.shape), strides, block, layout)
