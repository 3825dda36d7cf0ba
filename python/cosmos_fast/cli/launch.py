"""``--num_gpus``: ranks that share videos, started by torchrun or by the command itself.

A command of its own starts the other ranks as processes and is rank 0. Whoever dies, by whatever
hand, the others end within seconds, and rank 0 says why.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.exits import ExitCode, ToldByFirst, UsageError, exit_code_of, message_of
from cosmos_fast.cli.interrupt import GRACE, Interrupted, force_end, interruptible

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from cosmos_fast import Parallel
    from cosmos_fast.cli.settings import Settings
    from cosmos_fast.config import Seat
    from cosmos_fast.errors import RankLost

_PARTING: Final = 5.0
"""Seconds that a rank has to end after the work is finished."""
_NEWS: Final = 0.5
"""Seconds in which a rank that is told to end waits for the news that another one was lost."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among the ranks that share videos."""

    device: str
    first: bool = True
    """Whether it shows progress, writes and prints."""
    parallel: Parallel | None = None
    """None for one rank."""


Share = Callable[[dict[str, Any], Place], object]
"""What every rank does, given the command's flags. A function of a module: processes that this
program starts find it by its name."""


@contextlib.contextmanager
def sharing(share: Share, flags: dict[str, Any], settings: Settings) -> Iterator[Place]:
    """The place of this process, with the others around it while the block runs.

    Args:
        share: what the block does, on the ranks that this process starts.
        flags: the command's, for ``share``.

    Raises:
        ToldByFirst: rank 0 of torchrun's failed, and this is another.
        UsageError: more GPUs than there are, or not as many as torchrun started processes.
        RankLost: a rank died or failed.
    """
    from cosmos_fast.config import Seat

    seat, asked = Seat.from_torchrun(), settings.num_gpus
    if seat is not None:
        if asked not in (None, seat.size):
            raise UsageError(
                f"--num_gpus {asked}: torchrun started {seat.size} processes; give the same "
                f"number, or leave --num_gpus out"
            )
        with _untold(seat), _seated(seat, settings.device) as place:
            yield place
    elif asked in (None, 1):
        yield Place(settings.device)
    else:
        assert asked is not None
        with _launched(asked, share, flags, settings.device) as place:
            yield place


@contextlib.contextmanager
def _untold(seat: Seat) -> Iterator[None]:
    """What rank 0 tells the user need not be told by each of the others."""
    from cosmos_fast.errors import CosmosFastError, RankLost

    try:
        yield
    except CosmosFastError as error:
        lost = error if isinstance(error, RankLost) else error.__cause__
        if seat.rank and isinstance(lost, RankLost) and lost.agreed:
            raise ToldByFirst(exit_code_of(error)) from error
        raise


def is_first() -> bool:
    """Whether this process tells the user what becomes of the command: of torchrun's, one does."""
    from cosmos_fast.config import Seat
    from cosmos_fast.errors import InputError

    try:
        seat = Seat.from_torchrun()
    except InputError:
        return True
    return seat is None or seat.rank == 0


def refuse_torchrun(command: str, cure: str) -> None:
    """For commands whose work one process does: torchrun's would all do it, over the same files.

    Raises:
        UsageError: torchrun started several of this process.
    """
    from cosmos_fast.config import Seat

    seat = Seat.from_torchrun()
    if seat is not None:
        raise UsageError(
            f"torchrun started {seat.size} processes, and {command} shares no video between them: "
            f"run it without torchrun; {cure}"
        )


def run_rank(share: Share, flags: dict[str, Any], device: str, seat: Seat) -> None:
    """What a rank that this program has started does: its share of the work, without a word.

    Ends the process.
    """
    from cosmos_fast.errors import CosmosFastError

    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()
    code, seated = ExitCode.OK, False
    try:
        with interruptible(tells=False) as stop_raising:
            try:
                with _seated(seat, device) as place:
                    seated = True
                    share(flags, place)
            except Exception as error:
                stop_raising()
                code = exit_code_of(error)
                if not seated or not isinstance(error, CosmosFastError):
                    whose = f"error: rank {seat.rank}"
                    print(f"{whose}: {message_of(error)}", file=sys.stderr, flush=True)
    except Interrupted as interrupted:
        code = interrupted.exit_code
    os._exit(code)  # taking torch down in good order takes seconds


