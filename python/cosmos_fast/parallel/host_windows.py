"""Windows of ranks that compute on the CPUs of one machine: anonymous files that they all map."""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.parallel.windows import TOKEN_BYTES, WindowError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

_ADDRESS: Final = struct.Struct(f"<qq{TOKEN_BYTES}s")
"""Process, descriptor in it, token."""


class HostWindows:
    """A copy is done when :meth:`put` returns. Nothing is left of a process that dies."""

    def __init__(self, size: int) -> None:
        """
        Raises:
            WindowError: no such file can be made.
        """
        try:
            self._descriptor = os.memfd_create("cosmos-fast window")
            os.ftruncate(self._descriptor, size + TOKEN_BYTES)
            mapped = mmap.mmap(self._descriptor, size + TOKEN_BYTES)
        except (AttributeError, OSError) as error:
            raise WindowError(str(error)) from error
        self._size = size
        self._token = os.urandom(TOKEN_BYTES)
        mapped[size:] = self._token
        self.own = torch.frombuffer(mapped, dtype=torch.uint8, count=size)
        self._partners: list[torch.Tensor] = []

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def address(self) -> bytes:
        return _ADDRESS.pack(os.getpid(), self._descriptor, self._token)

    def find(self, addresses: Sequence[bytes], place: int) -> None:
        for other, address in enumerate(addresses):
            self._partners.append(self.own if other == place else self._mapped(address))

    def _mapped(self, address: bytes) -> torch.Tensor:
        process, descriptor, token = _ADDRESS.unpack(address[: _ADDRESS.size])
        try:
            with Path(f"/proc/{process}/fd/{descriptor}").open("r+b") as file:
                mapped = mmap.mmap(file.fileno(), self._size + TOKEN_BYTES)
        except (OSError, ValueError) as error:
            raise WindowError(str(error)) from error
        if mapped[self._size :] != token:
            raise WindowError("a process of another machine has this number here")
        return torch.frombuffer(mapped, dtype=torch.uint8, count=self._size)

    def follow(self) -> None:
        pass

    def put(self, place: int, offset: int, pitch: int, rows: torch.Tensor) -> None:
        count, width = rows.shape
        if not count:
            return
        window = self._partners[place].view(rows.dtype)
        each = rows.element_size()
        window.as_strided((count, width), (pitch // each, 1), offset // each).copy_(rows)

    def aside(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def close(self) -> None:
        self._partners.clear()
