"""Weights that rest in host memory: a block's parameters side by side, moved by one copy."""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from cosmos_fast.errors import InputError, MemoryPlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from cosmos_fast.memory.engines import Engines

PARAMETER_ALIGNMENT: Final = 256
"""Bytes at which each parameter of a block starts, as kernels and copies like it."""


_GROUPS: Final = Path("/sys/fs/cgroup")
_ANY_CONTEXT: Final = 1
"""cudaHostRegisterPortable: locked for every device of the process."""


@dataclass(frozen=True)
class Location:
    """Where a parameter is in its block."""

    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def view(self, memory: torch.Tensor) -> torch.Tensor:
        """The parameter in ``memory``, uint8 of its block's size or more."""
        length = self.shape.numel() * self.dtype.itemsize
        return memory[self.offset : self.offset + length].view(self.dtype).view(self.shape)


def layout(
    parameters: Sequence[torch.Tensor], dtype: torch.dtype | None = None
) -> tuple[list[Location], int]:
    """Where each parameter goes in a block, and the block's bytes.

    Args:
        dtype: what they will be stored as; None: as they are.
    """
    locations, offset = [], 0
    for parameter in parameters:
        kind = dtype or parameter.dtype
        locations.append(Location(offset, kind, parameter.shape))
        length = parameter.numel() * kind.itemsize
        offset += -(-length // PARAMETER_ALIGNMENT) * PARAMETER_ALIGNMENT
    return locations, offset


def unique_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Every parameter of ``modules`` once, in order.

    Raises:
        InputError: there is none, or one wants a gradient: weights that move cannot be trained.
    """
    found = {id(p): p for module in modules for p in module.parameters()}
    parameters = list(found.values())
    if not parameters:
        raise InputError("a block without parameters: there is nothing to move")
    if any(parameter.requires_grad for parameter in parameters):
        raise InputError("parameters that want gradients cannot move; call requires_grad_(False)")
    return parameters


class Block(Protocol):
    """The parameters of some modules, which the executor moves together.

    Making one leaves the parameters where they are, so that a block that cannot be made undoes
    nothing: the first :meth:`rest` takes them over.
    """

    @property
    def modules(self) -> tuple[nn.Module, ...]: ...

    @property
    def bytes(self) -> int: ...

    @property
    def pinned_bytes(self) -> int:
        """Of host memory that this block holds while its weights rest."""

    def send(self, place: torch.Tensor, engines: Engines) -> None:
        """Queues the copy of all weights to ``place``, uint8 on the device."""

    def views(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """The parameters in ``memory``, to be bound once the block has been copied there."""

    def bind(self, views: Sequence[torch.Tensor]) -> None:
        """The parameters are ``views`` from now on."""

    def rest(self) -> None:
        """The parameters are off the device again."""


class HostBlock:
    """The parameters of one block in host memory, which they are views of while they rest."""

    def __init__(self, modules: Sequence[nn.Module], *, pin: bool) -> None:
        """Takes parameters over that lie side by side as :func:`arranged` laid them out; others
        are copied together, from wherever they are.

        Args:
            modules: whose parameters; without gradients.
            pin: page-locked, so that copies to a CUDA device run beside computing.

        Raises:
            MemoryPlanError: there is not that much host memory to lock.
        """
        self.modules: Final = tuple(modules)
        self.parameters: Final = unique_parameters(modules)
        self._locations, self.bytes = layout(self.parameters)
        found = self._found_in_place()
        self.memory: Final = allocate(self.bytes) if found is None else found
        if pin:
            _lock(self.memory)
            # The lock goes before the memory can. At the interpreter's end the driver drops it.
            weakref.finalize(self, _unlock, self.memory.data_ptr()).atexit = False
        if found is None:
            for parameter, location in zip(self.parameters, self._locations, strict=True):
                location.view(self.memory).copy_(parameter.data)

    @property
    def pinned_bytes(self) -> int:
        return self.bytes

    def send(self, place: torch.Tensor, engines: Engines) -> None:
        engines.copy(place[: self.bytes], self.memory)

    def views(self, memory: torch.Tensor) -> list[torch.Tensor]:
        return [location.view(memory) for location in self._locations]

    def bind(self, views: Sequence[torch.Tensor]) -> None:
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.data = view

    def rest(self) -> None:
        self.bind(self.views(self.memory))

    def _found_in_place(self) -> torch.Tensor | None:
        first = self.parameters[0]
        storage = first.untyped_storage()
        if first.device.type != "cpu" or storage.nbytes() != self.bytes:
            return None
        for parameter, location in zip(self.parameters, self._locations, strict=True):
            there = parameter.data_ptr() == storage.data_ptr() + location.offset
            if not there or not parameter.is_contiguous():
                return None
        return torch.empty(0, dtype=torch.uint8).set_(storage)


def arranged(
    network: nn.Module, blocks: Mapping[str, Sequence[nn.Module]], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Memory for the weights of a network, block by block, to be read into by name.

    Args:
        network: on the meta device; its parameters have names, and shapes.
        blocks: modules of each block; together they own all parameters.
        dtype: of the weights.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    places: dict[str, torch.Tensor] = {}
    for modules in blocks.values():
        found = list({id(p): p for module in modules for p in module.parameters()}.values())
        locations, size = layout(found, dtype)
        memory = allocate(size)
        for parameter, location in zip(found, locations, strict=True):
            places[names[id(parameter)]] = location.view(memory)
    assert set(places) == set(names.values()), "every parameter is in a block"
    return places


def allocate(size: int) -> torch.Tensor:
    """uint8 of ``size`` bytes of host memory, exactly: torch's pinned allocator rounds up to a
    power of two. Pages appear as they are written.

    Raises:
        MemoryPlanError: the host does not give that much.
    """
    try:
        region = mmap.mmap(-1, max(size, 1))
    except OSError as error:
        raise MemoryPlanError(
            f"the host has no {size} bytes for weights ({error}): give a smaller host budget, "
            f"memory=Budget(device, host), and weights are streamed from their files"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages has small ones
            region.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(region, dtype=torch.uint8)[:size]


def _lock(memory: torch.Tensor) -> None:
    """Page-locks memory for copies of a CUDA device, in place."""
    result = int(_runtime().cudaHostRegister(memory.data_ptr(), memory.nbytes, _ANY_CONTEXT))
    if result:
        raise MemoryPlanError(
            f"the driver cannot lock {memory.nbytes} bytes of host memory (error {result}): give "
            f"a smaller host budget, memory=Budget(device, host), and weights are streamed from "
            f"their files"
        )


def _unlock(address: int) -> None:
    _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()


def available_host_bytes() -> int | None:
    """Host memory that a process can still take without pushing others out; None: not told."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - not a file on disk
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return int(min(free, _group_limit()))


def _group_limit() -> float:
    """What a container (cgroup v2, or v1) may still take. What it holds of files counts as free:
    as in MemAvailable, the kernel lets go of it first, and reading a checkpoint fills all of it."""
    two = _GROUPS / "memory.max", _GROUPS / "memory.current", _GROUPS / "memory.stat", ""
    folder = _GROUPS / "memory"
    one = (
        folder / "memory.limit_in_bytes",
        folder / "memory.usage_in_bytes",
        folder / "memory.stat",
        "total_",
    )
    for most, used, details, prefix in (two, one):
        try:
            limit, taken = most.read_text().strip(), int(used.read_text())
            counts = dict(line.split() for line in details.read_text().splitlines())
            files = sum(int(counts[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
            return math.inf if limit == "max" else max(int(limit) - max(taken - files, 0), 0)
        except (OSError, ValueError, KeyError):
            continue
    return math.inf
