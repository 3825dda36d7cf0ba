"""Whether anything at all can be made in a budget, told before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cosmos_fast.errors import MemoryPlanError
from cosmos_fast.memory.budget import gib
from cosmos_fast.memory.plan import AUTO_SHARE, smallest
from cosmos_fast.types import Size

if TYPE_CHECKING:
    from cosmos_fast.memory.budget import Budget
    from cosmos_fast.memory.cards import Card
    from cosmos_fast.memory.models import Workload
    from cosmos_fast.memory.plan import Plan

_SMALLEST_SIZE: Final = Size(16, 16)
_SMALLEST_FRAMES: Final = 5


@dataclass(frozen=True)
class Room:
    """What an engine has of a device, and what of that is gone before it makes anything."""

    card: Card
    budget: Budget
    reserved_bytes: int
    reserved_for: str
    """For whom, in words."""
    parked_bytes: int
    """What of it would remain, did they rest elsewhere while they do not run."""


def refuse_the_hopeless(workload: Workload, room: Room, plan: Plan) -> None:
    """
    Args:
        workload: of the checkpoint's own size.
        plan: one that would do for it, in more room.

    Raises:
        MemoryPlanError: not even the smallest clip can be made.
    """
    budget, reserved = room.budget.device, room.reserved_bytes
    clip = replace(
        workload,
        size=_SMALLEST_SIZE,
        num_frames=_SMALLEST_FRAMES,
        num_conditional_frames=1,
        num_steps=1,
        guided=False,
        text=None,
    )
    least = smallest(clip, room.card, room.budget, reserved=reserved)
    if budget is None or least <= budget:
        return
    fixed = room.card.context_bytes + room.card.workspace_bytes
    held = cure = ""
    if reserved:
        held = f"{reserved} bytes ({gib(reserved)}) are reserved ({room.reserved_for}), "
        without = 'without one, on record: guardrail=NoGuardrail(reason="...")'
        elsewhere = 'rest elsewhere (placement="host" or "disk")'
        parked = least - reserved + room.parked_bytes
        if parked <= budget:
            cure = f"; or let guardrail and upsampler {elsewhere}, or go {without}"
        else:
            cure = (
                f"; or let guardrail and upsampler {elsewhere}, with at least "
                f"{gib(parked, up=True)} for the largest of them in its turn, or go {without}"
            )
    error = MemoryPlanError(
        f"{budget} bytes ({gib(budget)}) of device memory cannot hold this engine: {held}"
        f"{gib(fixed)} are fixed (context, workspaces), and the smallest clip takes "
        f"{gib(least - reserved - fixed)}; {least} bytes ({gib(least, up=True)}) is the smallest "
        f"budget in which anything can be made, {gib(plan.peak_bytes, up=True)} that for the "
        f"checkpoint's own size. Give a larger budget{cure}"
    )
    error.plan = plan
    raise error


def free_bytes(device: torch.device, card: Card) -> int:
    """What an engine that is about to be made can have of ``device``, its fixed costs included."""
    free, total = torch.cuda.mem_get_info(device)
    held, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    free += held - used  # cached by torch, in nobody's use
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    if fraction is not None:
        free = min(free, int(fraction(device) * total) - used)
    return int(free * AUTO_SHARE) + card.context_bytes


class Taken(NamedTuple):
    """Of a device, in bytes."""

    peak: int
    """Segments of torch's allocator at their most during the run, with what the card is said to
    lose to a context: comparable with a plan's peak. What other engines and the host program hold
    through torch is in it."""
    beside_torch: int
    """What is taken of the device now and is none of torch's: this process's context and kernels,
    and all that other processes hold."""


class Gauge:
    """The most that torch's allocator holds of a CUDA device from some moment on.

    torch counts the most since the process began, or since the host program reset its statistics;
    they are not ours to reset. A new maximum shows between two readings. Where there is none: from
    one :meth:`look` to the next the allocator only grew, as it gives segments back when it is told
    to, and a look comes before that.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._seen = 0

    def start(self) -> None:
        """What was held before counts no more."""
        self._before, self._seen = torch.cuda.max_memory_reserved(self._device), 0

    def look(self) -> None:
        """Segments are about to be given back."""
        self._seen = max(self._seen, torch.cuda.memory_reserved(self._device))

    def peak(self) -> int:
        """Bytes, from :meth:`start` until now."""
        self.look()
        most = torch.cuda.max_memory_reserved(self._device)
        return int(most if most > self._before else self._seen)


def taken(device: torch.device, card: Card, gauge: Gauge) -> Taken:
    """What is taken of ``device``, a CUDA device, by its driver and by ``gauge``."""
    free, total = torch.cuda.mem_get_info(device)
    beside = total - free - torch.cuda.memory_reserved(device)
    return Taken(gauge.peak() + card.context_bytes, beside)