@contextlib.contextmanager
def _seated(seat: Seat, asked: str, store: Any = None) -> Iterator[Place]:
    """This process as a rank: its device, its group, and an end should another rank be lost.

    Args:
        asked: ``--device``.
    """
    import torch

    from cosmos_fast import Parallel
    from cosmos_fast.config import keep_multicast_off
    from cosmos_fast.parallel import join, leave

    keep_multicast_off()
    device = torch.device(_device_of(seat, asked))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    over, is_known = threading.Event(), threading.Event()
    known: list[RankLost] = []

    def end(lost: RankLost) -> None:
        known.append(lost)
        is_known.set()
        if not over.wait(GRACE):
            force_end(ExitCode.FAILED, str(lost) if seat.rank == 0 else "")

    try:
        group = join(seat, device, store)
        yield Place(str(device), seat.rank == 0, Parallel(group, on_loss=end))
        leave(group, device)
    except Interrupted as interrupted:
        # torchrun ends the ranks that are left as soon as one has died: that was the reason. It
        # may be faster than the ranks' own watch.
        if store is None and interrupted.exit_code is ExitCode.TERMINATED:
            is_known.wait(_NEWS)
            if known and not known[0].interrupted:
                interrupted.cause = str(known[0])
        raise
    finally:
        over.set()


def _device_of(seat: Seat, asked: str) -> str:
    import torch

    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if asked not in ("auto", "cuda"):
        raise UsageError(f"--device {asked}: each of {seat.size} ranks takes its own GPU; use cuda")
    there = torch.cuda.device_count()
    if seat.local_rank >= there:
        raise UsageError(
            f"rank {seat.rank} is process {seat.local_rank} of this machine, where torch sees "
            f"{there} CUDA devices: start as many processes as there are GPUs"
        )
    return f"cuda:{seat.local_rank}"


@contextlib.contextmanager
def _launched(size: int, share: Share, flags: dict[str, Any], device: str) -> Iterator[Place]:
    """This process as rank 0 of ``size``, the others as its children."""
    import torch

    from cosmos_fast.config import Seat, keep_multicast_off
    from cosmos_fast.errors import RankLost
    from cosmos_fast.parallel import LOOPBACK, serve_store

    there = torch.cuda.device_count()
    if device != "cpu" and there < size:
        raise UsageError(
            f"--num_gpus {size}: torch sees {there} CUDA devices; ask for fewer, or for ranks on "
            f"the CPU with --device cpu"
        )
    keep_multicast_off()
    store = serve_store(size)
    seats = [
        Seat(rank, size, rank, LOOPBACK, store.port, store_is_served=True) for rank in range(size)
    ]
    others = _Others((share, flags, device), seats[1:])
    try:
        with _seated(seats[0], device, store) as place:
            yield place
        others.part()
    except RankLost as error:
        raise RankLost(others.explained(str(error))) from error
    finally:
        others.end()


class _Others:
    """The ranks that this process has started."""

    def __init__(self, given: tuple[Share, dict[str, Any], str], seats: list[Seat]) -> None:
        context = multiprocessing.get_context("spawn")
        self._over = threading.Event()
        self._ranks: dict[int, SpawnProcess] = {}
        for seat in seats:
            process = context.Process(target=run_rank, args=(*given, seat), daemon=True)
            process.start()
            self._ranks[seat.rank] = process
        threading.Thread(target=self._look, daemon=True, name="ranks").start()

    def explained(self, message: str) -> str:
        """``message``, and how those ranks ended that have."""
        for process in self._ranks.values():
            process.join(0.2)
        return "; ".join([message, *self._ends()])

    def part(self) -> None:
        """Lets the others end by themselves: the work is finished."""
        self._over.set()
        for process in self._ranks.values():
            process.join(_PARTING)

    def end(self) -> None:
        """Ends those that have not."""
        self._over.set()
        for process in self._ranks.values():
            process.terminate()
        for process in self._ranks.values():
            process.join(GRACE)
            process.kill()

    def _look(self) -> None:
        """Ends this process if another has failed and this one does not notice by itself."""
        waiting = {process.sentinel for process in self._ranks.values()}
        while waiting and not self._over.is_set():
            ended = set(multiprocessing.connection.wait(list(waiting)))
            waiting -= ended
            for process in self._ranks.values():
                if process.sentinel in ended:
                    process.join()  # its pipe closes a moment before its exit code is known
            if self._ends() and not self._over.wait(GRACE):
                force_end(ExitCode.FAILED, "; ".join(self._ends()))

    def _ends(self) -> list[str]:
        return [
            f"rank {rank} was ended by {signal.Signals(-process.exitcode).name}"
            if process.exitcode < 0
            else f"rank {rank} ended with exit code {process.exitcode}"
            for rank, process in self._ranks.items()
            if process.exitcode
        ]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(ExitCode.FAILED)
