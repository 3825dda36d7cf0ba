"""The all-to-all of self-attention by windows: each rank writes where its partners read.

(DeepSpeed-Ulysses, arXiv 2309.14509, with remote writes in place of messages.) Values travel while
keys are computed, keys while queries are; what is waited for is the way of the queries, and that of
the result. Nothing is packed or unpacked. Of 27,216 tokens of the 2B on two ranks each of the four
ways is 28 MB.

Why one window a rank is enough: who writes values of a layer has waited for the result of the layer
before from all partners, and they have sent it after their attention had read the window; who
writes a result has waited for all queries of this layer, and their ranks have sent them after they
had read the result of the layer before. All these are orders of streams and messages. Heads of
another number lie elsewhere in the window: before they are sent, everybody has read what is there.

Axes: B batch, S positions of the whole clip, N those of this rank, H heads, D features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from cosmos_fast.parallel.windows import abandon, all_of, open_windows

if TYPE_CHECKING:
    from cosmos_fast.parallel.attention import Inner
    from cosmos_fast.parallel.exchange import Exchange, Pending
    from cosmos_fast.parallel.shards import Shards
    from cosmos_fast.parallel.windows import Windows

Q: Final = 0
K: Final = 1
V: Final = 2
_ALIGNMENT: Final = 256
"""Bytes; what kernels and copies like."""


class Form(NamedTuple):
    """What is shared."""

    batch: int
    heads: int
    """On all ranks together; they divide by the ranks."""
    features: int
    dtype: torch.dtype


class WindowedHeads:
    """The windows of one run."""

    def __init__(self, exchange: Exchange, shards: Shards) -> None:
        self._exchange, self.shards = exchange, shards
        self._windows: Windows | None = None
        self._form: Form | None = None
        """What the window was used for last."""
        self._signal = torch.zeros(shards.mesh.context, dtype=torch.uint8, device=exchange.device)
        partners = range(exchange.size)
        self._counts = [int(rank in shards.mesh.partners) for rank in partners]

    def ready(self, form: Form) -> bool:
        """Whether what has this form can be shared by windows: the same on all ranks, which all
        have to ask in the same order."""
        places = _Places.of(form, self.shards)
        last, self._form = self._form, form
        if self._windows is not None and self._windows.own.numel() >= places.size:
            if form != last:
                self._windows.follow()
                self.arrival().wait()
            return True
        self.close()
        self._windows = open_windows(self._exchange, self.shards.mesh, places.size)
        return self._windows is not None

    def sharing(self, form: Form, inner: Inner, spec: Any) -> Sending:
        """One attention, once :meth:`ready` has said so."""
        assert self._windows is not None
        return Sending(self, _Places.of(form, self.shards), inner, spec)

    def close(self) -> None:
        """All ranks do, or none: nobody may write any more, and then nobody's memory is seen."""
        if self._windows is None:
            return
        self._windows.close()
        all_of(self._exchange, True)
        self._windows = None

    def abandon(self) -> None:
        """Some ranks may go on writing."""
        if self._windows is not None:
            abandon(self._windows)

    @property
    def windows(self) -> Windows:
        assert self._windows is not None
        return self._windows

    def arrival(self) -> Pending:
        """What is over when all that was put until now has arrived everywhere."""
        with self.windows.aside():
            return self._exchange.start(self._signal, self._counts, self._counts)

    def sent(self, rows: torch.Tensor) -> None:
        """Counts bytes that go to another rank."""
        self._exchange.traffic.sent_bytes += rows.numel() * rows.element_size()


