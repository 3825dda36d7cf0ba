"""Carries out a plan: copies on a stream of their own, events between it and the computing.

The networks know nothing of it: a hook before each module that owns weights tells which block is
needed, and the list of actions says what has to happen before and after. Nothing waits on the host,
but for weights that rest in files: their bytes have to pass through a window, a buffer of which is
filled again when the copy from it has ended.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from cosmos_fast.errors import CosmosFastError, InputError
from cosmos_fast.memory.engines import CudaEngines, HostEngines
from cosmos_fast.memory.files import FileBlock
from cosmos_fast.memory.host import HostBlock
from cosmos_fast.memory.run import StageRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from cosmos_fast.memory.components import Components
    from cosmos_fast.memory.engines import Engines
    from cosmos_fast.memory.host import Block
    from cosmos_fast.memory.schedule import Schedule, StagePlan


@dataclass
class _Component:
    """Weights that rest together, block by block."""

    blocks: Mapping[str, Block]
    as_files: Callable[[], Mapping[str, Block]] | None
    """Makes the same blocks again, resting in their files."""


class Executor:
    """The weights of several components on one device, as a plan says.

    Between stages nothing is on the device but what the plan keeps there. Not for several threads
    at a time; several executors may share a device.
    """

    def __init__(
        self,
        plan: Schedule,
        components: Components,
        device: torch.device,
        *,
        poison: bool = False,
    ) -> None:
        """Moves all weights to host memory, and those that are kept to the device.

        Args:
            plan: what to carry out.
            components: modules of the blocks that the plan knows; their parameters must be
                without gradients and become views of memory of this object's. More may come by
                :meth:`add`.
            device: a CUDA device, or the CPU in the place of one.
            poison: fill every place with NaN as soon as its block has left it, so that a use at
                the wrong time shows; for tests.

        Raises:
            InputError: components and plan do not fit.
        """
        self.device: Final = device
        self._poison = poison
        self._engines: Engines = CudaEngines(device) if device.type == "cuda" else HostEngines()
        self._components: dict[str, _Component] = {}
        self._running: StageRun | None = None
        self._kept: torch.Tensor | None = None
        self.plan = plan
        self.on_move: Callable[[], None] = _nothing
        """Called when what is kept leaves its place on the device."""
        self.on_tidy: Callable[[], None] = _nothing
        """Called before memory that nobody uses goes back to the device."""
        self.peak_arena_bytes = 0
        """Most bytes that this executor has held on the device at a time."""
        for name, blocks in components.items():
            self.add(name, host_blocks(blocks, device))
        if components:  # those that come later may be on the device still
            self.wake()

    def add(
        self,
        name: str,
        blocks: Mapping[str, Block],
        as_files: Callable[[], Mapping[str, Block]] | None = None,
    ) -> None:
        """Takes a component over.

        Args:
            name: as the plan calls it.
            blocks: of its weights.
            as_files: makes the same blocks, resting in their files; None: they cannot.

        Raises:
            InputError: it does not fit the plan.
        """
        self._check(self.plan, {name: blocks})
        self._free()
        self._components[name] = _Component(blocks, as_files)
        for block in blocks.values():
            block.rest()

    def has(self, name: str) -> bool:
        """Whether a component of that name was added."""
        return name in self._components

    def remove(self, name: str) -> None:
        """Lets go of a component."""
        self._free()
        self._components.pop(name, None)

    def follow(self, plan: Schedule) -> None:
        """Carries out ``plan`` from now on; weights rest where it says.

        Raises:
            CosmosFastError: a stage is running.
            InputError: it was made for other networks.
            MemoryPlanError: the host has not the memory that weights are to rest in; those of a
                component that could not move rest where they did.
        """
        self._check(plan, {name: one.blocks for name, one in self._components.items()})
        if plan.core is not self.plan.core:
            self._free()
        self.plan = plan
        for name, component in self._components.items():
            self._rest(component, plan.sources.get(name))

    @property
    def pinned_bytes(self) -> int:
        """Of host memory that holds weights."""
        components = self._components.values()
        return sum(block.pinned_bytes for one in components for block in one.blocks.values())

    @property
    def asleep(self) -> bool:
        """Nothing of this executor is on the device."""
        return self._kept is None

    def sleep(self) -> None:
        """Gives the device memory back; the weights stay where they rest.

        Raises:
            CosmosFastError: a stage is running.
        """
        self._free()
        self.tidy()

    def wake(self) -> None:
        """Brings what the plan keeps back to the device. Nothing happens where it is there.

        An error leaves everything off the device.
        """
        if self._kept is not None:
            return
        self.tidy()
        kept = self._arena(self.plan.kept_bytes)
        try:
            self._engines.copy_after(self._engines.reached())
            self._send_kept(kept)
        except BaseException:
            self._rest_all()
            raise
        finally:
            self._engines.compute_after(self._engines.arrived())
        self._kept = kept

    def _send_kept(self, kept: torch.Tensor) -> None:
        for stage in self.plan.stages:
            if stage.component not in self._components:
                continue
            blocks = self._components[stage.component].blocks
            for name, (offset, size), holding in zip(
                stage.blocks, stage.places, stage.holdings, strict=False
            ):
                if holding == "kept":
                    memory = kept[offset : offset + size]
                    blocks[name].send(memory, self._engines)
                    blocks[name].bind(blocks[name].views(memory))

    @contextmanager
    def stage(self, name: str, passes: int | None = None) -> Iterator[StagePlan]:
        """Everything that a stage's networks need is on the device when they need it.

        Leaving the block, by an error too, takes the stage's weights off the device.

        Args:
            name: of a stage of the plan.
            passes: how often the networks run; None: as often as was planned. Fewer are allowed.

        Returns:
            What was planned.

        Raises:
            CosmosFastError: another stage is running.
            InputError: its component was never added.
        """
        if self._running is not None:
            raise CosmosFastError(f"stage {name!r} cannot start while {self._running.name!r} runs")
        planned = self.plan.stage(name)
        if planned.component not in self._components:
            raise InputError(f"stage {name!r}: no modules of {planned.component!r} were given")
        self.tidy()
        self.wake()
        if planned.holdings[0] == "kept":
            self._open_heap(planned)
            try:
                yield planned
            finally:
                self.tidy()
            return
        index = self.plan.stages.index(planned)
        arena = self._arena(planned.arena_bytes)
        actions = self.plan.core.actions(index, passes)
        owned = self._components[planned.component].blocks
        blocks = [owned[block] for block in planned.blocks]
        held = [block.hold for block in self.plan.request.stages[index].blocks]
        self._running = StageRun(
            planned, blocks, held, arena, actions, self._engines, poison=self._poison
        )
        del arena
        try:
            self._open_heap(planned)
            self._running.begin()
            with self._running.hooks():
                yield planned
        finally:
            try:
                self._running.end()
            finally:
                self._running = None
                self.tidy()

    def tidy(self) -> None:
        """Gives memory that nobody uses back to the device."""
        self.on_tidy()
        self._engines.tidy()

    def outside(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, made in a stage, where the stage's memory can go without it."""
        return self._engines.outside(tensor)

    def _open_heap(self, planned: StagePlan) -> None:
        if size := self.plan.heap_bytes(planned):
            self._engines.open_heap(size)

    def _free(self) -> None:
        """Takes everything off the device."""
        if self._running is not None:
            raise CosmosFastError("a stage is running: weights cannot leave the device now")
        if self._kept is not None:
            self.on_move()
        self._rest_all()
        self._kept = None

    def _rest_all(self) -> None:
        for component in self._components.values():
            for block in component.blocks.values():
                block.rest()

    def _rest(self, component: _Component, source: str | None) -> None:
        """Where a component's weights are while they are not in use."""
        in_files = any(isinstance(block, FileBlock) for block in component.blocks.values())
        if source is None:
            return
        if source == "files" and not in_files and component.as_files is not None:
            self._free()
            component.blocks = component.as_files()
        elif source != "files" and in_files:
            self._free()
            pin = self.device.type == "cuda"
            component.blocks = {
                name: block.to_host(pin=pin) if isinstance(block, FileBlock) else block
                for name, block in component.blocks.items()
            }
        else:
            return
        for block in component.blocks.values():
            block.rest()

    def _arena(self, size: int) -> torch.Tensor:
        arena = torch.empty(size, dtype=torch.uint8, device=self.device)
        kept = 0 if self._kept is None else self._kept.nbytes
        self.peak_arena_bytes = max(self.peak_arena_bytes, kept + size)
        return arena.fill_(0xFF) if self._poison else arena

    def _check(self, plan: Schedule, components: Mapping[str, Mapping[str, Block]]) -> None:
        for stage in plan.request.stages:
            if stage.component not in components:
                continue
            known = components[stage.component]
            for block in stage.blocks:
                if block.name not in known:
                    raise InputError(
                        f"stage {stage.name!r}: no modules for {block.name!r} of "
                        f"{stage.component!r}"
                    )
                if known[block.name].bytes > block.bytes:
                    raise InputError(
                        f"block {block.name!r} has {known[block.name].bytes} bytes, the plan has "
                        f"{block.bytes}: it was made for another model"
                    )


def host_blocks(
    blocks: Mapping[str, Sequence[nn.Module]], device: torch.device
) -> dict[str, HostBlock]:
    """Blocks whose weights will rest in host memory, page-locked where that helps copies to
    ``device``. Until they rest, the weights stay where they are.

    Raises:
        MemoryPlanError: there is not that much host memory, or it cannot be locked.
    """
    pin = device.type == "cuda"
    return {name: HostBlock(modules, pin=pin) for name, modules in blocks.items()}


def _nothing() -> None:
    """Nobody has to know."""
