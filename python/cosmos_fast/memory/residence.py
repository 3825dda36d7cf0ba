"""Where one engine's weights are, request by request: the plan is chosen here, and changed.

An engine whose plan says that everything stays on the device is left as it was loaded: plain
tensors, no copies, no hooks. Any other plan is carried out by an :class:`Executor`, which takes the
weights over once and keeps them for good.
"""

from __future__ import annotations

import gc
import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.errors import InputError, MemoryPlanError
from cosmos_fast.memory.cards import card_of
from cosmos_fast.memory.executor import Executor
from cosmos_fast.memory.files import Window, file_blocks
from cosmos_fast.memory.host import HostBlock, available_host_bytes
from cosmos_fast.memory.models import FRAME_BY_FRAME, SLOWDOWNS
from cosmos_fast.memory.plan import (
    AUTO_SHARE,
    WINDOW_BYTES,
    Budget,
    Memory,
    Plan,
    read_budget,
    solve,
)
from cosmos_fast.model.cuts import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from cosmos_fast.memory.cards import Card
    from cosmos_fast.memory.host import Block
    from cosmos_fast.memory.models import Workload
    from cosmos_fast.memory.schedule import StagePlan
    from cosmos_fast.weights.load import Sources

logger = logging.getLogger(__name__)

LEVEL: Final = 0.85
"""One level down: the share of the last plan's peak that the next one may have."""
_HOST_SHARE: Final = 0.9
"""Of the host memory that is free, what weights may take unless a budget says otherwise."""


@dataclass(frozen=True)
class Owned:
    """A component as its network, for whoever has to move it."""

    network: nn.Module
    blocks: Mapping[str, Sequence[nn.Module]]
    dtype: torch.dtype
    sources: Callable[[], Sources]
    """Finds where its parameters lie in their files."""


@dataclass(frozen=True)
class StageForm:
    """How a stage is to be run."""

    kept: bool = True
    """Its weights are on the device all the time."""
    cut: Cut | None = None
    frame_by_frame: bool = False


