"""How far a long evaluation is: bars with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from types import TracebackType

EVERY: Final = 15.0
"""Seconds between lines where nobody looks at a terminal."""


class Meter:
    """Counts the chunks that parts of an evaluation imagine; a context manager."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("futures, left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(file=sys.stderr),
        )
        self._terminal = self._bars.console.is_terminal
        self._part, self._done, self._of = "", 0, 0
        self._began = self._told = 0.0
        self._first = 0.0, 0

    def __enter__(self) -> Meter:
        if self._terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal:
            self._bars.stop()

    def start(self, part: str, futures: int) -> None:
        """A part that imagines so many chunks at most."""
        self._part, self._done, self._of = part, 0, futures
        self._began = self._told = time.monotonic()
        self._bar = self._bars.add_task(part, total=futures)

    def tell(self, futures: int) -> None:
        """So many more are there."""
        now = time.monotonic()
        if not self._done:
            # What a part does before it imagines anything says nothing about its pace.
            self._first = now, futures
        self._done += futures
        if self._terminal:
            self._bars.update(self._bar, completed=self._done)
        elif now - self._told >= EVERY:
            self._told = now
            since, already = self._first
            pace = (now - since) / max(1, self._done - already)
            left = f"{pace * max(0, self._of - self._done):.0f} s" if pace else "?"
            took = now - self._began
            self._say(f"{self._done} of {self._of} futures, {took:.0f} s, at most {left} left")

    def end(self) -> float:
        """The part is over, early perhaps; returns its seconds."""
        took = time.monotonic() - self._began
        if self._terminal:
            self._bars.update(self._bar, total=self._done, completed=self._done)
        else:
            self._say(f"{self._done} futures in {took:.1f} s")
        return took

    def _say(self, what: str) -> None:
        print(f"{self._part}: {what}", file=sys.stderr, flush=True)
