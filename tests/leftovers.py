"""What the kernel is still putting away is not yet a leak."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Found = TypeVar("Found", bound="Collection[Any]")

PATIENCE = 20.0
"""Seconds. What is truly left behind in these tests stays for minutes."""


def left_for_good(look: Callable[[], Found]) -> Found:
    """What ``look`` finds in the end: nothing as soon as it finds nothing, or what stays.

    A process that was sent SIGKILL and a thread that was joined stand in ``/proc`` until a
    processor is free to take them off; on a busy machine that can be seen.
    """
    deadline = time.monotonic() + PATIENCE
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found
