"""What a consumer of a Hopper product does: the steps of its sums on wgmma, and the epilogue.

Axes: M rows (tokens), N outputs, K inputs, F frames.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from cosmos_fast_kernels import hopper_tma as tma
from cosmos_fast_kernels.attention_hopper_pipeline import next_slot
from cosmos_fast_kernels.linear_hopper_epilogue import frames_of, gated, gelu, pieces_of
from cosmos_fast_kernels.linear_hopper_heads import finish_heads
from cosmos_fast_kernels.linear_hopper_pipeline import (
    CONSUMERS,
    pass_turn,
    skip_slots,
    tile_place,
    wait_turn,
)


@gluon.jit
def consume(
    descs,
    buffers,
    bars,
    sizes,
    numbers,
    heads,
    CONSUMER: gl.constexpr,
    CONFIG: gl.constexpr,
    EPILOGUE: gl.constexpr,
):
    """One consumer: its part of each tile, or each of its tiles."""
    row_tiles, column_tiles, k_steps = sizes
    STAGES: gl.constexpr = CONFIG.stages
    MEMBER: gl.constexpr = CONSUMER if CONFIG.together else 0
    TURN: gl.constexpr = 0 if CONFIG.together else CONSUMER
    TURNS: gl.constexpr = CONSUMERS // CONFIG.members

    slot, phase = skip_slots(0, 0, TURN * k_steps, STAGES)
    done = 0
    programs = gl.num_programs(0)
    first = gl.program_id(0) + TURN * programs
    for tile in range(first, row_tiles * column_tiles, TURNS * programs):
        result, slot, phase = _product(
            buffers, bars, k_steps, slot, phase, done, CONSUMER, CONFIG, EPILOGUE
        )
        slot, phase = skip_slots(slot, phase, (TURNS - 1) * k_steps, STAGES)

        row_tile, column_tile = tile_place(tile, row_tiles, column_tiles, CONFIG.group)
        row = (row_tile * CONFIG.members + MEMBER) * CONFIG.rows
        place = (row, column_tile * CONFIG.tile_pieces)
        if EPILOGUE.features > 0:
            finish_heads(result, descs, buffers, place, numbers, heads, CONSUMER, CONFIG, EPILOGUE)
        else:
            _finish(result, descs, buffers, bars, place, done, numbers, CONSUMER, CONFIG, EPILOGUE)
        done += 1  # noqa: SIM113  Gluon knows no enumerate
    tma.store_wait(0)


@gluon.jit
def _product(
    buffers,
    bars,
    k_steps,
    slot,
    phase,
    done,
    CONSUMER: gl.constexpr,
    CONFIG: gl.constexpr,
    EPILOGUE: gl.constexpr,
):
    """(the sums of a consumer's part of a tile, the slot and the phase behind them)."""
    x_ring, w_ring, _ = buffers
    ready, free, _, piece_free, turns = bars
    COLUMNS: gl.constexpr = CONFIG.columns
    MEMBERS: gl.constexpr = CONFIG.members
    MEMBER: gl.constexpr = CONSUMER if CONFIG.together else 0
    SUM: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])

    zeros = gl.full([CONFIG.rows, COLUMNS], 0.0, gl.float32, SUM)
    wait_turn(turns, done, CONSUMER, CONFIG)
    mbarrier.wait(ready.index(slot), phase)
    total = warpgroup_mma(
        x_ring.index(slot * MEMBERS + MEMBER),
        w_ring.index(slot).permute((1, 0)),
        zeros,
        use_acc=False,
        is_async=True,
    )
    read = slot
    slot, phase = next_slot(slot, phase, CONFIG.stages)
    mbarrier.wait(ready.index(slot), phase, pred=k_steps > 1)
    # Under the first products, so that the last tile's output had time to leave; and behind
    # the loop of a wait, as the assembler moves this one up to where it finds a branch.
    _reclaim(piece_free, CONSUMER, done > 0, CONFIG, EPILOGUE.kind == "gated")
    for step in range(1, k_steps):
        total = warpgroup_mma(
            x_ring.index(slot * MEMBERS + MEMBER),
            w_ring.index(slot).permute((1, 0)),
            total,
            is_async=True,
        )
        # The tensor cores have the step just issued to do while the one before is handed back.
        total = warpgroup_mma_init(warpgroup_mma_wait(1, deps=(total,)))
        mbarrier.arrive(free.index(read), count=1)
        read = slot
        slot, phase = next_slot(slot, phase, CONFIG.stages)
        mbarrier.wait(ready.index(slot), phase, pred=step + 1 < k_steps)
    pass_turn(turns, CONSUMER, CONFIG)
    result = warpgroup_mma_wait(0, deps=(total,))
    mbarrier.arrive(free.index(read), count=1)
    return result, slot, phase


@gluon.jit
def _reclaim(
    piece_free, CONSUMER: gl.constexpr, again, CONFIG: gl.constexpr, RESIDUAL: gl.constexpr
):
    """Every piece has left shared memory: the loader may fill those that it was not yet given."""
    tma.store_wait(0)
    if RESIDUAL:
        ROOM: gl.constexpr = CONFIG.pieces
        KEPT: gl.constexpr = ROOM if CONFIG.tile_pieces == ROOM else 1
        for piece in gl.static_range(KEPT):
            place = CONSUMER * ROOM + ROOM - KEPT + piece
            mbarrier.arrive(piece_free.index(place), count=1, pred=again)


@gluon.jit
def _finish(
    result,
    descs,
    buffers,
    bars,
    place,
    done,
    numbers,
    CONSUMER: gl.constexpr,
    CONFIG: gl.constexpr,
    EPILOGUE: gl.constexpr,
):
    """The epilogue of a consumer's part of a tile, piece by piece, and on its way to memory."""
    _, _, _, y_desc = descs
    _, _, buffer = buffers
    _, _, piece_ready, piece_free, _ = bars
    row, column_piece = place
    gate_pointer, frame_pointer, gate_stride, rows, column_pieces, rows_per_frame = numbers
    DTYPE: gl.constexpr = y_desc.dtype
    PIECES: gl.constexpr = CONFIG.tile_pieces
    ROOM: gl.constexpr = CONFIG.pieces
    PIECE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])

    if EPILOGUE.kind == "gated":
        frame = frames_of(
            frame_pointer,
            row,
            rows,
            rows_per_frame,
            CONFIG.rows,
            EPILOGUE.indexed,
            gl.SliceLayout(1, PIECE),
        )
        gate_row = gate_pointer + frame * gate_stride
        feature = gl.arange(0, 64, gl.SliceLayout(0, PIECE))
    values = pieces_of(result, PIECE)
    for piece in gl.static_range(PIECES):
        place_of_piece = CONSUMER * ROOM + piece % ROOM
        shared = buffer.index(place_of_piece)
        value = values[piece]
        if EPILOGUE.round_first:
            value = value.to(DTYPE).to(gl.float32)
        if EPILOGUE.kind == "gelu":
            value = gelu(value)
        if EPILOGUE.kind == "gated":
            # Beyond the last column any gate will do: what it makes is not stored.
            start = gl.minimum(column_piece + piece, column_pieces - 1) * 64
            gate = gl.load(gate_row[:, None] + (start + feature)[None, :])
            turn = done * (PIECES // ROOM) + piece // ROOM
            mbarrier.wait(piece_ready.index(place_of_piece), turn & 1)
            value = gated(value, shared.load(PIECE), gate)
        elif piece >= ROOM:
            tma.store_wait(ROOM - 1)
        shared.store(value.to(DTYPE))
        fence_async_shared()
        tma.async_copy_shared_to_global(y_desc, [row, (column_piece + piece) * 64], shared)
        if EPILOGUE.kind == "gated" and ROOM < PIECES and piece > 0:
            tma.store_wait(1)
            mbarrier.arrive(piece_free.index(CONSUMER * ROOM + (piece - 1) % ROOM), count=1)
