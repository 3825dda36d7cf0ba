"""A stage while it runs: the list of actions, and how far it has been followed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.errors import CosmosFastError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from cosmos_fast.memory.engines import Engines
    from cosmos_fast.memory.host import Block
    from cosmos_fast.memory.schedule import StagePlan


class StageRun:
    """A stage while it runs: the list of actions and how far it has been followed."""

    def __init__(
        self,
        stage: StagePlan,
        blocks: Sequence[Block],
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

    def begin(self) -> None:
        """Queues the first copies; from now on :meth:`end` has to come, whatever happens."""
        # The arena may be memory that queued work still reads.
        self._engines.copy_after(self._engines.reached())
        self._follow()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watches the networks for as long as the body runs."""
        handles: list[RemovableHandle] = []
        try:
            # What is held is there from the start: networks ask its weights for their device, and
            # layers that nobody listens at may be run by a fused kernel in their place.
            first = 1 if self._held[0] else 0
            if first:
                self.touch(0)
            for index, block in enumerate(self._blocks[first:], start=first):
                last = block.modules[-1]
                handles.append(last.register_forward_hook(self._after(index), always_call=True))
                handles += [
                    module.register_forward_pre_hook(self._before(index))
                    for top in block.modules
                    for module in top.modules()
                    # The whole, as a network may read a layer's weight without calling the layer.
                    if module is top or next(module.parameters(recurse=False), None) is not None
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
        try:
            self._engines.compute_after(self._engines.arrived())
        finally:
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
            self._blocks[block].send(self._places[place], self._engines)
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
