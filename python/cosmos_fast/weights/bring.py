"""Tensors of files into memory, by several threads of the Rust core, told of as they land.

To host memory straight into its place; to a device, or where a value becomes another dtype than the
core rounds to, through a ring of buffers: while one is copied on, the next ones are being filled.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from cosmos_fast._core import WeightReader
from cosmos_fast.config import Environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cosmos_fast.weights.extents import Extent
    from cosmos_fast.weights.tensor_files import TensorFile

MIB: Final = 1 << 20
_GROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Reading:
    """How files are read."""

    threads: int = 16
    """That read at a time; no more than the process has processors to run on, and never less than
    2. On an H200 16 of them brought 28.5 GB in 0.79 s and 8 in 1.09 (``BENCHMARKS.md``)."""
    piece_bytes: int = 4 * MIB
    """What a thread reads at a time."""
    ring_slots: int = 8
    slot_bytes: int = 32 * MIB
    """Of the pinned ring on the way to a device."""
    direct: bool = False
    """Past the page cache (O_DIRECT), where the file system can."""

    @property
    def usable_threads(self) -> int:
        return max(min(self.threads, usable_processors()), 2)


DEFAULT: Final = Reading()
_ON_HOST: Final = Reading(ring_slots=4, slot_bytes=1 * MIB, piece_bytes=MIB)
"""Where a value is converted between two places in host memory."""


def usable_processors() -> int:
    """Those that this process may run on: by its affinity, and by the share of them that its
    container (cgroup v2, or v1) is allowed; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((_GROUPS / name).read_text() for name in files).split()
            if quota not in ("max", "-1"):  # no limit
                return max(min(allowed, int(quota) // int(period)), 1)
    return allowed


class Piece(NamedTuple):
    """A tensor of a file and its place."""

    name: str
    target: torch.Tensor


def bring(
    file: TensorFile, pieces: Sequence[Piece], reading: Reading | None = None
) -> Iterator[int]:
    """Fills every target with its tensor of ``file``, converted to the target's dtype.

    Args:
        file: an open checkpoint file.
        pieces: names of tensors and where they go: the same shape, any device.
        reading: None: what suits the targets' device, past the page cache where the environment
            says so.

    Returns:
        An iterator over the indices of ``pieces``, each once its values are there for work on the
        current stream; files are read in order, so this is not the order of ``pieces``. Nothing
        happens beyond what is asked for.

    Raises:
        CheckpointError: a file ends early or cannot be read.
    """
    on_device = any(piece.target.device.type != "cpu" for piece in pieces)
    reading = reading or _usual(on_device)
    groups: dict[tuple[Path, bool], list[tuple[int, Extent]]] = {}
    for index, (name, target) in enumerate(pieces):
        extent: Extent | None = file.extents.get(name)
        if extent is None or not target.numel():
            target.copy_(file.read(name))
            yield index
        else:
            straight = _is_straight(file, name, target)
            groups.setdefault((extent.file, straight), []).append((index, extent))
    for (path, straight), members in groups.items():
        members.sort(key=lambda one: one[1].start)
        group = [
            _Part(index, extent, pieces[index].target, _stored(file, pieces[index].name))
            for index, extent in members
        ]
        if straight:
            yield from _straight(path, group, reading)
        else:
            device = pieces[members[0][0]].target.device
            ring = Ring(device, reading.ring_slots, reading.slot_bytes)
            yield from _by_ring(path, group, ring, reading)


def send(parts: Sequence[tuple[Extent, bool, torch.Tensor]], ring: Ring) -> None:
    """Stretches of files to a device through ``ring``: the copies are queued on the current stream.

    Args:
        parts: (bytes of a file, whether they are float32 that becomes bfloat16, uint8 target).
    """
    groups: dict[Path, list[_Part]] = {}
    for extent, rounded, target in parts:
        stored = torch.float32 if rounded else torch.uint8
        if rounded:
            target = target.view(torch.bfloat16)
        groups.setdefault(extent.file, []).append(_Part(0, extent, target, stored))
    for path, group in groups.items():
        for _ in _by_ring(path, group, ring, DEFAULT):
            pass


def _usual(on_device: bool) -> Reading:
    usual = DEFAULT if on_device else _ON_HOST
    return replace(usual, direct=Environment.read().direct_reads)


def _stored(file: TensorFile, name: str) -> torch.dtype:
    stored = file.entries[name].dtype
    assert stored is not None, "a key map has looked at it"
    return stored


def _is_straight(file: TensorFile, name: str, target: torch.Tensor) -> bool:
    stored = file.entries[name].dtype
    rounded = stored == torch.float32 and target.dtype == torch.bfloat16
    plain = target.device.type == "cpu" and target.is_contiguous()
    return plain and (rounded or stored == target.dtype)


class _Part(NamedTuple):
    """A tensor on its way."""

    piece: int
    extent: Extent
    target: torch.Tensor
    stored: torch.dtype


def _straight(path: Path, group: Sequence[_Part], reading: Reading) -> Iterator[int]:
    transfers = [
        (
            part.extent.start,
            part.extent.end - part.extent.start,
            part.target.data_ptr(),
            part.stored != part.target.dtype,
            0,
        )
        for part in group
    ]
    with _reader(path, transfers, [part.target for part in group], reading) as reader:
        for turn, part in enumerate(group):
            reader.wait(turn)
            yield part.piece


class _Load(NamedTuple):
    """What one slot of the ring holds: a stretch of a tensor, in values."""

    piece: int
    target: torch.Tensor
    dtype: torch.dtype
    """In the slot."""
    last: bool
    """The tensor is whole with it."""


def _by_ring(path: Path, group: Sequence[_Part], ring: Ring, reading: Reading) -> Iterator[int]:
    loads: list[_Load] = []
    transfers = []
    for piece, extent, target, stored in group:
        # What is rounded to bfloat16 on the way is half as much to copy.
        rounded = stored == torch.float32 and target.dtype == torch.bfloat16
        flat, step = target.view(-1), ring.slot_bytes // stored.itemsize
        for first in range(0, len(flat), step):
            values = flat[first : first + step]
            turn, start = len(loads), extent.start + first * stored.itemsize
            gate = max(turn - ring.slots + 1, 0)
            length = len(values) * stored.itemsize
            transfers.append((start, length, ring.slot(turn).data_ptr(), rounded, gate))
            dtype = torch.bfloat16 if rounded else stored
            loads.append(_Load(piece, values, dtype, first + len(values) == len(flat)))
    with _reader(path, transfers, ring, reading) as reader:
        try:
            for turn, load in enumerate(loads):
                reader.wait(turn)
                source = ring.slot(turn)[: len(load.target) * load.dtype.itemsize].view(load.dtype)
                load.target.copy_(source, non_blocking=True)
                if (free := ring.used(turn)) is not None:
                    reader.release(free)
                if load.last:
                    yield load.piece
        finally:
            ring.finish()


@contextmanager
def _reader(
    path: Path, transfers: list[tuple[int, int, int, bool, int]], owner: object, reading: Reading
) -> Iterator[WeightReader]:
    reader = WeightReader(
        path,
        transfers,
        owner,
        threads=reading.usable_threads,
        piece_bytes=reading.piece_bytes,
        direct=reading.direct,
    )
    with closing(_Stopping(reader)):
        yield reader


class _Stopping:
    def __init__(self, reader: WeightReader) -> None:
        self.close = reader.stop


class Ring:
    """Host buffers that a reader fills and a device's stream empties, in turn."""

    def __init__(self, device: torch.device, slots: int, slot_bytes: int) -> None:
        """
        Args:
            device: where the contents go; for a CUDA device the buffers are page-locked.
            slots: at least 2.
            slot_bytes: of each.
        """
        self._device = device
        self.slots: Final = slots
        self.slot_bytes: Final = slot_bytes
        pin = device.type == "cuda"
        self._memory = torch.empty((slots, slot_bytes), dtype=torch.uint8, pin_memory=pin)
        self._leaving: deque[Any] = deque()

    def slot(self, turn: int) -> torch.Tensor:
        """The buffer of load ``turn``: uint8."""
        return self._memory[turn % self.slots]

    def used(self, turn: int) -> int | None:
        """Call when the copy of load ``turn`` has been queued on the current stream.

        Returns:
            How many loads, from the first, have left their buffers for good, None where that is
            not known without waiting for a copy that may go on for a while.
        """
        if self._device.type != "cuda":
            return turn + 1
        self._leaving.append(torch.cuda.current_stream(self._device).record_event())
        # Half of the ring is being filled while the other half is being emptied.
        if len(self._leaving) <= self.slots // 2:
            return None
        self._leaving.popleft().synchronize()
        return turn + 1 - len(self._leaving)

    def finish(self) -> None:
        """Waits until every copy has left its buffer."""
        while self._leaving:
            self._leaving.popleft().synchronize()
