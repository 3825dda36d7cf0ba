"""What a person sees of a command at work: on stderr, a live bar on a terminal or plain lines."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

PLAIN_INTERVAL: Final = 5.0
"""Seconds between two plain lines about steps."""


class Display(Protocol):
    """Told about a run as it goes; ``stage`` and ``step`` fit the engine's callbacks.

    ``amount`` is told how many bytes of how many have arrived.
    """

    def stage(self, name: str, state: Literal["start", "end"], seconds: float | None) -> None: ...
    def step(self, step: int, total: int, x0: Any) -> None: ...
    def amount(self, done: int, total: int) -> None: ...
    def say(self, text: str) -> None: ...


@contextlib.contextmanager
def showing(visible: bool = True) -> Iterator[Display]:
    """A display for this process's stderr; the engine's warnings go through it as well.

    Args:
        visible: False shows nothing: another process shows the run.
    """
    if not visible:
        yield NoDisplay()
        return
    from rich.console import Console

    console = Console(stderr=True)
    live = console.is_terminal and not console.no_color and not console.is_dumb_terminal
    shown = _live(console) if live else contextlib.nullcontext(PlainDisplay())
    with shown as display, telling_warnings(display):
        yield display


@contextlib.contextmanager
def telling_warnings(display: Display) -> Iterator[None]:
    """``display`` says what the library warns of, which prints nothing by itself."""
    handler = _Warnings(display)
    logger = logging.getLogger("cosmos_fast")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class NoDisplay:
    """Shows nothing."""

    def stage(self, name: str, state: Literal["start", "end"], seconds: float | None) -> None: ...
    def step(self, step: int, total: int, x0: Any) -> None: ...
    def amount(self, done: int, total: int) -> None: ...
    def say(self, text: str) -> None: ...


class PlainDisplay:
    """One line a stage, and of its steps the first, the last, and one every few seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._steps_began = self._began
        self._last_line = self._began

    def stage(self, name: str, state: Literal["start", "end"], seconds: float | None) -> None:
        if state == "start":
            self._steps_began = self._last_line = time.monotonic()
            self.say(f"{time.monotonic() - self._began:7.1f} s  {name}")

    def step(self, step: int, total: int, x0: Any) -> None:
        now = time.monotonic()
        if 1 < step < total and now - self._last_line < PLAIN_INTERVAL:
            return
        self._last_line = now
        each = (now - self._steps_began) / step
        self.say(
            f"{now - self._began:7.1f} s  step {step} of {total}, "
            f"{each:.2f} s each, {each * (total - step):.0f} s left"
        )

    def amount(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL:
            self._last_line = now
            self.say(f"{now - self._began:7.1f} s  {_gigabytes(done, total)}")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class LiveDisplay:
    """A spinner for the stage that runs, a bar with the time left for the steps."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._stage: tuple[str, TaskID] | None = None

    def stage(self, name: str, state: Literal["start", "end"], seconds: float | None) -> None:
        if self._stage is not None:
            self.progress.remove_task(self._stage[1])
            self._stage = None
        if state == "start":
            self._stage = name, self.progress.add_task(name, total=None, count="")
        else:
            self.say(f"{seconds or 0:9.2f} s  {name}")

    def step(self, step: int, total: int, x0: Any) -> None:
        if self._stage is not None:
            self.progress.update(
                self._stage[1], completed=step, total=total, count=f"{step}/{total}"
            )

    def amount(self, done: int, total: int) -> None:
        if self._stage is not None:
            self.progress.update(
                self._stage[1], completed=done, total=total, count=_gigabytes(done, total)
            )

    def say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _gigabytes(done: int, total: int) -> str:
    return f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"


@contextlib.contextmanager
def _live(console: Console) -> Iterator[LiveDisplay]:
    display = LiveDisplay(console)
    with display.progress:
        yield display


class _Warnings(logging.Handler):
    """Shows what the engine warns of."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.say(f"warning: {record.getMessage()}")
