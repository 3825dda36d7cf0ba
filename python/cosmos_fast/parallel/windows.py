"""Memory of one rank that its partners write into.

A message is packed, carried and unpacked, and on a GPU by multiprocessors that the computation
wants. What is put into a window is carried by the device's copy engines, straight to where it is
read. That it has arrived is told by a message of a byte.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from cosmos_fast.parallel.exchange import Exchange
    from cosmos_fast.parallel.shards import Mesh

ADDRESS_BYTES: Final = 128
"""Room for what a partner has to know of a window."""
TOKEN_BYTES: Final = 16
"""Behind a window's end: by them a partner knows that it has found the right one."""


class WindowError(Exception):
    """Partners cannot write into each other's memory, and send messages instead."""


class Windows(Protocol):
    """The windows of all partners, seen from one of them."""

    own: torch.Tensor
    """uint8, flat: what the others put here."""

    def address(self) -> bytes:
        """What partners have to know, at most ``ADDRESS_BYTES``.

        Raises:
            WindowError: this memory cannot be lent.
        """

    def find(self, addresses: Sequence[bytes], place: int) -> None:
        """Opens the windows of all partners but this one, at ``place``.

        Raises:
            WindowError: one of them cannot be reached.
        """

    def follow(self) -> None:
        """What is put from here on comes after what the current stream was given until now."""

    def put(self, place: int, offset: int, pitch: int, rows: torch.Tensor) -> None:
        """Starts copying ``rows`` (N, K), of which each is contiguous, into a partner's window.

        They have to stay as they are until an exchange that was begun :meth:`aside` has ended.

        Args:
            place: of the partner.
            offset: byte of the window at which the first row goes.
            pitch: bytes from there to the next one.
            rows: on this rank's device.
        """

    def aside(self) -> AbstractContextManager[Any]:
        """An exchange that is started inside comes after all that was put."""

    def close(self) -> None:
        """Lets go of the partners' windows once everything put has been copied."""


def open_windows(exchange: Exchange, mesh: Mesh, size: int) -> Windows | None:
    """Windows of ``size`` bytes on all ranks, which all call this; None on all where one of them
    cannot. The host waits for the device."""
    from cosmos_fast.parallel.cuda_windows import CudaWindows
    from cosmos_fast.parallel.host_windows import HostWindows

    device = exchange.device
    windows: Windows | None = None
    try:
        windows = CudaWindows(device, size) if device.type == "cuda" else HostWindows(size)
        told = windows.address().ljust(ADDRESS_BYTES, b"\0")
    except WindowError:
        windows, told = None, bytes(ADDRESS_BYTES)
    own = torch.frombuffer(bytearray(told), dtype=torch.uint8).to(device)
    everybody = exchange.to_all(own, [ADDRESS_BYTES] * exchange.size).wait().cpu()
    addresses = [each.numpy().tobytes() for each in everybody.view(exchange.size, ADDRESS_BYTES)]
    partners = [addresses[rank] for rank in mesh.partners]
    if windows is None or not all(map(any, addresses)):
        return None
    found = False
    with suppress(WindowError):
        windows.find(partners, mesh.place)
        found = True
    try:
        if all_of(exchange, found):
            return windows
    except BaseException:
        abandon(windows)  # who has heard of all may be writing already
        raise
    windows.close()
    all_of(exchange, True)  # no memory goes while another rank sees it
    return None


_ABANDONED: Final[list[Windows]] = []


def abandon(windows: Windows) -> None:
    """Keeps memory that others may still write into from ever being anything else: after the loss
    of a rank nobody can tell when they have stopped."""
    _ABANDONED.append(windows)


def all_of(exchange: Exchange, this: bool) -> bool:
    """Whether it holds on every rank; the host waits for the device, and for the others."""
    flag = torch.full((1,), int(this), dtype=torch.uint8, device=exchange.device)
    return bool(exchange.to_all(flag, [1] * exchange.size).wait().all())