class Residence:
    """Chooses plans for one engine and has them carried out. Not for several threads at a time."""

    def __init__(
        self,
        device: torch.device,
        memory: Memory = "auto",
        *,
        offload: frozenset[str] = frozenset(),
        card: Card | None = None,
        shared: bool = False,
    ) -> None:
        """
        Args:
            device: of the engine.
            memory: as for :func:`cosmos_fast.memory.plan.plan`. On a CPU "auto" and "resident"
                plan nothing.
            offload: components that must leave the device when their stage ends.
            card: None: the one of ``device``.
            shared: several ranks make each video together: every one keeps its weights.

        Raises:
            InputError: ``memory`` is no budget.
        """
        asked = bool(offload) or memory not in ("auto", "resident")
        if shared and asked:
            raise InputError(
                f"{memory = }, offload = {sorted(offload)}: ranks that share a video keep all "
                f'weights on their devices; use memory="resident"'
            )
        self.device: Final = device
        self.offload: Final = offload
        self.managed: Final = (device.type == "cuda" and not shared) or asked
        self.on_move: Callable[[], None] = _nothing
        """Called before weights change their places on the device: captured graphs are void."""
        self._card = (card or card_of(device)) if self.managed else None
        self._resident: Final = memory == "resident" and not offload
        self._budget = self._read(memory)
        self._owned: dict[str, Owned] = {}
        self.reserved_bytes = 0
        """Of the device, for networks that are none of the plan's."""
        self._window = Window(device, WINDOW_BYTES)
        self._copies: dict[str, list[HostBlock]] = {}
        """Made by the first sleep of an engine whose weights do not move otherwise."""
        self._asleep = False
        self._known: dict[Any, Plan] = {}
        self.executor: Executor | None = None
        self.plan: Plan | None = None
        """Of the current request; None where nothing is planned."""

    def _read(self, memory: Memory) -> Budget:
        if self._card is None:
            return Budget()
        budget = read_budget(memory, self._card)
        if budget.device is None and self.device.type == "cuda":
            budget = replace(budget, device=_free_bytes(self.device, self._card))
        if budget.host is None and (free := available_host_bytes()) is not None:
            budget = replace(budget, host=int(free * _HOST_SHARE))
        return budget

    def reserve(self, device_bytes: int) -> None:
        """Leaves room on the device for networks that are none of the plan's; before anything is
        loaded."""
        self.reserved_bytes += device_bytes
        if self._card is not None:
            taken = self._card.context_bytes + device_bytes
            self._card = replace(self._card, context_bytes=taken)

    def begin(self, workload: Workload) -> None:
        """Before anything is loaded: where weights go, by what the checkpoint is made for.

        A budget too small for that may do for less; then weights go where its own plan, for more
        memory, wants them.

        Raises:
            MemoryPlanError: the host has too little memory, whatever is asked for.
        """
        try:
            self.prepare(workload)
        except MemoryPlanError as error:
            if error.plan is None or error.plan.host_budget_bytes != self._budget.host:
                raise
            logger.info("the profile's own size does not fit: %s", error)
            self.plan = error.plan
            self._take_over(error.plan)

    def prepare(self, workload: Workload) -> Plan | None:
        """The plan for a request, which everything follows from now on; None: nothing is planned.

        Raises:
            MemoryPlanError: the budget is too small.
        """
        if self.executor is None:
            self.wake()
        if self._card is None:
            return None
        self.plan = None
        workload = replace(workload, offloaded=self.offload)
        plan = self._known.get((workload, self._budget, self.executor is None))
        if plan is None:
            plan = self._solve(workload, self._card)
            if plan is None:
                return None
            self._known[workload, self._budget, self.executor is None] = plan
        self.plan = plan
        if self.executor is not None:
            self.executor.follow(plan)
        elif set(plan.sources.values()) != {"device"}:
            self._take_over(plan)
        return plan

    def _solve(self, workload: Workload, card: Card) -> Plan | None:
        if self.executor is None and not self.offload:
            try:
                return solve(workload, card, self._budget, resident=True, host_copies=False)
            except MemoryPlanError:
                if self._resident:
                    return None  # an estimate is no reason to refuse what was asked for
        return solve(workload, card, self._budget)

    def require_resident(self) -> None:
        """Every weight is on the device from now on, for work that this object knows nothing of.

        Raises:
            InputError: the plan moves weights.
        """
        if self.executor is not None:
            raise InputError(
                "this engine's plan moves weights, and they are on the device in its own calls "
                'only; load it with memory="resident" for worlds'
            )
        self.wake()

    def rests_in(self, component: str) -> str:
        """ "device", "pinned" or "files": where a component that is about to be loaded goes."""
        if self.executor is None or self.plan is None:
            return "device"
        found = self.plan.sources.get(component, "pinned")
        return "files" if found == "files" else "pinned"

    def own(self, component: str, owned: Owned, *, in_files: bool = False) -> None:
        """A component has been loaded; it moves from now on, if anything does.

        Args:
            in_files: its parameters hold nothing and are read whenever they are needed.
        """
        self._owned[component] = owned
        if self.executor is not None:
            self._hand_over(self.executor, component, in_files=in_files)
            if self.plan is not None:
                self.executor.follow(self.plan)

    def disown(self, component: str) -> None:
        """A component has been let go of."""
        self._owned.pop(component, None)
        self._copies.pop(component, None)
        if self.executor is not None:
            self.executor.remove(component)

    @contextmanager
    def stage(self, name: str, passes: int | None = None) -> Iterator[StageForm]:
        """The weights of a stage are there for the body; see :meth:`Executor.stage`."""
        if self.executor is None or self.plan is None:
            stages = () if self.plan is None else self.plan.stages
            yield self._form(next((stage for stage in stages if stage.name == name), None))
            return
        with self.executor.stage(name, passes) as planned:
            yield replace(self._form(planned), kept=planned.holdings[0] == "kept")

    @property
    def can_lower(self) -> bool:
        """A smaller plan may be tried: one was made, and the caller left the choice to it."""
        return self.plan is not None and not self._resident

    def lower(self) -> Plan:
        """After the device ran out of memory: the budget becomes one level smaller.

        Returns:
            The plan that did not fit.
        """
        assert self.plan is not None
        failed = self.plan
        self._budget = replace(self._budget, device=int(failed.peak_bytes * LEVEL))
        gc.collect()  # what the error's traceback held
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return failed

    @property
    def asleep(self) -> bool:
        """No weight is on the device."""
        return self._asleep if self.executor is None else self.executor.asleep

    def sleep(self) -> None:
        """Takes all weights off the device; page-locked copies of them stay in host memory."""
        self.on_move()
        if self.executor is not None:
            self.executor.sleep()
            return
        pin = self.device.type == "cuda"
        for name, owned in self._owned.items():
            if name not in self._copies:
                blocks = owned.blocks.values()
                self._copies[name] = [HostBlock(modules, pin=pin) for modules in blocks]
            for block in self._copies[name]:
                block.rest()
        self._asleep = True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Brings back what :meth:`sleep` took. Nothing happens where nothing is asleep."""
        if self.executor is not None:
            self.executor.wake()
        elif self._asleep:
            self.on_move()
            for blocks in self._copies.values():
                for block in blocks:
                    memory = torch.empty(block.bytes, dtype=torch.uint8, device=self.device)
                    memory.copy_(block.memory, non_blocking=True)
                    block.bind(block.views(memory))
            self._asleep = False

    def _take_over(self, plan: Plan) -> None:
        self._copies.clear()
        self.on_move()
        executor = Executor(plan, {}, self.device)
        executor.on_move = lambda: self.on_move()
        for component in self._owned:
            self._hand_over(executor, component, in_files=False)
        self.executor = executor
        executor.follow(plan)

    def _hand_over(self, executor: Executor, component: str, *, in_files: bool) -> None:
        owned = self._owned[component]

        def as_files() -> Mapping[str, Block]:
            return file_blocks(
                owned.network, owned.blocks, owned.sources(), owned.dtype, self._window
            )

        blocks = as_files() if in_files else executor.host_blocks(owned.blocks)
        executor.add(component, blocks, as_files)

    def _form(self, planned: StagePlan | None) -> StageForm:
        if planned is None:
            return StageForm()
        cut = next((cut for cut in SLOWDOWNS if cut.name == planned.shape), Cut())
        return StageForm(
            cut=None if cut == Cut() else cut, frame_by_frame=planned.shape == FRAME_BY_FRAME
        )


def _nothing() -> None:
    """There is no graph."""


def _free_bytes(device: torch.device, card: Card) -> int:
    """What an engine that is about to be made can have of ``device``, its fixed costs included."""
    free, total = torch.cuda.mem_get_info(device)
    held, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    free += held - used  # cached by torch, in nobody's use
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    if fraction is not None:
        free = min(free, int(fraction(device) * total) - used)
    return int(free * AUTO_SHARE) + card.context_bytes
