"""What a card holds while ``memory_rows.py`` measures."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


class Watch:
    """What the card holds, as its driver says, and what torch says of it, stage by stage."""

    def __init__(self, idle: int) -> None:
        self._idle = idle
        self.prefix = ""
        """Of stages from now on."""
        self.context = 0
        """Most bytes of this process that are none of torch's."""
        self.stages: dict[str, dict[str, int]] = {}
        """By stage: most bytes taken by the driver's count, reserved and allocated by torch's, as
        seen every few milliseconds."""
        self._stage = "load"

    def look(self) -> None:
        if not torch.cuda.is_initialized():
            return
        # Torch's own peaks are the process's, and the report's; they are not reset for this.
        reserved = torch.cuda.memory_reserved()
        taken = (taken_of_card() or 0) - self._idle
        if torch.cuda.memory_reserved() == reserved:  # else the two are of different moments
            self.context = max(self.context, taken - reserved)
        counts = {"taken": taken, "reserved": reserved}
        counts["allocated"] = torch.cuda.memory_allocated()
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
            "stage_peaks": self.stages,
        }


@contextmanager
def watched(idle: int) -> Iterator[Watch]:
    """Looks at how much of the card is taken, every few milliseconds."""
    watch, done = Watch(idle), threading.Event()

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
