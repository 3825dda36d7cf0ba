"""How the Hopper kernel moves data: rings of shared memory, the loader that fills them, turns.

A ring is some slots with two barriers each: "ready" completes when TMA has delivered a block into
the slot, "free" when every consumer has read it. Who walks along a ring keeps the slot and the
parity of the phase to wait for; the loader starts with parity 1, which is complete from the start.

Axes: B batch, S positions, H heads, D features of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.language.core import constexpr_type

from cosmos_fast_kernels import hopper_tma as tma

FREE: Final = gl.constexpr(10)
"""The first of the hardware's named barriers that free slots: those of K, then those of V."""


@dataclass(frozen=True)
class HopperConfig:
    """A design of the kernel. Its defaults are the one that ships."""

    head_dim: int = 128
    """Features of a head: 64 or 128."""
    rows: int = 64
    """Queries of each consumer."""
    consumers: int = 2
    """Warpgroups that compute."""
    keys: int = 128
    """Keys in a block, a power of two."""
    tail: int = 0
    """Keys in a block beyond ``keys``: 192 is 128 + 64, shapes being powers of two."""
    stages: int = 2
    """Blocks of keys, and of values, in flight."""
    q_stages: int = 2
    """Tiles whose queries are in flight: with two, the next Q arrives, and this tile's output
    leaves, under the products."""
    loader: bool = True
    """A warp of its own starts the copies; without one, the only consumer has two warpgroups."""
    overlap: bool = True
    """Compute the softmax of a block while the values of the one before are being added."""
    late_decay: bool = False
    """Scale the output to the new maximum under the next scores, and not before them."""
    early_values: bool = False
    """Wait for the values of the block before ahead of the exponentials, and not behind them:
    scaling and rounding hide among them, fewer registers are live; the other consumer's products
    have to fill the tensor cores meanwhile, so that turns are needed."""
    late_keys: bool = False
    """With ``early_values``: wait for keys when their scores are due, and not a softmax earlier."""
    turns: str = "mbarrier"
    """How consumers take turns: "none", "mbarrier", or "named" (hardware barriers; two only)."""
    free: str = "mbarrier"
    """How consumers hand slots back: "mbarrier", each announcement behind a barrier of its
    warpgroup; "named": every warp announces for itself, at a hardware barrier."""
    q_registers: bool = False
    """Hold Q in registers, and not in shared memory, as the left operand of the scores."""
    skip_decay: bool = False
    """Branch around the scaling of the output where no maximum of the warp's rows grew."""
    slack: float = 0.0
    """Powers of two by which a maximum may lag behind; 0: it is always the true one."""
    registers: int = 240
    """Of a thread of a consumer."""
    loader_registers: int = 24
    """Of a thread of the loader."""

    def __post_init__(self) -> None:
        if not self.loader and self.q_stages != 1:
            raise ValueError(f"{self.q_stages = }: without a loader one tile is in flight")
        if self.free == "named" and not (self.loader and 2 * self.stages <= 16 - FREE.value):
            raise ValueError(f"{self.stages = }: hardware barriers free the slots of at most 3")
        if self.early_values and not (self.overlap and not self.late_decay):
            raise ValueError(f"{self.early_values = }: only with overlap, and without late_decay")
        if self.late_keys and not self.early_values:
            raise ValueError(f"{self.late_keys = }: only with early_values")
        if self.skip_decay and self.rows != 64:
            raise ValueError(f"{self.rows = }: a warp skips the scaling of 16 rows")

    @property
    def type(self) -> constexpr_type:
        """What Gluon asks of a compile-time value that travels in a tuple."""
        return constexpr_type(self)

    @property
    def num_warps(self) -> int:
        """Warps of the kernel as Gluon counts them: those of the first consumer."""
        return 4 if self.loader else 8


@gluon.jit
def next_slot(slot, phase, STAGES: gl.constexpr):
    """The next slot of a ring and the parity of its turn."""
    wraps = slot + 1 == STAGES
    return gl.where(wraps, 0, slot + 1), gl.where(wraps, phase ^ 1, phase)


@gluon.jit
def tile_place(tile, query_blocks, heads):
    """(block of queries, head, batch): neighbours share K and V, which stay in the L2 cache."""
    rest = tile // query_blocks
    return tile % query_blocks, rest % heads, rest // heads


