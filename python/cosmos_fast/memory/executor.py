"""Carries out a plan: copies on a stream of their own, events between it and the computing.

The networks know nothing of it: a hook before each module that owns weights tells which block is
needed, and the list of actions says what has to happen before and after. Nothing waits on the host.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from cosmos_fast.errors import CosmosFastError, InputError
from cosmos_fast.memory.host import HostBlock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from cosmos_fast.memory.components import Components
    from cosmos_fast.memory.request import Stage
    from cosmos_fast.memory.schedule import Schedule, StagePlan


class Engines(Protocol):
    """A device's two queues: what is asked of one runs in order, and beside the other."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queues a copy from host memory."""

    def arrived(self) -> Any:
        """A mark in the copy queue, behind all that was asked of it."""

    def reached(self) -> Any:
        """A mark in the compute queue."""

    def compute_after(self, mark: Any) -> None:
        """The compute queue waits for a mark of the copy queue."""

    def copy_after(self, mark: Any) -> None:
        """The copy queue waits for a mark of the compute queue."""


class CudaEngines:
    """The current stream computes, a stream of our own copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)

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


class HostEngines:
    """A CPU in the place of a device: everything happens when it is asked for, in that order."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def arrived(self) -> None:
        """Nothing to wait for."""

    def reached(self) -> None:
        """Nothing to wait for."""

    def compute_after(self, mark: None) -> None:
        """It is there."""

    def copy_after(self, mark: None) -> None:
        """It is free."""


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
            components: modules of every block that the plan knows; their parameters must be
                without gradients and become views of memory of this object's.
            device: a CUDA device, or the CPU in the place of one.
            poison: fill every place with NaN as soon as its block has left it, so that a use at
                the wrong time shows; for tests.

        Raises:
            InputError: components and plan do not fit.
        """
        self.plan: Final = plan
        self.device: Final = device
        self._poison = poison
        self._engines: Engines = CudaEngines(device) if device.type == "cuda" else HostEngines()
        pin = device.type == "cuda"
        self._blocks = {
            component: {name: HostBlock(modules, pin=pin) for name, modules in blocks.items()}
            for component, blocks in components.items()
        }
        self._running: StageRun | None = None
        self._kept: torch.Tensor | None = None
        for stage in plan.request.stages:
            self._check(stage)
        self.wake()

    @property
    def asleep(self) -> bool:
        """Nothing of this executor is on the device."""
        return self._kept is None

    def sleep(self) -> None:
        """Gives the device memory back; the weights stay in host memory."""
        if self._running is not None:
            raise CosmosFastError("a stage is running: weights cannot leave the device now")
        for blocks in self._blocks.values():
            for block in blocks.values():
                block.rest()
        self._kept = None

    def wake(self) -> None:
        """Brings what the plan keeps back to the device. Nothing happens where it is there."""
        if self._kept is not None:
            return
        kept = self._arena(self.plan.kept_bytes)
        self._engines.copy_after(self._engines.reached())
        for stage in self.plan.stages:
            for name, (offset, size), holding in zip(
                stage.blocks, stage.places, stage.holdings, strict=False
            ):
                if holding == "kept":
                    block = self._blocks[stage.component][name]
                    memory = kept[offset : offset + size]
                    self._engines.copy(memory[: block.bytes], block.memory)
                    block.bind(block.views(memory))
        self._engines.compute_after(self._engines.arrived())
        self._kept = kept

    @contextmanager
    def stage(self, name: str, passes: int | None = None) -> Iterator[None]:
        """Everything that a stage's networks need is on the device when they need it.

        Leaving the block, by an error too, takes the stage's weights off the device.

        Args:
            name: of a stage of the plan.
            passes: how often the networks run; None: as often as was planned. Fewer are allowed.

        Raises:
            CosmosFastError: another stage is running.
        """
        if self._running is not None:
            raise CosmosFastError(f"stage {name!r} cannot start while {self._running.name!r} runs")
        self.wake()
        planned = self.plan.stage(name)
        if planned.holdings[0] == "kept":
            yield
            return
        index = self.plan.stages.index(planned)
        arena = self._arena(planned.arena_bytes)
        actions = self.plan.core.actions(index, passes)
        blocks = [self._blocks[planned.component][block] for block in planned.blocks]
        held = [block.hold for block in self.plan.request.stages[index].blocks]
        self._running = StageRun(
            planned, blocks, held, arena, actions, self._engines, poison=self._poison
        )
        try:
            with self._running.hooks():
                yield
        finally:
            self._running.end()
            self._running = None

    def _arena(self, size: int) -> torch.Tensor:
        arena = torch.empty(size, dtype=torch.uint8, device=self.device)
        return arena.fill_(0xFF) if self._poison else arena

    def _check(self, stage: Stage) -> None:
        known = self._blocks.get(stage.component, {})
        for block in stage.blocks:
            if block.name not in known:
                raise InputError(
                    f"stage {stage.name!r}: no modules for {block.name!r} of {stage.component!r}"
                )
            if known[block.name].bytes > block.bytes:
                raise InputError(
                    f"block {block.name!r} has {known[block.name].bytes} bytes, the plan has "
                    f"{block.bytes}: it was made for another model"
                )


class StageRun:
    """A stage while it runs: the list of actions and how far it has been followed."""

    def __init__(
        self,
        stage: StagePlan,
        blocks: Sequence[HostBlock],
        held: Sequence[bool],
        arena: torch.Tensor,
        actions: Sequence[tuple[str, int, int | None]],
        engines: Engines,
        *,
        poison: bool,
    ) -> None:
        self.name: Final = stage.name
        self._blocks = blocks
        self._held = held
        self._actions = actions
        self._engines = engines
        self._poison = poison
        self._places = [arena[offset : offset + size] for offset, size in stage.places]
        self._views: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._freed: dict[int, Any] = {}
        self._arrived: dict[int, Any] = {}
        self._home: dict[int, int] = {}
        self._cursor = 0
        self._uses_end = max(i for i, action in enumerate(actions) if action[0] == "use") + 1
        self._current: int | None = None
        # The arena may be memory that queued work still reads.
        engines.copy_after(engines.reached())
        self._follow()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watches the networks for as long as the body runs."""
        handles: list[RemovableHandle] = []
        try:
            for index, block in enumerate(self._blocks):
                last = block.modules[-1]
                handles.append(last.register_forward_hook(self._after(index), always_call=True))
                handles += [
                    module.register_forward_pre_hook(self._before(index))
                    for top in block.modules
                    for module in top.modules()
                    if next(module.parameters(recurse=False), None) is not None
                ]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def touch(self, block: int) -> None:
        """``block`` is needed now: whatever the list asks for until then is done.

        Raises:
            CosmosFastError: it is not its turn.
        """
        if block == self._current or (self._held[block] and self._is_bound(block)):
            return
        while self._current != block:
            if self._cursor == self._uses_end:
                raise CosmosFastError(f"stage {self.name!r} runs more often than was asked for")
            kind, wanted, _ = self._actions[self._cursor]
            if kind == "use" and wanted != block and not self._held[wanted]:
                raise CosmosFastError(
                    f"stage {self.name!r} needs block {block}, and block {wanted} is next: "
                    f"the networks run in another order than was planned"
                )
            self._do()

    def leave(self) -> None:
        """The block in use is needed no more: its place may be written to."""
        self._current = None
        self._follow()

    def end(self) -> None:
        """Waits, on the device, for what is under way; the weights rest in host memory again."""
        self._engines.compute_after(self._engines.arrived())
        for block in self._blocks:
            block.rest()

    def _before(self, block: int) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.touch(block)

        return hook

    def _after(self, block: int) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
            if self._current == block and not self._held[block]:
                self.leave()

        return hook

    def _follow(self) -> None:
        """Does everything up to the next wait or use; what is held stays until the end."""
        while self._cursor < self._uses_end:
            if self._actions[self._cursor][0] in ("ready", "use"):
                return
            self._do()

    def _do(self) -> None:
        kind, block, place = self._actions[self._cursor]
        self._cursor += 1
        if kind == "use":
            self._bind(block)
            self._current = block
        elif kind == "ready":
            self._engines.compute_after(self._arrived.pop(block))
        elif place is not None:
            self._move(kind, block, place)

    def _move(self, kind: str, block: int, place: int) -> None:
        if kind == "alloc":
            if place in self._freed:
                self._engines.copy_after(self._freed.pop(place))
        elif kind == "copy":
            source = self._blocks[block].memory
            self._engines.copy(self._places[place][: len(source)], source)
            self._arrived[block] = self._engines.arrived()
            self._home[block] = place
        else:
            if self._poison:
                self._places[place].fill_(0xFF)
            self._freed[place] = self._engines.reached()

    def _bind(self, block: int) -> None:
        place = self._home[block]
        views = self._views.get((block, place))
        if views is None:
            views = self._blocks[block].views(self._places[place])
            self._views[block, place] = views
        self._blocks[block].bind(views)

    def _is_bound(self, block: int) -> bool:
        return block in self._home and block not in self._arrived
