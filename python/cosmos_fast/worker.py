"""The thread on which an engine does what it is given to do later.

Libraries below torch keep handles, workspaces and plans of convolutions for every thread that calls
them. An engine serves one caller at a time, so one thread is enough for all that hand it work.
"""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")

_EXIT_SECONDS: Final = 30.0
"""How long the interpreter's exit waits for work that has begun, unless it is told otherwise."""


class Worker:
    """One thread, from the first piece of work until nobody holds this any more.

    Work is done in order of arrival. At the interpreter's exit what has not begun is cancelled, and
    what has begun is waited for, for a while: a thread that is cut off inside torch may abort the
    process.
    """

    def __init__(self, name: str, exit_seconds: float | None = None) -> None:
        """
        Args:
            name: the thread's.
            exit_seconds: how long the interpreter's exit waits for what has begun; None: 30.
        """
        self._name, self._exit_seconds = name, exit_seconds
        self._starting = threading.Lock()
        self._todo: _Todo = SimpleQueue()
        self._thread: threading.Thread | None = None

    def line(self) -> Line:
        """Where the work of one customer stands."""
        return Line(self)

    def put(self, piece: _Piece[Any]) -> None:
        """
        Raises:
            RuntimeError: there is no thread to be had.
        """
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._start()
            self._todo.put(piece)

    @property
    def here(self) -> bool:
        """Whether this is the thread, so that waiting for its work would never end."""
        return threading.current_thread() is self._thread

    def _start(self) -> None:
        """Also in a child of a fork, where the thread is gone and what it had to do is not ours."""
        self._todo = SimpleQueue()
        # A daemon, as the exit waits for others before it can tell them that it has come.
        thread = threading.Thread(target=_serve, args=(self._todo,), name=self._name, daemon=True)
        thread.start()
        self._thread = thread
        weakref.finalize(self, _end, weakref.ref(self), self._todo, thread, self._exit_seconds)


class Line:
    """The work of one customer of a worker, apart from the others'."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._open: set[_Piece[Any]] = set()

    def submit(self, work: Callable[[], Value]) -> Future[Value]:
        """What ``work`` returns or raises, once its turn has come.

        The future's callbacks run on the worker's thread, which they must not make wait for what
        stands behind them.

        Raises:
            RuntimeError: there is no thread to be had.
        """
        piece = _Piece(work, self._open)
        self._open.add(piece)
        try:
            self._worker.put(piece)
        except BaseException:
            self._open.discard(piece)
            raise
        return piece.future

    def finish(self) -> None:
        """Cancels what has not begun, and waits for what has; nobody else's work is touched.

        On the worker's own thread, so inside what has begun, nothing is waited for.
        """
        begun = [piece for piece in list(self._open) if not piece.cancel()]
        if not self._worker.here:
            for piece in begun:
                piece.over.wait()


class _Piece(Generic[Value]):
    """One piece of work; in its line's set until it is over, callbacks of its future included."""

    def __init__(self, work: Callable[[], Value], line: set[_Piece[Any]]) -> None:
        self.future: Future[Value] = Future()
        self.over = threading.Event()
        self._work: Callable[[], Value] | None = work
        self._line = line

    def cancel(self) -> bool:
        """False where it has begun. What it would have used is let go of at once."""
        cancelled = self.future.cancel()
        if cancelled:
            self._work = None
        return cancelled

    def do(self) -> None:
        try:
            if not self.future.set_running_or_notify_cancel():
                return
            work, self._work = self._work, None
            assert work is not None
            try:
                made = work()
            except BaseException as error:
                self.future.set_exception(error)
            else:
                self.future.set_result(made)
        finally:
            self._line.discard(self)
            self.over.set()
            # The error's trace holds this frame, and the future the error: a circle.
            del self


_Todo: TypeAlias = "SimpleQueue[_Piece[Any] | None]"


def _serve(todo: _Todo) -> None:
    while (piece := todo.get()) is not None:
        piece.do()
        del piece  # while waiting for the next one, nothing of it is kept


def _end(
    worker: weakref.ref[Worker], todo: _Todo, thread: threading.Thread, exit_seconds: float | None
) -> None:
    """Of a worker that nobody holds and that so has nothing to do; or, while it is still held, of
    the process. In the first case any thread may be here, with any lock, and must not wait."""
    exiting = worker() is not None
    while exiting:
        try:
            piece = todo.get_nowait()
        except Empty:
            break
        if piece is not None:
            piece.cancel()
    todo.put(None)
    if exiting:
        thread.join(_EXIT_SECONDS if exit_seconds is None else exit_seconds)
