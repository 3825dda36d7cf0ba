"""A rank that ends before the ranks have met, and is told to be gone before it is.

A process's pipes close a moment before it can be waited for; here that moment is a second long.
"""

from __future__ import annotations

import os
import time

from cosmos_fast.cli.launch import _Others
from cosmos_fast.config import Seat
from cosmos_fast.parallel import LOOPBACK

EXIT_CODE = 7


class Vanishing:
    """Ends the process in which it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return vanish, ()


def vanish() -> None:
    os.closerange(3, 256)
    time.sleep(1)
    os._exit(EXIT_CODE)


def share(*_: object) -> None:
    """Never reached."""


if __name__ == "__main__":
    _Others((share, {"a": Vanishing()}, "cpu"), [Seat(1, 2, 1, LOOPBACK, 1, store_is_served=True)])
    time.sleep(60)  # in the place of a group that waits for all ranks
