"""Products with epilogues for Hopper, in Gluon: y = epilogue(x Wᵀ), rounded once.

A program walks over tiles of the output. One warp, the loader, brings x and W through TMA into a
ring of shared memory; the other warpgroups, the consumers, multiply on wgmma with the sums in
registers, apply the epilogue to those, and send the result out through TMA while the next tile's
products run. :class:`LinearConfig` says whether consumers share a tile or take tiles in turns.

Axes: M rows (tokens), N outputs, K inputs, F frames, L tokens of a sequence, D features of a head,
R = D / 2 rotation angles.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from cosmos_fast_kernels.attention_hopper_pipeline import make_barriers, make_ring, next_slot
from cosmos_fast_kernels.linear_hopper_checks import (
    check_angles,
    check_gate,
    check_heads,
    check_layout,
    check_product,
)
from cosmos_fast_kernels.linear_hopper_epilogue import Epilogue, frames_of, gated, gelu, pieces_of
from cosmos_fast_kernels.linear_hopper_heads import finish_heads
from cosmos_fast_kernels.linear_hopper_pipeline import (
    CONSUMERS,
    LinearConfig,
    load_tiles,
    pass_turn,
    skip_slots,
    tile_place,
    wait_turn,
)


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
def _consume(
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
    x_ring, w_ring, _ = buffers
    ready, free, _, piece_free, turns = bars
    row_tiles, column_tiles, k_steps = sizes
    ROWS: gl.constexpr = CONFIG.rows
    COLUMNS: gl.constexpr = CONFIG.columns
    STAGES: gl.constexpr = CONFIG.stages
    MEMBERS: gl.constexpr = CONFIG.members
    MEMBER: gl.constexpr = CONSUMER if CONFIG.together else 0
    TURN: gl.constexpr = 0 if CONFIG.together else CONSUMER
    TURNS: gl.constexpr = CONSUMERS // MEMBERS
    SUM: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])

    slot, phase = skip_slots(0, 0, TURN * k_steps, STAGES)
    done = 0
    programs = gl.num_programs(0)
    first = gl.program_id(0) + TURN * programs
    for tile in range(first, row_tiles * column_tiles, TURNS * programs):
        zeros = gl.full([ROWS, COLUMNS], 0.0, gl.float32, SUM)
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
        slot, phase = next_slot(slot, phase, STAGES)
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
            slot, phase = next_slot(slot, phase, STAGES)
            mbarrier.wait(ready.index(slot), phase, pred=step + 1 < k_steps)
        pass_turn(turns, CONSUMER, CONFIG)
        result = warpgroup_mma_wait(0, deps=(total,))
        mbarrier.arrive(free.index(read), count=1)
        slot, phase = skip_slots(slot, phase, (TURNS - 1) * k_steps, STAGES)

        row_tile, column_tile = tile_place(tile, row_tiles, column_tiles, CONFIG.group)
        place = ((row_tile * MEMBERS + MEMBER) * ROWS, column_tile * CONFIG.tile_pieces)
        if EPILOGUE.features > 0:
            finish_heads(result, descs, buffers, place, numbers, heads, CONSUMER, CONFIG, EPILOGUE)
        else:
            _finish(
                result,
                descs,
                buffers,
                bars,
                place,
                done,
                numbers,
                CONSUMER,
                CONFIG,
                EPILOGUE,
            )
        done += 1  # noqa: SIM113  Gluon knows no enumerate
    tma.store_wait(0)


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


_CHANGING: Final = ["rows", "row_tiles", "column_tiles", "column_pieces", "k_steps"]


@gluon.jit(do_not_specialize=[*_CHANGING, "tokens", "q_heads"])
def _linear_kernel(
    x_desc,
    w_desc,
    residual_desc,
    y_desc,
    gate_pointer,
    frame_pointer,
    gate_stride,
    rows,
    row_tiles,
    column_tiles,
    column_pieces,
    k_steps,
    rows_per_frame,
    q_weight_pointer,
    k_weight_pointer,
    cos_pointer,
    sin_pointer,
    eps,
    tokens,
    q_heads,
    CONFIG: gl.constexpr,
    EPILOGUE: gl.constexpr,
):
    descs = (x_desc, w_desc, residual_desc, y_desc)
    sizes = (row_tiles, column_tiles, k_steps)
    numbers = (gate_pointer, frame_pointer, gate_stride, rows, column_pieces, rows_per_frame)
    heads = (q_weight_pointer, k_weight_pointer, cos_pointer, sin_pointer, eps, tokens, q_heads)
    PIECES: gl.constexpr = CONSUMERS * CONFIG.pieces
    buffers = (
        make_ring(x_desc, CONFIG.stages * CONFIG.members),
        make_ring(w_desc, CONFIG.stages),
        make_ring(y_desc, PIECES),
    )
    bars = (
        make_barriers(CONFIG.stages, 1),
        make_barriers(CONFIG.stages, CONFIG.members),
        make_barriers(PIECES, 1),
        make_barriers(PIECES, 1),
        make_barriers(CONSUMERS, 1),
    )
    gl.warp_specialize(
        [
            (_consume, (descs, buffers, bars, sizes, numbers, heads, 0, CONFIG, EPILOGUE)),
            (_consume, (descs, buffers, bars, sizes, numbers, heads, 1, CONFIG, EPILOGUE)),
            (load_tiles, (descs, buffers, bars, sizes, CONFIG, EPILOGUE.kind == "gated")),
        ],
        [4, 1],
        [CONFIG.registers, CONFIG.loader_registers],
    )


WIDE: Final = LinearConfig()
"""128 x 256 by two consumers, output in two pieces each."""
ALL_PIECES: Final = LinearConfig(stages=3, pieces=4)
"""The same with room for the whole output, and so for a residual that is there before it is due."""
TURNS: Final = LinearConfig(rows=128, columns=128, together=False, stages=5)
"""128 x 128 by each of two consumers in turns: epilogues run under products."""
DESIGNS: Final[Mapping[str, LinearConfig]] = {
    "wide": WIDE,
    "wide, all pieces": ALL_PIECES,
    "tall": LinearConfig(rows=128, columns=128, stages=3),
    "turns": TURNS,
}
"""What has been thought of, for the bench to choose from."""
DEFAULT: Final[Mapping[str, LinearConfig]] = {
    "none": TURNS,
    "gelu": WIDE,
    "gated": TURNS,
    "norm": TURNS,
    "rope": TURNS,
}
"""The design of each kind of epilogue, where the caller names none: the fastest on an H200 at
27,216 rows of 2048."""


def linear(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """x Wᵀ on a GPU of compute capability 9.0.

    Args:
        x_MK: bfloat16, the last axis contiguous, rows any multiple of 8 elements apart.
        weight_NK: bfloat16, as ``torch.nn.Linear`` keeps it; N and K multiples of 64.
        out: where to write, bfloat16 of shape (M, N), laid out as x may be. None: a new tensor.
        config: the design; None: :data:`DEFAULT`.

    Raises:
        ValueError: shapes, dtypes, devices, strides or addresses that the kernel cannot take.
    """
    return _launch(x_MK, weight_NK, Epilogue(), out, config)


def linear_gelu(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    *,
    round_first: bool = False,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """``reference.linear_gelu``: GELU in its exact form of x Wᵀ.

    Args:
        round_first: round the product to bfloat16 before GELU, as two kernels would: one rounding
            more than needed, to tell apart what differs from them.
        x_MK, weight_NK, out, config: as in :func:`linear`.

    Raises:
        ValueError: as :func:`linear`.
    """
    return _launch(x_MK, weight_NK, Epilogue("gelu", round_first=round_first), out, config)


def linear_gated_residual(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    residual_MN: torch.Tensor,
    gate_FN: torch.Tensor,
    frame_M: torch.Tensor | None,
    *,
    round_first: bool = False,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """``reference.linear_gated_residual``: residual + gate · (x Wᵀ), by the frame of each row.

    Args:
        residual_MN: bfloat16, laid out as x may be.
        gate_FN: bfloat16, the last axis contiguous.
        frame_M: int32 or int64, contiguous: the frame of each row, 0 to F - 1 (not checked: the
            device would have to wait). None: M / F consecutive rows to a frame.
        out: as in :func:`linear`; ``residual_MN`` itself is allowed.
        x_MK, weight_NK, round_first, config: as in :func:`linear_gelu`.

    Raises:
        ValueError: as :func:`linear`; or rows that frames do not share evenly.
    """
    epilogue = Epilogue("gated", indexed=frame_M is not None, round_first=round_first)
    check_gate(x_MK, weight_NK, residual_MN, gate_FN, frame_M)
    gate = (residual_MN, gate_FN, frame_M)
    return _launch(x_MK, weight_NK, epilogue, out, config, gate)


def linear_head_norm(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    *,
    round_first: bool = False,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """``reference.linear_head_norm``: the norm over each head of x Wᵀ.

    Args:
        norm_D: gains of the norm, bfloat16 or float32, contiguous; D is 64 or 128 and divides N.
        eps: added to the mean square.
        x_MK, weight_NK, round_first, out, config: as in :func:`linear_gelu`; D divides the
            ``columns`` of ``config``.

    Raises:
        ValueError: as :func:`linear`; or heads that the kernel cannot take.
    """
    check_heads(x_MK, weight_NK, {"norm": norm_D}, 1)
    epilogue = Epilogue("norm", round_first=round_first, features=len(norm_D))
    heads = (norm_D, None, None, None, eps, 1, 0)
    return _launch(x_MK, weight_NK, epilogue, out, config, heads=heads)


def linear_qk_norm_rope(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    q_norm_D: torch.Tensor,
    k_norm_D: torch.Tensor,
    cos_LR: torch.Tensor,
    sin_LR: torch.Tensor,
    eps: float,
    *,
    round_first: bool = False,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """``reference.linear_qk_norm_rope``: q, k and v of x Wᵀ, q and k normed and turned.

    Args:
        weight_NK: that of q above that of k above that of v: N is three times heads times D.
        q_norm_D, k_norm_D: as in :func:`linear_head_norm`.
        cos_LR, sin_LR: float32, contiguous; row m has the angles of token m mod L, L divides M.
        x_MK, eps, round_first, out, config: as in :func:`linear_head_norm`.

    Returns:
        (M, N): q of every head, then k, then v.

    Raises:
        ValueError: as :func:`linear_head_norm`; or tables that do not fit.
    """
    check_heads(x_MK, weight_NK, {"q_norm": q_norm_D, "k_norm": k_norm_D}, 3)
    features = len(q_norm_D)
    check_angles(x_MK, {"cos": cos_LR, "sin": sin_LR}, features)
    epilogue = Epilogue("rope", round_first=round_first, features=features)
    q_heads = weight_NK.shape[0] // (3 * features)
    heads = (q_norm_D, k_norm_D, cos_LR, sin_LR, eps, len(cos_LR), q_heads)
    return _launch(x_MK, weight_NK, epilogue, out, config, heads=heads)


def _launch(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    epilogue: Epilogue,
    out: torch.Tensor | None,
    config: LinearConfig | None,
    gate: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] = (None, None, None),
    heads: tuple[torch.Tensor | float | None, ...] = (None, None, None, None, 0.0, 1, 0),
) -> torch.Tensor:
    check_product(x_MK, weight_NK)
    config = DEFAULT[epilogue.kind] if config is None else config
    if epilogue.features and config.columns % epilogue.features:
        raise ValueError(
            f"{config.columns = }: whole heads of {epilogue.features} features are needed"
        )
    (rows, inputs), outputs = x_MK.shape, weight_NK.shape[0]
    out = x_MK.new_empty((rows, outputs)) if out is None else out
    residual_MN, gate_FN, frame_M = gate
    residual_MN = out if residual_MN is None else residual_MN
    for name, one in {"residual": residual_MN, "out": out}.items():
        if one.shape != (rows, outputs):
            raise ValueError(f"{name} of shape {tuple(one.shape)}: ({rows}, {outputs}) is needed")
    named = {"x": x_MK, "weight": weight_NK, "residual": residual_MN, "out": out}
    for name, one in named.items():
        check_layout(name, one, x_MK.device)
    if rows == 0:
        return out

    row_tiles = triton.cdiv(rows, config.tile_rows)
    column_tiles = triton.cdiv(outputs, config.columns)
    processors = torch.cuda.get_device_properties(x_MK.device).multi_processor_count
    with torch.cuda.device(x_MK.device):
        _linear_kernel[(min(row_tiles * column_tiles, processors),)](
            _descriptor(x_MK, config.rows),
            _descriptor(weight_NK, config.columns),
            _descriptor(residual_MN, config.rows),
            _descriptor(out, config.rows),
            gate_FN,
            frame_M,
            0 if gate_FN is None else gate_FN.stride(0),
            rows,
            row_tiles,
            column_tiles,
            outputs // 64,
            inputs // 64,
            1 if gate_FN is None else rows // gate_FN.shape[0],
            *heads,
            CONFIG=config,
            EPILOGUE=epilogue,
            num_warps=4,
        )
    return out


def _descriptor(tensor: torch.Tensor, rows: int) -> TensorDescriptor:
    """What TMA needs to move 64 columns of ``rows`` rows; beyond the end it reads zeros."""
    block = [rows, 64]
    # The stride of an axis of length 1 is arbitrary, and may be one that TMA refuses.
    stride = tensor.stride(0) if tensor.shape[0] > 1 else tensor.shape[1]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    return TensorDescriptor(tensor, list(tensor.shape), [stride, 1], block, layout)
