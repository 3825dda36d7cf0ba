"""The one collective: every rank sends every rank a part of a flat tensor."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from cosmos_fast.errors import RankLost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cosmos_fast.parallel.watch import Watch

_PATIENCE: Final = timedelta(seconds=0.2)
"""How long the host waits at a stretch: signals and the loss of a rank are looked at in between."""
_VERDICT: Final = 3.0
"""Seconds in which the watch explains a connection that broke."""


class Group(Protocol):
    """What is used of a process group: ``torch.distributed.ProcessGroup`` or one of its backends.

    Its methods are called directly: the functions of torch.distributed look groups up in a table
    of the whole process, in which a lent group need not be.
    """

    def rank(self) -> int: ...
    def size(self) -> int: ...
    def name(self) -> str: ...
    def alltoall_base(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: list[int],
        input_split_sizes: list[int],
        /,
    ) -> Any: ...


def backend_of(group: Any, device: torch.device) -> Any:
    """What carries the group's tensors of ``device``: a group that has several backends names one
    of them for each kind of device."""
    return group._get_backend(device) if hasattr(group, "_get_backend") else group


class Traffic:
    """Bytes sent to other ranks, and how long the device stood still for them."""

    def __init__(self, device: torch.device) -> None:
        self.sent_bytes = 0
        self._device = device
        self._seconds = 0.0
        self._events: deque[tuple[Any, Any]] = deque()
        """Around each wait of the device that has not been counted yet."""
        self._free: list[tuple[Any, Any]] = []

    def wait(self, work: Any, watch: Watch | None) -> None:
        """Waits for ``work``: the current stream on a CUDA device, else this thread."""
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            self._count_what_is_over()
            before, after = self._free.pop() if self._free else _two_events()
            before.record(stream)
            work.wait()
            after.record(stream)
            self._events.append((before, after))
            return
        began = time.perf_counter()
        _wait_on_host(work, watch)
        self._seconds += time.perf_counter() - began

    def _count_what_is_over(self) -> None:
        """A long run waits tens of thousands of times: a few events serve them all."""
        while self._events and self._events[0][1].query():
            before, after = self._events.popleft()
            self._seconds += before.elapsed_time(after) / 1000
            self._free.append((before, after))

    def forget(self) -> None:
        """Starts from nothing."""
        self._events.clear()
        self._seconds, self.sent_bytes = 0.0, 0

    def take(self) -> tuple[float, int]:
        """Seconds that computation waited for other ranks, and bytes sent to them, since the last
        call; waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
            self._count_what_is_over()
        taken = self._seconds, self.sent_bytes
        self.forget()
        return taken


def _two_events() -> tuple[Any, Any]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _wait_on_host(work: Any, watch: Watch | None) -> None:
    while not work.is_completed():
        try:
            work.wait(_PATIENCE)
        except RuntimeError:
            if work.is_completed():
                break
            if watch is not None:
                watch.check()
    work.wait(_PATIENCE)


class Pending:
    """An exchange under way; holds its tensors until someone waits for it."""

    def __init__(
        self, exchange: Exchange, work: Any, received: torch.Tensor, sent: torch.Tensor
    ) -> None:
        self._exchange, self._work, self._received, self._sent = exchange, work, received, sent

    def wait(self) -> torch.Tensor:
        """What arrived, flat, in the order of the ranks.

        Raises:
            RankLost: another rank failed, died or fell silent.
        """
        exchange = self._exchange
        try:
            exchange.traffic.wait(self._work, exchange.watch)
        except RuntimeError as error:
            raise exchange.broken(error) from error
        del self._sent
        return self._received


class Exchange:
    """All-to-all among the ranks of a group, in any dtype that the group's backend moves."""

    def __init__(self, group: Group, device: torch.device) -> None:
        self.rank, self.size, self.device = group.rank(), group.size(), device
        self.watch: Watch | None = None
        """Knows why an exchange does not end, once there is one."""
        self.traffic = Traffic(device)
        self._group = group

    def start(
        self, send: torch.Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Pending:
        """Starts an exchange; every rank of the group has to call this, in the same order.

        Args:
            send: contiguous, on the group's device; the parts for rank 0, 1, ... one after another.
            send_counts: elements for each rank.
            receive_counts: elements from each rank; its ``send_counts`` say the same.
        """
        received = send.new_empty(sum(receive_counts))
        elsewhere = sum(send_counts) - send_counts[self.rank]
        self.traffic.sent_bytes += elsewhere * send.element_size()
        try:
            work = self._group.alltoall_base(
                received, send.reshape(-1), list(receive_counts), list(send_counts)
            )
        except RuntimeError as error:
            raise self.broken(error) from error
        return Pending(self, work, received, send)

    def broken(self, error: RuntimeError) -> RankLost:
        """Why the group gave up."""
        verdict = None if self.watch is None else self.watch.verdict_within(_VERDICT)
        return verdict or RankLost(f"an exchange between ranks failed: {error}")

    def to_all(self, block: torch.Tensor, counts: Sequence[int]) -> Pending:
        """Starts sending ``block`` to every rank; ``counts`` are the elements of each one's."""
        flat = block.reshape(-1)
        return self.start(flat.repeat(self.size), [flat.numel()] * self.size, counts)

    def from_first(self, values: torch.Tensor | None, count: int, dtype: torch.dtype) -> Pending:
        """Starts sending ``values`` (count,) of rank 0, where it is given, to every rank."""
        receive = [count] + [0] * (self.size - 1)
        if self.rank == 0:
            assert values is not None
            return self.start(values.repeat(self.size), [count] * self.size, receive)
        nothing = torch.empty(0, dtype=dtype, device=self.device)
        return self.start(nothing, [0] * self.size, receive)