class _Places(NamedTuple):
    """Where everything lies in a window: q (B, S, H / ranks, D), then k and v (B, S, 2, H / ranks,
    D), then the result (B, N, H, D).

    On an H200, FlashAttention 3 read all three side by side 2 % faster than one behind the other.
    Queries, which are waited for, lie close all the same: copy engines carry rows of two kilobytes
    that are apart by a third slower."""

    form: Form
    here: int
    """Heads of a rank."""
    positions: int
    each: int
    """Bytes of one head of one token."""
    keys: int
    """Where keys and values begin, in bytes."""
    result: int
    """Where the result begins, in bytes."""
    size: int

    @classmethod
    def of(cls, form: Form, shards: Shards) -> _Places:
        here = form.heads // shards.mesh.context
        positions = sum(map(len, shards.ranges))
        each = form.features * form.dtype.itemsize
        keys = _aligned(form.batch * positions * here * each)
        result = keys + _aligned(form.batch * positions * 2 * here * each)
        longest = max(map(len, shards.ranges))
        size = result + _aligned(form.batch * longest * form.heads * each)
        return cls(form, here, positions, each, keys, result, size)

    def pitch(self, part: int) -> int:
        """Bytes from one token to the next."""
        return (1 if part == Q else 2) * self.here * self.each

    def row(self, part: int, item: int, position: int) -> int:
        """Where a token's heads begin."""
        start = (item * self.positions + position) * self.pitch(part)
        return start if part == Q else self.keys + start + (part - K) * self.here * self.each

    def result_row(self, tokens: int, item: int, head: int) -> int:
        """Where a head of the first of a rank's ``tokens`` begins."""
        return self.result + (item * tokens * self.form.heads + head) * self.each


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Sending:
    """One attention: values and keys are given as they come, then queries."""

    def __init__(self, heads: WindowedHeads, places: _Places, inner: Inner, spec: Any) -> None:
        self._heads, self._places, self._inner, self._spec = heads, places, inner, spec
        self._shards = heads.shards
        self._under_way: list[torch.Tensor] = []
        """What nobody may write over yet."""

    def give(self, part: int, x_BNHD: torch.Tensor) -> None:
        """Starts sending each partner its heads of this rank's tokens.

        Args:
            part: ``Q``, ``K`` or ``V``.
            x_BNHD: not to be written to any more.
        """
        heads, places, mesh = self._heads, self._places, self._shards.mesh
        if x_BNHD.stride(2) != x_BNHD.shape[3] or x_BNHD.stride(3) != 1:
            x_BNHD = x_BNHD.contiguous()
        self._under_way.append(x_BNHD)
        heads.windows.follow()
        for item, x_NHD in enumerate(x_BNHD):
            row = places.row(part, item, self._shards.own.start)
            for place in mesh.others:
                mine = place * places.here
                rows = x_NHD[:, mine : mine + places.here].flatten(1)
                heads.windows.put(place, row, places.pitch(part), rows)
                heads.sent(rows)
        own = slice(mesh.place * places.here, (mesh.place + 1) * places.here)
        tokens = slice(self._shards.own.start, self._shards.own.stop)
        _copy(self._arriving(part)[:, tokens], x_BNHD[:, :, own])

    def attended(self, q_BNHD: torch.Tensor) -> Any:
        """What attention returns for this rank's tokens, in the window: to be read before the
        next attention begins."""
        heads, shards = self._heads, self._shards
        self.give(Q, q_BNHD)
        heads.arrival().wait()
        self._under_way.clear()
        q, k, v = (self._arriving(part) for part in (Q, K, V))
        attended = self._inner(q, k, v, self._spec)
        out_BSHD = attended.out_BSHD
        if not out_BSHD.is_contiguous():
            out_BSHD = out_BSHD.contiguous()
        heads.windows.follow()
        self._return(out_BSHD)
        places, place = self._places, shards.mesh.place
        result_BNHD = self._view(
            places.result, (places.form.batch, len(shards.own), places.form.heads)
        )
        mine = slice(place * places.here, (place + 1) * places.here)
        _copy(result_BNHD[:, :, mine], out_BSHD[:, shards.own.start : shards.own.stop])
        heads.arrival().wait()
        return attended._replace(out_BSHD=result_BNHD)

    def _return(self, out_BSHD: torch.Tensor) -> None:
        """Starts sending each partner its tokens of this rank's heads."""
        heads, places, mesh = self._heads, self._places, self._shards.mesh
        pitch = places.form.heads * places.each
        for item, out_SHD in enumerate(out_BSHD):
            for place in mesh.others:
                tokens = self._shards.ranges[place]
                rows = out_SHD[tokens.start : tokens.stop].flatten(1)
                row = places.result_row(len(tokens), item, mesh.place * places.here)
                heads.windows.put(place, row, pitch, rows)
                heads.sent(rows)

    def _arriving(self, part: int) -> torch.Tensor:
        places = self._places
        batch, positions = places.form.batch, places.positions
        if part == Q:
            return self._view(0, (batch, positions, places.here))
        both = self._view(places.keys, (batch, positions, 2, places.here))
        return both.select(2, part - K)

    def _view(self, start: int, shape: tuple[int, ...]) -> torch.Tensor:
        form = self._places.form
        end = start + math.prod(shape) * self._places.each
        window = self._heads.windows.own[start:end]
        return window.view(form.dtype).view(*shape, form.features)


def _copy(target_BNHD: torch.Tensor, source_BNHD: torch.Tensor) -> None:
    """By 16 bytes at a time, where features come in such: torch copies what is no block of memory
    element by element, and two bytes each are a third of the speed."""
    features, each = source_BNHD.shape[3], source_BNHD.element_size()
    if features * each % 16 == 0:
        target_BNHD, source_BNHD = (x.view(torch.complex128) for x in (target_BNHD, source_BNHD))
    target_BNHD.copy_(source_BNHD)
