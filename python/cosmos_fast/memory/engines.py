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


class CudaEngines:
    """The current stream computes, a stream of our own copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)

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
