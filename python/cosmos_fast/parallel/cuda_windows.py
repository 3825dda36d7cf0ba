"""Windows of ranks on the GPUs of one machine: memory of torch's allocator, lent by CUDA's IPC.

The copies go through the driver: torch would have a strided one made by a kernel, on the
multiprocessors that products and attention keep all of in one static round, and those that it holds
come late. Copy engines hold none, and carry rows of two kilobytes at nine tenths of what they carry
in one piece.
"""

from __future__ import annotations

import ctypes
import os
import struct
from ctypes import POINTER, byref, c_char, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch

from cosmos_fast.parallel.windows import TOKEN_BYTES, WindowError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

_HANDLE_BYTES: Final = 64
_ADDRESS: Final = struct.Struct(f"<{_HANDLE_BYTES}sq{TOKEN_BYTES}s")
"""Handle of an allocation, where the window lies in it, token."""
_ON_DEVICE: Final = 2
"""``CU_MEMORYTYPE_DEVICE``"""
_LAZY_PEER_ACCESS: Final = 1
"""``CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS``"""


class _Handle(ctypes.Structure):
    _fields_: ClassVar = [("bytes", c_char * _HANDLE_BYTES)]


class _Copy2D(ctypes.Structure):
    """``CUDA_MEMCPY2D``"""

    _fields_: ClassVar = [
        field
        for side in ("src", "dst")
        for field in (
            (f"{side}_x_bytes", c_size_t),
            (f"{side}_y", c_size_t),
            (f"{side}_type", c_int),
            (f"{side}_host", c_void_p),
            (f"{side}_device", c_ulonglong),
            (f"{side}_array", c_void_p),
            (f"{side}_pitch", c_size_t),
        )
    ] + [("width_bytes", c_size_t), ("height", c_size_t)]


@cache
def _driver() -> Any:
    """
    Raises:
        WindowError: it is not where a driver is.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuMemGetAddressRange_v2.argtypes = [
            POINTER(c_ulonglong),
            POINTER(c_size_t),
            c_ulonglong,
        ]
        driver.cuIpcGetMemHandle.argtypes = [POINTER(_Handle), c_ulonglong]
        driver.cuIpcOpenMemHandle_v2.argtypes = [POINTER(c_ulonglong), _Handle, c_uint]
        driver.cuIpcCloseMemHandle.argtypes = [c_ulonglong]
        driver.cuMemcpyDtoH_v2.argtypes = [c_void_p, c_ulonglong, c_size_t]
        driver.cuMemcpy2DAsync_v2.argtypes = [POINTER(_Copy2D), c_void_p]
    except (OSError, AttributeError) as error:
        raise WindowError(str(error)) from error
    return driver


def _done(result: int, what: str) -> None:
    """
    Raises:
        WindowError: the driver would not.
    """
    if result:
        raise WindowError(f"{what}: CUDA error {result}")


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all windows of a device, one after the other: torch's allocator keeps memory for
    each stream that it has seen, and each new one may be that on which weights come."""
    return torch.cuda.Stream(device)


class CudaWindows:
    """Copies go by a stream of their own."""

    def __init__(self, device: torch.device, size: int) -> None:
        """
        Raises:
            WindowError: there is no driver.
        """
        self._size = size
        self._token = os.urandom(TOKEN_BYTES)
        self._driver = _driver()
        whole = torch.empty(size + TOKEN_BYTES, dtype=torch.uint8, device=device)
        whole[size:] = torch.frombuffer(bytearray(self._token), dtype=torch.uint8).to(device)
        self.own = whole[:size]
        self._stream = _stream(device)
        self._starts: list[int] = []
        """Of every partner's window, as this process sees it."""
        self._opened: list[int] = []
        """What to close: the allocations that those lie in."""

    def address(self) -> bytes:
        torch.cuda.current_stream(self.own.device).synchronize()  # the token is written
        base, size, handle = c_ulonglong(), c_size_t(), _Handle()
        start = self.own.data_ptr()
        _done(
            self._driver.cuMemGetAddressRange_v2(byref(base), byref(size), start), "address range"
        )
        _done(self._driver.cuIpcGetMemHandle(byref(handle), base), "export of memory")
        raw = ctypes.string_at(ctypes.addressof(handle), _HANDLE_BYTES)
        return _ADDRESS.pack(raw, start - base.value, self._token)

    def find(self, addresses: Sequence[bytes], place: int) -> None:
        try:
            for other, address in enumerate(addresses):
                self._starts.append(
                    self.own.data_ptr() if other == place else self._mapped(address)
                )
        except WindowError:
            self._let_go()
            raise

    def _mapped(self, address: bytes) -> int:
        raw, offset, token = _ADDRESS.unpack(address[: _ADDRESS.size])
        base, handle = c_ulonglong(), _Handle()
        ctypes.memmove(ctypes.addressof(handle), raw, _HANDLE_BYTES)
        with torch.cuda.device(self.own.device):
            opened = self._driver.cuIpcOpenMemHandle_v2(byref(base), handle, _LAZY_PEER_ACCESS)
            _done(opened, "import of memory")
            self._opened.append(base.value)
            start: int = base.value + offset
            found = ctypes.create_string_buffer(TOKEN_BYTES)
            read = self._driver.cuMemcpyDtoH_v2(found, start + self._size, TOKEN_BYTES)
        _done(read, "reading a partner's memory")
        if found.raw != token:
            raise WindowError("this handle is that of other memory here")
        return start

    def follow(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.own.device))

    def put(self, place: int, offset: int, pitch: int, rows: torch.Tensor) -> None:
        count, width = rows.shape
        if not count:
            return
        each = rows.element_size()
        copy = _Copy2D(
            src_type=_ON_DEVICE,
            src_device=rows.data_ptr(),
            src_pitch=rows.stride(0) * each if count > 1 else width * each,
            dst_type=_ON_DEVICE,
            dst_device=self._starts[place] + offset,
            dst_pitch=pitch,
            width_bytes=width * each,
            height=count,
        )
        result = self._driver.cuMemcpy2DAsync_v2(byref(copy), self._stream.cuda_stream)
        if result:  # all of them could be reached: the device has failed since
            raise torch.AcceleratorError(f"copy to a partner: CUDA error {result}")

    def aside(self) -> AbstractContextManager[Any]:
        aside: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return aside

    def close(self) -> None:
        torch.cuda.current_stream(self.own.device).synchronize()
        self._stream.synchronize()
        self._let_go()

    def _let_go(self) -> None:
        for base in self._opened:
            self._driver.cuIpcCloseMemHandle(base)
        self._opened.clear()
        self._starts.clear()