@gluon.jit
def key_block(turn, key_blocks):
    """Which block of keys comes at this turn: the last, ragged one, then the others in order."""
    return gl.where(turn == 0, key_blocks, turn) - 1


@gluon.jit
def meet(WAIT: gl.constexpr, NAME: gl.constexpr):
    """One of the hardware's named barriers, of 256 threads: wait at it, or only announce."""
    VERB: gl.constexpr = "sync" if WAIT else "arrive"
    token = gl.full([128], 0, gl.int32, gl.BlockedLayout([1], [32], [4], [0]))
    gl.inline_asm_elementwise(
        f"bar.{VERB} {NAME}, 256;\nmov.b32 $0, $1;", "=r,r", [token], gl.int32, False, 1
    )


@gluon.jit
def meet_loader(WAIT: gl.constexpr, name, CONFIG: gl.constexpr):
    """A named barrier of the loader's warp and all consumers: wait at it, or only announce.

    Nobody announces twice between two meetings: a slot is free once for each time it was filled.
    """
    VERB: gl.constexpr = "sync" if WAIT else "arrive"
    WARPS: gl.constexpr = gl.num_warps()
    THREADS: gl.constexpr = 128 * CONFIG.consumers + 32
    token = gl.full([32 * WARPS], name, gl.int32, gl.BlockedLayout([1], [32], [WARPS], [0]))
    gl.inline_asm_elementwise(
        f"bar.{VERB} $1, {THREADS};\nmov.b32 $0, $1;", "=r,r", [token], gl.int32, False, 1
    )


@gluon.jit
def open_slots(WAIT: gl.constexpr, CONFIG: gl.constexpr):
    """At hardware barriers every slot is handed over once before its first use, by the consumers,
    and the loader takes it back once after its last."""
    if CONFIG.free == "named":
        for slot in gl.static_range(2 * CONFIG.stages):
            meet_loader(WAIT, FREE + slot, CONFIG)


@gluon.jit
def wait_free(bars, slot, phase, OF_VALUES: gl.constexpr, CONFIG: gl.constexpr):
    """The loader: until every consumer has read the slot."""
    if CONFIG.free == "named":
        meet_loader(True, FREE + CONFIG.stages * OF_VALUES + slot, CONFIG)
    else:
        mbarrier.wait(bars.index(slot), phase)


@gluon.jit
def announce_free(bars, slot, OF_VALUES: gl.constexpr, CONFIG: gl.constexpr):
    """A consumer: its products have read the slot."""
    if CONFIG.free == "named":
        meet_loader(False, FREE + CONFIG.stages * OF_VALUES + slot, CONFIG)
    else:
        mbarrier.arrive(bars.index(slot), count=1)


@gluon.jit
def wait_turn(turns, phase, CONSUMER: gl.constexpr, CONFIG: gl.constexpr):
    if CONFIG.turns == "mbarrier":
        # Whoever goes first finds the phase before the first one complete.
        mbarrier.wait(turns.index(CONSUMER), phase ^ (1 if CONSUMER == 0 else 0))
    if CONFIG.turns == "named":
        meet(True, 8 + CONSUMER)


@gluon.jit
def pass_turn(turns, CONSUMER: gl.constexpr, CONFIG: gl.constexpr):
    NEXT: gl.constexpr = (CONSUMER + 1) % CONFIG.consumers
    if CONFIG.turns == "mbarrier":
        mbarrier.arrive(turns.index(NEXT), count=1)
    if CONFIG.turns == "named":
        meet(False, 8 + NEXT)


@gluon.jit
def start_load(descs, rings, bar, slot, batch, head, row, CONFIG: gl.constexpr):
    """Start the TMA copy of one block of keys (or of values) into a slot of its ring."""
    BYTES: gl.constexpr = (CONFIG.keys + CONFIG.tail) * CONFIG.head_dim * 2
    mbarrier.expect(bar, BYTES)
    tma.async_copy_global_to_shared(descs[0], [batch, head, row, 0], bar, rings[0].index(slot))
    if CONFIG.tail > 0:
        tma.async_copy_global_to_shared(
            descs[1], [batch, head, row + CONFIG.keys, 0], bar, rings[1].index(slot)
        )


