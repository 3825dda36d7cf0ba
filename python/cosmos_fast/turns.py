"""A lock that serves its callers in order of arrival."""

import threading
from collections import deque
from types import TracebackType


class Turns:
    """``with turns:`` waits for everyone who came before; not re-entrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._taken = False
        self._owner: int | None = None

    @property
    def mine(self) -> bool:
        """Whether this thread has its turn now, so that waiting for another one would never end."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                self._owner = threading.get_ident()
                return
            turn = threading.Event()
            self._waiting.append(turn)
        try:
            turn.wait()
        except BaseException:
            self._leave_queue(turn)
            raise
        self._owner = threading.get_ident()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        with self._guard:
            self._owner = None
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False

    def _leave_queue(self, turn: threading.Event) -> None:
        """Interrupted while waiting: step out, or pass on a turn that came at the same moment."""
        with self._guard:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return
        self._pass_on()
