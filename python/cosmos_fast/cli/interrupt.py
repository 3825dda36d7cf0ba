"""Ctrl-C and SIGTERM: a clean way out within seconds, whatever the process is busy with.

The first signal raises in the main thread, so that every ``with`` on the way cleans up behind
itself. A thread watches: should the way out take longer than :data:`GRACE`, or a second signal
come, it removes temporary files, ends child processes, and ends the process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from cosmos_fast.cli.exits import ExitCode

GRACE: Final = 2.5
"""Seconds from the first signal to the forced end."""

SIGNALS: Final = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}
"""The signals that end a command, and the exit code of each."""

_words: Final[list[Callable[[], str]]] = []
"""What blocks that are under way have to add to the reason of an early end."""


class Interrupted(BaseException):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = SIGNALS[signal.Signals(number)]
        self.cause: str | None = None
        """What had the signal sent, where that is known."""


@contextlib.contextmanager
def interruptible(*, tells: bool = True) -> Iterator[Callable[[], None]]:
    """For the time of the block signals raise :class:`Interrupted`, and the watch is kept.

    Puts back the handlers that were there before. For the main thread of the main interpreter.

    Args:
        tells: whether the watch says why it ends the process; another one may tell the user.

    Yields:
        What makes signals raise no more until the end of the block, the watch remaining: to be
        called before the words that say how the work ended, so that they are said whole.
    """
    inlet, outlet = os.pipe()
    for end in (inlet, outlet):
        os.set_blocking(end, False)
    done = threading.Event()
    previous_handlers = {number: signal.signal(number, _raise) for number in SIGNALS}
    previous_wakeup = signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(inlet, done, tells), daemon=True, name="signals")
    watch.start()
    try:
        yield _stop_raising
    finally:
        done.set()
        signal.set_wakeup_fd(previous_wakeup)
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        os.write(outlet, b"\0")
        watch.join()
        os.close(inlet)
        os.close(outlet)


@contextlib.contextmanager
def leaving(words: Callable[[], str]) -> Iterator[None]:
    """Whatever ends the block early is told with ``words()``, unless that is nothing.

    They are a note on the error, and follow the reason where the process is ended by force.
    """
    _words.append(words)
    try:
        yield
    except BaseException as error:
        if said := words():
            error.add_note(said)
        raise
    finally:
        _words.remove(words)


def _watch(inlet: int, done: threading.Event, tells: bool) -> None:
    first = _next_signal(inlet, None)
    if first is None:
        return
    _next_signal(inlet, GRACE)
    if not done.is_set():
        force_end(SIGNALS[first], "interrupted" if tells else "")


def force_end(code: ExitCode, why: str) -> None:
    """Ends this process from a side thread; its children and unfinished files go with it."""
    children = _children()
    unfinished = [path for pid in ("self", *map(str, children)) for path in _temporaries(pid)]
    for pid in children:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for path in unfinished:
        with contextlib.suppress(OSError):
            path.unlink()
    told = "; ".join([why, *filter(None, (words() for words in _words))])
    os.write(2, f"error: {told}\n".encode() if why else b"")
    os._exit(code)


def _raise(number: int, frame: FrameType | None) -> None:
    _stop_raising()
    raise Interrupted(number)


def _stop_raising() -> None:
    for each in SIGNALS:
        signal.signal(each, _leave_to_the_watch)


def _leave_to_the_watch(number: int, frame: FrameType | None) -> None:
    """A second signal must not break the cleaning up that the first one set off."""


def _next_signal(inlet: int, timeout: float | None) -> signal.Signals | None:
    """The next signal of :data:`SIGNALS`, or None at the end of the watch or the time."""
    while select.select([inlet], [], [], timeout)[0]:
        for number in os.read(inlet, 64):
            if number == 0:
                return None
            if number in SIGNALS:
                return signal.Signals(number)
    return None


def _children() -> list[int]:
    """Direct children of this process. Linux only; elsewhere ffmpeg ends when its pipe closes."""
    found: list[int] = []
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, listing.read_text().split())
    return found


def _temporaries(pid: str) -> list[Path]:
    """Files under a temporary name that process ``pid`` holds open: ours, and nobody else's."""
    from cosmos_fast.files import TEMPORARY_PREFIX

    found: list[Path] = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            path = link.readlink()
            if path.name.startswith(TEMPORARY_PREFIX):
                found.append(path)
    return found