@gluon.jit
def load_tiles(descs, buffers, bars, sizes, CONFIG: gl.constexpr):
    """The loader: everything the consumers read, in the order in which they read it."""
    q_desc, k_descs, v_descs, _ = descs
    q_buffers, k_rings, v_rings = buffers
    q_ready, q_free, k_ready, k_free, v_ready, v_free, _ = bars
    query_blocks, heads, tiles, key_blocks = sizes
    BLOCK: gl.constexpr = CONFIG.keys + CONFIG.tail
    STAGES: gl.constexpr = CONFIG.stages
    Q_STAGES: gl.constexpr = CONFIG.q_stages
    CONSUMERS: gl.constexpr = CONFIG.consumers

    k_slot = 0
    k_phase = 1
    v_slot = 0
    v_phase = 1
    q_slot = 0
    q_phase = 1
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        block, head, batch = tile_place(tile, query_blocks, heads)
        for consumer in gl.static_range(CONSUMERS):
            row = (block * CONSUMERS + consumer) * CONFIG.rows
            place = q_slot * CONSUMERS + consumer
            bar = q_ready.index(place)
            mbarrier.wait(q_free.index(place), q_phase)
            mbarrier.expect(bar, CONFIG.rows * CONFIG.head_dim * 2)
            tma.async_copy_global_to_shared(
                q_desc, [batch, head, row, 0], bar, q_buffers.index(place)
            )
        q_slot, q_phase = next_slot(q_slot, q_phase, Q_STAGES)
        # Values trail keys by one block, as the consumers read them.
        for turn in range(key_blocks + 1):
            if turn < key_blocks:
                row = key_block(turn, key_blocks) * BLOCK
                wait_free(k_free, k_slot, k_phase, 0, CONFIG)
                bar = k_ready.index(k_slot)
                start_load(k_descs, k_rings, bar, k_slot, batch, head, row, CONFIG)
                k_slot, k_phase = next_slot(k_slot, k_phase, STAGES)
            if turn > 0:
                row = key_block(turn - 1, key_blocks) * BLOCK
                wait_free(v_free, v_slot, v_phase, 1, CONFIG)
                bar = v_ready.index(v_slot)
                start_load(v_descs, v_rings, bar, v_slot, batch, head, row, CONFIG)
                v_slot, v_phase = next_slot(v_slot, v_phase, STAGES)
    open_slots(True, CONFIG)


@gluon.jit
def release_slot(turn, ring, slot, blocks, OF_VALUES: gl.constexpr, CONFIG: gl.constexpr):
    """A slot was read: tell the loader, or, where there is none, load the next block into it."""
    descs, rings, ready, free = ring
    batch, head, key_blocks = blocks
    if CONFIG.loader:
        announce_free(free, slot, OF_VALUES, CONFIG)
    elif turn + CONFIG.stages < key_blocks:
        row = key_block(turn + CONFIG.stages, key_blocks) * (CONFIG.keys + CONFIG.tail)
        start_load(descs, rings, ready.index(slot), slot, batch, head, row, CONFIG)


@gluon.jit
def load_first(descs, buffers, bars, place, k_slot, v_slot, key_blocks, CONFIG: gl.constexpr):
    """Where there is no loader: fill the rings at the start of a tile."""
    q_desc, k_descs, v_descs, _ = descs
    q_buffers, k_rings, v_rings = buffers
    q_ready, _, k_ready, _, v_ready, _, _ = bars
    batch, head, row = place
    STAGES: gl.constexpr = CONFIG.stages
    mbarrier.expect(q_ready.index(0), CONFIG.rows * CONFIG.head_dim * 2)
    tma.async_copy_global_to_shared(
        q_desc, [batch, head, row, 0], q_ready.index(0), q_buffers.index(0)
    )
    for turn in gl.static_range(STAGES):
        if turn < key_blocks:
            row = key_block(turn, key_blocks) * (CONFIG.keys + CONFIG.tail)
            slot = (k_slot + turn) % STAGES
            start_load(k_descs, k_rings, k_ready.index(slot), slot, batch, head, row, CONFIG)
            slot = (v_slot + turn) % STAGES
            start_load(v_descs, v_rings, v_ready.index(slot), slot, batch, head, row, CONFIG)


@gluon.jit
def make_ring(desc, STAGES: gl.constexpr):
    # Gluon knows no starred expressions.
    SHAPE: gl.constexpr = [STAGES] + desc.block_type.shape  # noqa: RUF005
    return gl.allocate_shared_memory(desc.dtype, SHAPE, desc.layout)


@gluon.jit
def make_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(COUNT):
        mbarrier.init(bars.index(index), count=ARRIVALS)
    return bars
