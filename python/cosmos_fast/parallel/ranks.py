"""What an engine asks of its ranks. With one rank everything here is what it would be without."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch

from cosmos_fast.errors import Cancelled, CosmosFastError, InputError, RankLost
from cosmos_fast.parallel.attention import SharedAttention
from cosmos_fast.parallel.cancelling import SharedCancel
from cosmos_fast.parallel.exchange import Exchange, backend_of
from cosmos_fast.parallel.failures import as_told, telling
from cosmos_fast.parallel.settings import Parallel
from cosmos_fast.parallel.shards import Mesh, Shards
from cosmos_fast.parallel.shares import Shares
from cosmos_fast.parallel.stripes import SharedRows
from cosmos_fast.parallel.watch import Watch, meet

if TYPE_CHECKING:
    from cosmos_fast.parallel.attention import Inner
    from cosmos_fast.parallel.cancelling import CancelToken

Value = TypeVar("Value")
_MEETING: Final = 60.0
"""Seconds in which all ranks have to come to the side channel."""


class Ranks:
    """The ranks of one engine, seen from one of them; the side channel ends with this object."""

    def __init__(self, parallel: Parallel | None, device: torch.device) -> None:
        """
        Raises:
            RankLost: the others did not come.
        """
        self.size = 1 if parallel is None else int(parallel.group.size())
        self.rank = 0 if parallel is None else int(parallel.group.rank())
        self._agreed: BaseException | None = None
        self._at_work = False
        self._attention: SharedAttention | None = None
        self._cancel: SharedCancel | None = None
        self._mesh = Mesh(0, 1, 1)
        if parallel is None or self.size == 1:
            return
        self._parallel, self._device = parallel, device
        self._before = _taken_beside_torch(device)
        self._exchange = Exchange(parallel.group, device)
        connections = meet(self.rank, self.size, self._told_by_first, _MEETING)
        self._watch = self._exchange.watch = Watch(self.rank, connections)
        weakref.finalize(self, self._watch.close)
        if device.type == "cuda":
            self._watch.on_loss(lambda _: _abort(parallel.group, device))
        if parallel.on_loss is not None:
            self._watch.on_loss(parallel.on_loss)

    @property
    def first(self) -> bool:
        """Whether this rank reads, embeds and writes."""
        return self.rank == 0

    def attention(self, inner: Inner) -> Any:
        """Self-attention over the tokens of all ranks, around attention on one device."""
        if self.size == 1:
            return inner
        self._attention = SharedAttention(
            inner, self._exchange, self._parallel.pieces, windows=self._parallel.windows
        )
        return self._attention

    @contextmanager
    def together(self, what: object) -> Iterator[None]:
        """A piece of work that all ranks do; one that fails takes the others with it, at once.

        It may consist of pieces of the same kind: then the whole of it fails.

        Args:
            what: described alike on every rank, or the work is refused.

        Raises:
            RankLost: another rank failed, died or fell silent.
            InputError: the ranks were asked for different things.
        """
        if self.size == 1:
            yield
            return
        if self._at_work:
            with self._piece(what):
                yield
            return
        self._watch.begin()
        self._at_work = True
        try:
            with self._piece(what):
                yield
        except GeneratorExit:  # on every rank
            self._watch.finish()
            raise
        except RankLost as error:
            if error is self._agreed:
                self._watch.finish()
            raise
        except BaseException as error:
            if self._is_everybodys(error):
                self._watch.finish()
            elif isinstance(error, Exception):
                self._watch.fail(f"{type(error).__name__}: {error}")
            else:
                self._watch.leave()
            raise
        else:
            self._watch.finish()
        finally:
            self._agreed, self._at_work = None, False

    @contextmanager
    def _piece(self, what: object) -> Iterator[None]:
        self._exchange.traffic.forget()
        try:
            self._compare(what)
            yield
        except BaseException as error:
            if self._attention is not None:
                self._attention.end(together=self._is_everybodys(error))
            raise
        self.end_sharing()

    def _is_everybodys(self, error: BaseException) -> bool:
        """Whether every rank has this error; a callback of one may raise what it likes."""
        if isinstance(error, Cancelled):
            return self._cancel is not None and self._cancel.is_agreed
        return error is self._agreed

    def on_first(self, make: Callable[[], Value]) -> Value | None:
        """What ``make`` returns on rank 0, None elsewhere; its failure is everybody's."""
        made: list[Value] = []

        def nothing() -> tuple[torch.Tensor, ...]:
            made.append(make())
            return ()

        self.from_first(nothing)
        return made[0] if made else None

    def from_first(self, make: Callable[[], Sequence[torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        """The tensors that ``make`` returns on rank 0, on every rank's device.

        Raises:
            RankLost: ``make`` failed there; on rank 0 what it raised. The ranks can go on.
            GuardrailBlocked: it raised that there; the same everywhere.
        """
        if self.size == 1:
            return tuple(make())
        if not self.first:
            told = json.loads(self._told_by_first(None))
            if "error" in told:
                self._agreed = as_told(told)
                raise self._agreed
            return tuple(self._receive(*each) for each in told["tensors"])
        try:
            made = [each.to(self._device) for each in make()]
        except Exception as error:
            self._agreed = error
            self._told_by_first(json.dumps(telling(error)).encode())
            raise
        shapes = [(str(each.dtype).removeprefix("torch."), list(each.shape)) for each in made]
        self._told_by_first(json.dumps({"tensors": shapes}).encode())
        for each in made:
            self._exchange.from_first(each.reshape(-1), each.numel(), each.dtype).wait()
        return tuple(made)

    def same(self, make: Callable[[], Value]) -> Value:
        """What ``make`` returns on rank 0, anything that JSON can hold, on every rank."""
        if self.size == 1:
            return make()
        kept: list[Value] = []

        def encoded() -> list[torch.Tensor]:
            kept.append(make())
            return [_bytes_tensor(json.dumps(kept[0]).encode())]

        (data,) = self.from_first(encoded)
        value: Value = kept[0] if kept else json.loads(data.cpu().numpy().tobytes())
        return value

    def least(self, values: Sequence[int]) -> list[int]:
        """Of each of ``values``, below 2**63, the smallest that any rank has."""
        if self.size == 1:
            return list(values)
        own = torch.tensor(values, dtype=torch.int64, device=self._device)
        everybody = self._exchange.to_all(own, [len(values)] * self.size).wait()
        smallest: list[int] = everybody.view(self.size, -1).amin(dim=0).tolist()
        return smallest

    @contextmanager
    def alike(self) -> Iterator[None]:
        """A body that every rank runs on the same facts: an error that all of them have leaves them
        together, to go on; one that some have ends the work of all."""
        if self.size == 1:
            yield
            return
        problem: CosmosFastError | None = None
        try:
            yield
        except CosmosFastError as error:
            problem = error
        told = "" if problem is None else f"{type(problem).__name__}: {problem}"
        digest = int.from_bytes(hashlib.sha256(told.encode()).digest()[:7])
        is_same = self.least([digest, -digest]) == [digest, -digest]
        if problem is None:
            return  # those that failed take this rank with them, if there are any
        if is_same:
            self._agreed = problem
        raise problem

    def mesh(self, branches: int) -> Mesh:
        """How the ranks are divided among so many guidance branches, and the tokens of each."""
        if self.size == 1:
            return self._mesh
        return self._parallel.mesh(self.rank, self.size, branches)

    def device_bytes(self) -> int:
        """What the group holds of this rank's device; 0 where it cannot be told.

        NCCL makes its buffers with the first exchanges; to be asked before anything else takes
        memory beside torch's.
        """
        if self.size == 1 or backend_of(self._parallel.group, self._device).name() != "nccl":
            return 0
        return max(_taken_beside_torch(self._device) - self._before, 0)

    def share(self, grid: tuple[int, int, int], heads: int, branches: int) -> Shares:
        """Divides the tokens and the branches of a run until the end of :meth:`together`.

        Args:
            grid: patches of the clip along (t, h, w).
            heads: of self-attention.
            branches: 2 with guidance, else 1.
        """
        if self.size == 1:
            return Shares(Shards.of(self._mesh, grid), None, branches)
        self._mesh = self.mesh(branches)
        shards = Shards.of(self._mesh, grid)
        assert self._attention is not None
        self._attention.way = self._parallel.way(heads, self._mesh)
        self._attention.shards = shards
        return Shares(shards, self._exchange, branches)

    def end_sharing(self) -> None:
        """After the last step of a run: what the ranks lent each other goes back."""
        if self._attention is not None:
            self._attention.end()

    def cancel(self, own: CancelToken | None) -> CancelToken | None:
        """A token that is set on every rank at the same question, once it is set on one."""
        if self.size == 1:
            return own
        self._cancel = SharedCancel(own, self._exchange)
        return self._cancel

    def rows(self, rows: int) -> SharedRows | None:
        """Those of so many latent rows that this rank decodes; None: all of them, as every rank."""
        if self.size == 1 or rows < self.size:
            return None
        return SharedRows(self._exchange, rows)

    def account(self, seconds: float) -> dict[str, Any]:
        """What the report says of the ranks; empty for one.

        Args:
            seconds: of the stages in which they worked together.
        """
        if self.size == 1:
            return {}
        assert self._attention is not None
        context = self._mesh.context
        waited, sent = self._exchange.traffic.take()
        return {
            "ranks": self.size,
            "guidance_branches": self._mesh.branches,
            "context": context,
            "attention": self._attention.way if context > 1 else "whole",
            "exchange": self._exchanged_by(),
            "backend": backend_of(self._parallel.group, self._device).name(),
            "communication_seconds": round(waited, 6),
            "communication_share": round(waited / seconds, 6) if seconds else 0.0,
            "sent_bytes": sent,
        }

    def _exchanged_by(self) -> str:
        assert self._attention is not None
        by_heads = self._mesh.context > 1 and self._attention.way == "heads"
        return "windows" if by_heads and self._attention.uses_windows else "messages"

    def _compare(self, what: object) -> None:
        parallel = self._parallel
        settings = (parallel.guidance, parallel.context, parallel.windows, parallel.pieces)
        described = repr((*settings, what))
        digest = _bytes_tensor(hashlib.sha256(described.encode()).digest()).to(self._device)
        everybody = self._exchange.to_all(digest, [len(digest)] * self.size).wait()
        of_each = everybody.view(self.size, -1)
        others = (of_each != of_each[0]).any(dim=1).nonzero().flatten().tolist()
        if others:
            self._agreed = InputError(
                f"ranks {others} were called with other arguments than rank 0: all ranks make "
                f"the same calls"
            )
            raise self._agreed

    def _told_by_first(self, text: bytes | None) -> bytes:
        """Bytes of rank 0, where they are given, on every rank."""
        length, data = None, None
        if text is not None:
            data = _bytes_tensor(text).to(self._device)
            length = torch.tensor([len(text)], device=self._device)
        counted = self._exchange.from_first(length, 1, torch.int64).wait()
        size = int(counted.item())
        return self._exchange.from_first(data, size, torch.uint8).wait().cpu().numpy().tobytes()

    def _receive(self, dtype: str, shape: list[int]) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return self._exchange.from_first(None, count, getattr(torch, dtype)).wait().view(shape)


def _bytes_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _taken_beside_torch(device: torch.device) -> int:
    """Bytes of a CUDA device that are none of torch's allocator; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.zeros(1, device=device)  # the context, which is no part of a difference
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _abort(group: Any, device: torch.device) -> None:
    """Ends the kernels that wait for a rank that will not come."""
    backend_of(group, device).abort()
