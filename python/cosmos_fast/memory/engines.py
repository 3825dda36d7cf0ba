"""A device's two queues: what is asked of one runs in order, and beside the other."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class Engines(Protocol):
    """Copying to a device, and computing on it."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queues a copy from host memory."""

    def copying(self) -> AbstractContextManager[Any]:
        """What the body queues on the current stream goes to the copy queue."""

    def arrived(self) -> Any:
        """A mark in the copy queue, behind all that was asked of it."""

    def reached(self) -> Any:
        """A mark in the compute queue."""

    def compute_after(self, mark: Any) -> None:
        """The compute queue waits for a mark of the copy queue."""

    def copy_after(self, mark: Any) -> None:
        """The copy queue waits for a mark of the compute queue."""

    def tidy(self) -> None:
        """Gives memory that nobody uses back to the device."""

    def open_heap(self, size: int) -> None:
        """The next tensors lie in one stretch of ``size`` bytes, as far as they find room there."""

    def outside(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy that lies in no heap: what outlives a stage would hold on to all of it."""


class CudaEngines:
    """The current stream computes, a stream of our own copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._shelf = torch.cuda.Stream(device)
        """Nothing runs on it. The allocator keeps the memory of each stream apart."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)

    def copying(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = torch.cuda.stream(self._copies)
        return context

    def arrived(self) -> torch.cuda.Event:
        event: torch.cuda.Event = self._copies.record_event()
        return event

    def reached(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.current_stream(self._device).record_event()
        return event

    def compute_after(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def copy_after(self, mark: torch.cuda.Event) -> None:
        self._copies.wait_event(mark)

    def tidy(self) -> None:
        # Blocks of an earlier stage's sizes fit none of the next: kept, they would count against
        # the budget. Others in this process lose cached memory, never memory in use.
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()

    def open_heap(self, size: int) -> None:
        # cuBLAS keeps a workspace for the stream from its first product on; in a heap, it would
        # hold on to all of it.
        corner = torch.zeros(16, 16, dtype=torch.bfloat16, device=self._device)
        torch.mm(corner, corner)
        del corner
        # Let go of at once, it is the largest free block, which the allocator splits and joins.
        torch.empty(size, dtype=torch.uint8, device=self._device)

    def outside(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(self._shelf):
            copy = torch.empty_like(tensor)
        copy.copy_(tensor)
        copy.record_stream(torch.cuda.current_stream(self._device))
        return copy


class HostEngines:
    """A CPU in the place of a device: everything happens when it is asked for, in that order."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def copying(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def arrived(self) -> None:
        """Nothing to wait for."""

    def reached(self) -> None:
        """Nothing to wait for."""

    def compute_after(self, mark: None) -> None:
        """It is there."""

    def copy_after(self, mark: None) -> None:
        """It is free."""

    def tidy(self) -> None:
        """The host's allocator keeps nothing worth mentioning."""

    def open_heap(self, size: int) -> None:
        """The host's allocator has its own."""

    def outside(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor
