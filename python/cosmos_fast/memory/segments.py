"""torch's caching allocator in numbers: which segments of a device a row of requests takes.

The driver counts segments, not tensors. A block that is given back stays in its segment, whole or
joined with its free neighbours; the next request is served from the smallest free block that holds
it, which is split where enough remains; only where there is none, the driver is asked for another
segment. A segment goes back, on demand, once all of it is free. These are the rules of torch's
``c10/cuda/CUDACachingAllocator.cpp`` for one stream and default settings.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from cosmos_fast.memory.request import MIB

Trace = tuple[tuple[int, int], ...]
"""Requests in their order: (number, bytes) takes memory, (number, 0) gives it back."""

_GRANULE: Final = 512
_SMALL: Final = MIB
"""Requests up to this one have segments of their own, of twice the size."""
_SMALL_SEGMENT: Final = 2 * MIB
_MEDIUM: Final = 10 * MIB
"""Requests below this one share segments of twice the size."""
_MEDIUM_SEGMENT: Final = 20 * MIB
_ROUND: Final = 2 * MIB


def segment_bytes(size: int) -> int:
    """What the driver is asked for where a request of ``size`` bytes finds no free block."""
    if size <= _SMALL:
        return _SMALL_SEGMENT
    return _MEDIUM_SEGMENT if size < _MEDIUM else math.ceil(size / _ROUND) * _ROUND


@dataclass(eq=False)
class Piece:
    """A block of a segment."""

    size: int
    small: bool
    order: int
    """Of its segment, in the place of an address."""
    offset: int
    free: bool = False
    before: Piece | None = None
    after: Piece | None = None

    @property
    def key(self) -> tuple[int, int, int]:
        return self.size, self.order, self.offset


class Segments:
    """What one stream's requests take of a device, in bytes."""

    def __init__(self) -> None:
        self.reserved = 0
        """Of the driver, now."""
        self.peak_reserved = 0
        self.allocated = 0
        self.peak_allocated = 0
        self.extent = 0
        """How far the first segment has been used."""
        self._free: dict[bool, list[tuple[tuple[int, int, int], Piece]]] = {True: [], False: []}
        self._count = 0

    def follow(self, trace: Trace) -> None:
        """Serves a row of requests, and takes back at the end what it still holds."""
        held: dict[int, Piece] = {}
        for number, size in trace:
            if size:
                held[number] = self.take(size)
            else:
                self.give(held.pop(number))
        for piece in held.values():
            self.give(piece)

    def take(self, size: int) -> Piece:
        """Serves a request of ``size`` bytes."""
        size = max(math.ceil(size / _GRANULE), 1) * _GRANULE
        small = size <= _SMALL
        found = self._found(size, small) or self._segment(size, small)
        remaining = found.size - size
        if remaining >= _GRANULE if small else remaining > _SMALL:
            rest = Piece(
                remaining, small, found.order, found.offset + size, True, found, found.after
            )
            if found.after is not None:
                found.after.before = rest
            found.after, found.size = rest, size
            self._add(rest)
        self.allocated += found.size
        if found.order == 1:
            self.extent = max(self.extent, found.offset + found.size)
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return found

    def give(self, piece: Piece) -> None:
        """Takes a block back and joins it with its free neighbours."""
        self.allocated -= piece.size
        piece.free = True
        for other in (piece.before, piece.after):
            if other is not None and other.free:
                self._drop(other)
                first, second = (other, piece) if other is piece.before else (piece, other)
                first.size += second.size
                first.after = second.after
                if second.after is not None:
                    second.after.before = first
                piece = first
        self._add(piece)

    def tidy(self) -> None:
        """Gives the driver back what segments are free as a whole: ``torch.cuda.empty_cache``."""
        for pieces in self._free.values():
            for entry in list(pieces):
                piece = entry[1]
                if piece.before is None and piece.after is None:
                    pieces.remove(entry)
                    self.reserved -= piece.size

    def _found(self, size: int, small: bool) -> Piece | None:
        pieces = self._free[small]
        index = bisect.bisect_left(pieces, size, key=lambda entry: entry[0][0])
        if index == len(pieces):
            return None
        piece = pieces.pop(index)[1]
        piece.free = False
        return piece

    def _segment(self, size: int, small: bool) -> Piece:
        self._count += 1
        piece = Piece(segment_bytes(size), small, self._count, 0)
        self.reserved += piece.size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return piece

    def _add(self, piece: Piece) -> None:
        piece.free = True
        pieces = self._free[piece.small]
        index = bisect.bisect_left(pieces, piece.key, key=lambda entry: entry[0])
        pieces.insert(index, (piece.key, piece))

    def _drop(self, piece: Piece) -> None:
        pieces = self._free[piece.small]
        pieces.pop(bisect.bisect_left(pieces, piece.key, key=lambda entry: entry[0]))


def apart(sizes: Iterable[int]) -> int:
    """Bytes of segments for tensors that lie in segments of their own, packed by kind."""
    total, room = 0, {True: 0, False: 0}
    for size in sizes:
        served, small = math.ceil(size / _GRANULE) * _GRANULE, size <= _SMALL
        if size >= _MEDIUM:
            total += segment_bytes(size)
            continue
        if room[small] < served:
            room[small] = segment_bytes(size)
            total += room[small]
        room[small] -= served
    return total


class Heap(NamedTuple):
    """Memory for a row of requests, most of it in one segment that is made beforehand."""

    segment: int
    """Bytes of that segment; 0: none is made."""
    total: int
    """What the driver counts at the peak."""


_STEPS: Final = 24
"""Sizes of a heap that are tried, from the most that tensors hold to where none overlaps a hole."""
_SPARE: Final = 0.02
_SPARE_BYTES: Final = 24 * MIB
"""What a heap has beyond a trace, for what a trace does not see: statistics of attention,
workspaces of convolutions, tensors that Python lets go of a little later."""


def heap(trace: Trace) -> Heap:
    """The smallest heap that serves ``trace`` from one segment, or nearly.

    Segments made one by one, each for the request that lacked one, fit later requests badly: of
    the transformer's forward they take half as much again as its tensors. A single one that is
    split and joined again comes within a tensor of them.
    """
    plain = _followed(trace, 0)
    least, most = plain.peak_allocated, _followed(trace, 1 << 50).extent
    best = Heap(0, _with_spare(plain.peak_reserved))
    for step in range(_STEPS + 1):
        # Followed in the segment that will be there: in one of another size requests lie elsewhere.
        segment = _with_spare(_rounded(least + (most - least) * step // _STEPS))
        total = _followed(trace, segment).peak_reserved
        if total < best.total:
            best = Heap(segment, total)
    return best


def in_turn(traces: Iterable[Trace]) -> list[int]:
    """What the driver counts at the end of each trace, where nothing is ever given back to it."""
    segments, counts = Segments(), []
    for trace in traces:
        segments.follow(trace)
        counts.append(segments.peak_reserved)
    return counts


def _followed(trace: Trace, first: int) -> Segments:
    segments = Segments()
    if first:
        segments.give(segments.take(first))
    segments.extent = 0
    segments.follow(trace)
    return segments


def _with_spare(size: int) -> int:
    return size + _rounded(int(size * _SPARE) + _SPARE_BYTES)


def _rounded(size: int) -> int:
    return math.ceil(size / _ROUND) * _ROUND
