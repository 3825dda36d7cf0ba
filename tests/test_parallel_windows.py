"""Heads written into partners' memory: real windows of real ranks, here threads over gloo."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from threading import Barrier, Event
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

from cosmos_fast.errors import Cancelled, RankLost
from cosmos_fast.model.attention import Attended, AttentionSpec, torch_attention
from cosmos_fast.model.ops import Ops
from cosmos_fast.parallel import Parallel, Ranks
from cosmos_fast.parallel.attention import SharedAttention
from cosmos_fast.parallel.exchange import Exchange
from cosmos_fast.parallel.heads import K, V
from cosmos_fast.parallel.host_windows import HostWindows
from cosmos_fast.parallel.shards import Mesh, Shards
from cosmos_fast.parallel.windows import _ABANDONED, WindowError, open_windows

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = timedelta(seconds=20)
GRID = (3, 3, 5)
"""45 tokens: 2, 4 and, for each of two branches, 2 ranks divide them unevenly."""
HEADS, FEATURES, LAYERS = 12, 8, 4
SPEC = AttentionSpec(FEATURES**-0.5)


def alone(qkv: torch.Tensor) -> torch.Tensor:
    """Attention on one device."""
    q, k, v = qkv.unbind(2)
    return torch_attention(q, k, v, SPEC).out_BSHD


def on_ranks(size: int, work: Callable[[Exchange, int], Any]) -> list[Any]:
    store = dist.HashStore()

    def rank(number: int) -> Any:
        group: Any = dist.ProcessGroupGloo(store, number, size, PATIENCE)
        return work(Exchange(group, torch.device("cpu")), number)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank, range(size)))


def layers(batch: int) -> list[torch.Tensor]:
    """q, k and v (B, S, 3, H, D) of every layer, with one far from the others."""
    generator = torch.Generator().manual_seed(batch)
    shape = (LAYERS, batch, 45, 3, HEADS, FEATURES)
    drawn = torch.randn(shape, generator=generator)
    drawn[0, :, 7] *= 30
    return list(drawn)


@dataclass
class Late:
    """Attention and products that take their time, each rank another one."""

    random: Random
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def pause(self) -> None:
        time.sleep(self.random.random() * 0.02)

    def __call__(self, q: Any, k: Any, v: Any, spec: Any) -> Attended:
        self.seen.append(tuple(q.shape))
        self.pause()
        return torch_attention(q, k, v, spec)


def attended(
    exchange: Exchange, mesh: Mesh, batch: int, *, windows: bool
) -> tuple[list[torch.Tensor], SharedAttention, Late]:
    """The result of every layer for a rank's tokens, given as a network gives it."""
    inner = Late(Random(exchange.rank))
    shared = SharedAttention(inner, exchange, 2, windows=windows)
    shared.shards = shards = Shards.of(mesh, GRID)
    own = slice(shards.own.start, shards.own.stop)
    results = []
    for qkv in layers(batch):
        q, k, v = (each[:, own] for each in qkv.unbind(2))
        sending = shared.begin(batch, HEADS, FEATURES, q.dtype, SPEC)
        if sending is None:
            out = shared(q, k, v, SPEC).out_BSHD
        else:
            for part, x in ((V, v), (K, k)):
                inner.pause()
                sending.give(part, x.clone())
            inner.pause()
            out = sending.attended(q.clone()).out_BSHD
        inner.pause()
        results.append(out.clone())
    shared.end()
    return results, shared, inner


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("ranks", "branches"), [(2, 1), (3, 1), (4, 1), (4, 2)])
def test_every_token_gets_what_one_device_gives_it(ranks: int, branches: int, batch: int) -> None:
    """And every layer its own: nobody writes where somebody still reads."""

    def work(exchange: Exchange, rank: int) -> Any:
        mesh = Mesh(rank, branches, ranks // branches)
        torch.manual_seed(rank)
        results, shared, inner = attended(exchange, mesh, batch, windows=True)
        assert shared.uses_windows
        context = ranks // branches
        assert set(inner.seen) == {(batch, 45, HEADS // context, FEATURES)}
        return Shards.of(mesh, GRID).own, results

    for own, results in on_ranks(ranks, work):
        for qkv, found in zip(layers(batch), results, strict=True):
            expected = alone(qkv)
            assert torch.allclose(found, expected[:, own.start : own.stop], rtol=1e-5, atol=1e-6)


def test_messages_give_the_same_bytes() -> None:
    def made(*, windows: bool) -> list[tuple[list[torch.Tensor], int]]:
        def work(exchange: Exchange, rank: int) -> tuple[list[torch.Tensor], int]:
            results, *_ = attended(exchange, Mesh(rank, 1, 2), 2, windows=windows)
            return results, exchange.traffic.sent_bytes

        return on_ranks(2, work)

    for by_windows, by_messages in zip(made(windows=True), made(windows=False), strict=True):
        assert all(map(torch.equal, by_windows[0], by_messages[0]))
        signals = by_windows[1] - by_messages[1]
        assert 0 < signals < 256, "what is written counts as what is sent"


@pytest.mark.parametrize("at", ["__init__", "address", "find"])
def test_where_one_rank_cannot_nobody_does(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that falls back alone would wait for messages that nobody sends. Those that could have
    let go of what they found, while it is there still."""
    whole, close = getattr(HostWindows, at), HostWindows.close
    refused: list[HostWindows] = []
    closed: list[HostWindows] = []

    def failing(self: HostWindows, *given: Any) -> Any:
        made = whole(self, *given)
        if not refused:
            refused.append(self)
            time.sleep(0.2)  # the others have found it by now
            raise WindowError("made up by the test")
        return made

    def closing(self: HostWindows) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(HostWindows, at, failing)
    monkeypatch.setattr(HostWindows, "close", closing)

    def work(exchange: Exchange, rank: int) -> Any:
        mesh = Mesh(rank, 1, 3)
        results, shared, _ = attended(exchange, mesh, 1, windows=True)
        assert not shared.uses_windows
        return Shards.of(mesh, GRID).own, results

    for own, results in on_ranks(3, work):
        for qkv, found in zip(layers(1), results, strict=True):
            expected = alone(qkv)
            assert torch.allclose(found, expected[:, own.start : own.stop], rtol=1e-5, atol=1e-6)
    assert refused
    assert len(closed) == (3 if at == "find" else 0)


def test_a_window_that_is_another_s_is_not_taken() -> None:
    """A number of a process, or a handle, can mean something else on another machine."""
    one, two = HostWindows(64), HostWindows(64)
    wrong = bytearray(two.address())
    wrong[-1] ^= 1
    with pytest.raises(WindowError, match="another machine"):
        one.find([one.address(), bytes(wrong)], 0)
    gone = two.address()
    del two
    with pytest.raises(WindowError):
        one.find([one.address(), gone], 0)


def test_rows_lie_where_they_are_put_and_nowhere_else() -> None:
    def work(exchange: Exchange, rank: int) -> torch.Tensor:
        windows = open_windows(exchange, Mesh(rank, 1, 2), 96)
        assert windows is not None
        windows.own.fill_(255)
        exchange.to_all(torch.zeros(1), [1, 1]).wait()
        windows.follow()
        rows = torch.arange(12, dtype=torch.int16).view(2, 6)[:, :3] + 100 * rank
        windows.put(1 - rank, 8, 20, rows)
        with windows.aside():
            arrival = exchange.start(torch.zeros(2), [1, 1], [1, 1])
        arrival.wait()
        windows.close()
        return windows.own.view(torch.int16).clone()

    for rank, found in enumerate(on_ranks(2, work)):
        expected = torch.full((48,), -1, dtype=torch.int16)
        other = 100 * (1 - rank)
        expected[4:7] = torch.tensor([0, 1, 2]) + other
        expected[14:17] = torch.tensor([6, 7, 8]) + other
        assert torch.equal(found, expected)


def test_larger_heads_get_a_larger_window() -> None:
    def work(exchange: Exchange, rank: int) -> list[int]:
        shared = SharedAttention(torch_attention, exchange, 1)
        shared.shards = shards = Shards.of(Mesh(rank, 1, 2), GRID)
        own = slice(shards.own.start, shards.own.stop)
        sizes = []
        for heads in (4, 8, 4):
            q, k, v = layers(1)[0][:, own, :, :heads].unbind(2)
            out = shared(q, k, v, SPEC).out_BSHD
            expected = alone(layers(1)[0][:, :, :, :heads])
            assert torch.allclose(out, expected[:, own], rtol=1e-5, atol=1e-6)
            assert shared._windowed is not None
            sizes.append(shared._windowed.windows.own.numel())
        shared.end()
        return sizes

    for first, second, third in on_ranks(2, work):
        assert first < second == third


def test_what_lies_elsewhere_waits_until_everybody_has_read() -> None:
    """Fewer heads lie closer together: their result where more heads have their keys."""

    def work(exchange: Exchange, rank: int) -> None:
        shared = SharedAttention(torch_attention, exchange, 1)
        shared.shards = shards = Shards.of(Mesh(rank, 1, 2), GRID)
        own = slice(shards.own.start, shards.own.stop)
        for turn, heads in enumerate((12, 6, 12, 6, 12)):
            q, k, v = layers(1)[turn % LAYERS][:, own, :, :heads].unbind(2)
            out = shared(q, k, v, SPEC).out_BSHD
            if turn % 2 == rank:
                time.sleep(0.1)  # reads late
            expected = alone(layers(1)[turn % LAYERS][:, :, :, :heads])
            assert torch.allclose(out, expected[:, own], rtol=1e-5, atol=1e-6), (rank, turn)
        shared.end()

    on_ranks(2, work)


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize("heads", [2, 10, 12])
def test_operations_share_groups_of_heads_that_ranks_cannot_divide(
    heads: int, windows: bool
) -> None:
    """Where memory is short, a plan cuts the heads of the network into groups."""
    generator = torch.Generator().manual_seed(heads)
    x = torch.randn((2, 45, 24), generator=generator)
    weight = torch.randn((3 * heads * FEATURES, 24), generator=generator)
    q_norm, k_norm = torch.rand((2, FEATURES), generator=generator) + 0.5
    turns = torch.rand((45, FEATURES // 2), generator=generator)
    cos, sin = turns.cos(), turns.sin()
    expected = Ops().self_attention(x, weight, q_norm, k_norm, cos, sin, 1e-6, SPEC)

    def work(exchange: Exchange, rank: int) -> None:
        shared = SharedAttention(torch_attention, exchange, 2, windows=windows)
        shared.shards = shards = Shards.of(Mesh(rank, 1, 4), GRID)
        own = slice(shards.own.start, shards.own.stop)
        out = Ops(attention=shared).self_attention(
            x[:, own], weight, q_norm, k_norm, cos[own], sin[own], 1e-6, SPEC
        )
        assert torch.allclose(out, expected[:, own], rtol=1e-4, atol=1e-5)
        shared.end()

    on_ranks(4, work)


def mapped() -> int:
    """How often this process, all ranks of it, sees a window."""
    gc.collect()
    return Path("/proc/self/maps").read_text("ascii").count("memfd:cosmos-fast window")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts what a process maps")
def test_windows_go_back_when_all_stop_and_stay_when_one_does() -> None:
    """What nobody writes to any more is given back; what somebody may still write to is not."""
    before = mapped()
    arrived = Barrier(3)

    def work(exchange: Exchange, rank: int) -> list[int]:
        ranks = Ranks(Parallel(exchange._group, guidance="together"), torch.device("cpu"))
        shared = ranks.attention(torch_attention)

        def attend() -> None:
            ranks.share(GRID, HEADS, 2)
            q, k, v = layers(1)[0][:, : len(shared.shards.own)].unbind(2)
            shared(q, k, v, SPEC)

        def counted() -> int:
            arrived.wait(20)
            found = mapped() - before
            arrived.wait(20)
            return found

        def cancelled() -> None:
            wanted = Event()
            wanted.set()
            with ranks.together("what one of them cancels"):
                attend()
                cancel = ranks.cancel(wanted if rank == 1 else None)
                if cancel is not None and cancel.is_set():
                    raise Cancelled("made up by the test")

        def failing(error: Exception | None) -> None:
            with ranks.together("what fails"):
                attend()
                if error is not None:
                    raise error
                attend()

        with ranks.together("to the end"):
            attend()
            found = [counted()]
            ranks.end_sharing()
            found.append(counted())
        with pytest.raises(Cancelled):
            cancelled()
        found.append(counted())
        with ranks.together("left open"):
            attend()
        found.append(counted())
        with pytest.raises(ZeroDivisionError if rank == 1 else RankLost):
            failing(ZeroDivisionError() if rank == 1 else None)
        found.append(counted())
        return found

    for found in on_ranks(3, work):
        assert found == [9, 0, 0, 0, 9]
    assert mapped() - before == 9
    _ABANDONED.clear()
