"""What a card holds while ``memory_rows.py`` measures."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


class Account:
    """What of a card is one process's own, from row to row."""

    def __init__(self) -> None:
        self._others: int | None = None
        self.context = 0
        """Most bytes of this process that are none of torch's; they only grow."""

    def begin(self, taken: int) -> None:
        """Before a row.

        Args:
            taken: bytes of the card. They are other processes' before the first row alone: later,
                this one's context is among them, and what its engine keeps.
        """
        if self._others is None:
            self._others = taken

    def own(self, taken: int, reserved: int) -> int:
        """Bytes of the process, of ``taken`` of the card and torch's ``reserved`` at one time."""
        own = taken - (self._others or 0)
        self.context = max(self.context, own - reserved)
        return own


class Watch:
    """What the card holds, as its driver says, and what torch says of it, stage by stage."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self.prefix = ""
        """Of stages from now on."""
        self.stages: dict[str, dict[str, int]] = {}
        """By stage: most bytes taken by the driver's count, reserved and allocated by torch's, as
        seen every few milliseconds."""
        self._stage = "load"
        self._rests = False

    @property
    def context(self) -> int:
        return self._account.context

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Does not look, for a body that is timed: counting takes the interpreter from it, and the
        driver's lock."""
        self._rests = True
        try:
            yield
        finally:
            self._rests = False

    def look(self) -> None:
        if self._rests or not torch.cuda.is_initialized():
            return
        # Torch's own peaks are the process's, and the report's; they are not reset for this.
        reserved = torch.cuda.memory_reserved()
        taken = taken_of_card() or 0
        if torch.cuda.memory_reserved() == reserved:  # else the two are of different moments
            self.count(taken, reserved, torch.cuda.memory_allocated())

    def count(self, taken: int, reserved: int, allocated: int) -> None:
        """What there was of the card and of torch at one time."""
        counts = {"taken": self._account.own(taken, reserved), "reserved": reserved}
        counts["allocated"] = allocated
        seen = self.stages.setdefault(self._stage, counts)
        for name, count in counts.items():
            seen[name] = max(seen[name], count)

    def on_stage(self, name: str, state: str, seconds: float | None) -> None:
        """For a generation."""
        self.look()
        self._stage = self.prefix + (name if state == "start" else f"after {name}")

    def as_dict(self) -> dict[str, Any]:
        if not self.stages:
            return {}
        timed = [seen["taken"] for stage, seen in self.stages.items() if "first" not in stage]
        return {
            "peak_bytes": max(seen["taken"] for seen in self.stages.values()),
            "timed_peak_bytes": max(timed),
            "context_bytes": self.context,
            "peak_rule": "seen: the card's count, less what was taken before the process began",
            "stage_peaks": self.stages,
        }


@contextmanager
def watched(account: Account) -> Iterator[Watch]:
    """Looks at how much of the card is taken, every few milliseconds."""
    watch, done = Watch(account), threading.Event()

    def look() -> None:
        while not done.wait(0.003):
            watch.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()
        watch.look()


def tidy() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def taken_of_card() -> int | None:
    """Bytes of the card that are taken by anyone, as the driver says."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(0)
    return int(total - free)
