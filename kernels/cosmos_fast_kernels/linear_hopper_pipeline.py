"""How the products move data: the ring that feeds them, its loader, tiles and turns.

A slot of the ring holds 64 columns of x and of W for one tile. "ready" completes when TMA has
delivered both, "free" when every consumer that reads the slot has. Beside it each consumer has a
few pieces of the output, 64 columns wide, on their way out; where the epilogue adds a residual, the
loader brings that into the piece first, and the same two kinds of barriers stand between them.

Axes: M rows (tokens), N columns (outputs), K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.language.core import constexpr_type

from cosmos_fast_kernels import hopper_tma as tma
from cosmos_fast_kernels.attention_hopper_pipeline import next_slot

CONSUMERS: Final = gl.constexpr(2)
"""Warpgroups that compute. Three would leave 128 registers at entry, and wgmma of 64 x 256 does not
assemble with fewer than 154, whatever the warpgroups ask for later."""

SHARED_MEMORY: Final = 227 * 1024
"""Bytes that one program may use on compute capability 9.0."""


@dataclass(frozen=True)
class LinearConfig:
    """A design of the kernel."""

    rows: int = 64
    """Rows of the tile that each consumer computes: 64 or 128."""
    columns: int = 256
    """Columns of a tile: 64, 128 or 256."""
    together: bool = True
    """Consumers share a tile, their rows one below the other. False: each has tiles of its own,
    in turns, so that the epilogue of one runs under the products of the other."""
    stages: int = 4
    """Slots of the ring."""
    pieces: int = 2
    """Pieces of the output that each consumer has room for: a divisor of ``columns`` / 64."""
    group: int = 16
    """Row tiles that a band of tiles is high: what is computed at one time shares x and W in L2."""
    registers: int = 240
    """Of a thread of a consumer."""
    loader_registers: int = 24
    """Of a thread of the loader."""

    def __post_init__(self) -> None:
        if self.rows not in (64, 128) or self.columns not in (64, 128, 256):
            raise ValueError(
                f"{self.rows = } and {self.columns = }: 64 or 128, and 64, 128 or 256, are needed"
            )
        if self.pieces < 1 or (self.columns // 64) % self.pieces:
            raise ValueError(f"{self.pieces = }: a divisor of {self.columns // 64} is needed")
        if self.pieces == 1 < self.tile_pieces:
            raise ValueError(f"{self.pieces = }: one arrives while another leaves: 2 are needed")
        if self.stages < 2 or self.group < 1:
            raise ValueError(f"{self.stages = } and {self.group = }: at least 2 and 1 are needed")
        if self.shared_bytes > SHARED_MEMORY:
            raise ValueError(
                f"{self.stages} stages and {self.pieces} pieces take {self.shared_bytes} bytes of "
                f"shared memory, and there are {SHARED_MEMORY}: fewer of either are needed"
            )

    @property
    def members(self) -> int:
        """Consumers that read one slot."""
        return int(CONSUMERS.value) if self.together else 1

    @property
    def tile_rows(self) -> int:
        return self.rows * self.members

    @property
    def tile_pieces(self) -> int:
        """Pieces of output that a consumer makes of a tile."""
        return self.columns // 64

    @property
    def shared_bytes(self) -> int:
        """Of shared memory, barriers included."""
        slot = (self.tile_rows + self.columns) * 64 * 2
        pieces = int(CONSUMERS.value) * self.pieces
        # Each ring and each barrier starts at a multiple of what it needs: 1 KiB covers them all.
        return self.stages * slot + pieces * self.rows * 64 * 2 + 1024

    @property
    def type(self) -> constexpr_type:
        """What Gluon asks of a compile-time value that travels in a tuple."""
        return constexpr_type(self)


@gluon.jit
def tile_place(tile, row_tiles, column_tiles, GROUP: gl.constexpr):
    """(row tile, column tile): bands of ``GROUP`` row tiles, each walked column by column."""
    band = tile // (GROUP * column_tiles)
    within = tile - band * GROUP * column_tiles
    height = gl.minimum(row_tiles - band * GROUP, GROUP)
    return band * GROUP + within % height, within // height


@gluon.jit
def skip_slots(slot, phase, count, STAGES: gl.constexpr):
    """The place in a ring ``count`` slots on."""
    ahead = slot + count
    return ahead % STAGES, phase ^ ((ahead // STAGES) & 1)


@gluon.jit
def wait_turn(turns, done, CONSUMER: gl.constexpr, CONFIG: gl.constexpr):
    """Until the other consumer has seen all of its tile arrive.

    Before that, a slot may be due to be filled for the other one and then for this one, and which
    of the two a completed phase was cannot be told by its parity.
    """
    if not CONFIG.together:
        # Whoever goes first finds the phase before the first one complete.
        mbarrier.wait(turns.index(CONSUMER), (done & 1) ^ (1 if CONSUMER == 0 else 0))


@gluon.jit
def pass_turn(turns, CONSUMER: gl.constexpr, CONFIG: gl.constexpr):
    if not CONFIG.together:
        mbarrier.arrive(turns.index((CONSUMER + 1) % CONSUMERS), count=1)


@gluon.jit
def load_tiles(descs, buffers, bars, sizes, CONFIG: gl.constexpr, RESIDUAL: gl.constexpr):
    """The loader: everything the consumers read, in the order in which they read it."""
    x_desc, w_desc, residual_desc, _ = descs
    x_ring, w_ring, pieces = buffers
    ready, free, piece_ready, piece_free, _ = bars
    row_tiles, column_tiles, k_steps = sizes
    ROWS: gl.constexpr = CONFIG.rows
    COLUMNS: gl.constexpr = CONFIG.columns
    MEMBERS: gl.constexpr = CONFIG.members
    STAGES: gl.constexpr = CONFIG.stages
    BYTES: gl.constexpr = (ROWS * MEMBERS + COLUMNS) * 128

    slot = 0
    phase = 1
    done = 0
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        row_tile, column_tile = tile_place(tile, row_tiles, column_tiles, CONFIG.group)
        row = row_tile * ROWS * MEMBERS
        column = column_tile * COLUMNS
        for step in range(k_steps):
            mbarrier.wait(free.index(slot), phase)
            bar = ready.index(slot)
            mbarrier.expect(bar, BYTES)
            for member in gl.static_range(MEMBERS):
                tma.async_copy_global_to_shared(
                    x_desc,
                    [row + member * ROWS, step * 64],
                    bar,
                    x_ring.index(slot * MEMBERS + member),
                )
            tma.async_copy_global_to_shared(w_desc, [column, step * 64], bar, w_ring.index(slot))
            slot, phase = next_slot(slot, phase, STAGES)
        # Last, as a consumer hands back the pieces of its last tile under its first products of
        # this one; the ring still holds as much of the tile as it can.
        if RESIDUAL:
            if CONFIG.together:
                for consumer in gl.static_range(CONSUMERS):
                    place = (row + consumer * ROWS, column)
                    load_residual(
                        residual_desc,
                        pieces,
                        piece_ready,
                        piece_free,
                        place,
                        done,
                        consumer,
                        CONFIG,
                    )
            else:
                place = (row, column)
                load_residual(
                    residual_desc,
                    pieces,
                    piece_ready,
                    piece_free,
                    place,
                    done // CONSUMERS,
                    done % CONSUMERS,
                    CONFIG,
                )
        done += 1  # noqa: SIM113  Gluon knows no enumerate


@gluon.jit
def load_residual(
    desc, pieces, piece_ready, piece_free, place, tiles_before, consumer, CONFIG: gl.constexpr
):
    """The residual of a consumer's part of a tile, into the pieces that its output will take."""
    row, column = place
    PIECES: gl.constexpr = CONFIG.tile_pieces
    ROOM: gl.constexpr = CONFIG.pieces
    for piece in gl.static_range(PIECES):
        buffer = consumer * ROOM + piece % ROOM
        turn = tiles_before * (PIECES // ROOM) + piece // ROOM
        bar = piece_ready.index(buffer)
        mbarrier.wait(piece_free.index(buffer), (turn & 1) ^ 1)
        mbarrier.expect(bar, CONFIG.rows * 128)
        tma.async_copy_global_to_shared(desc, [row, column + piece * 64], bar, pieces.index(buffer))
