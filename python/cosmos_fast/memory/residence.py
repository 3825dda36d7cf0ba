"""Where one engine's weights are, request by request: the plan is chosen here, and changed.

An engine whose plan says that everything stays on the device is left as it was loaded: plain
tensors, no copies, no hooks. Any other plan is carried out by an :class:`Executor`, which takes the
weights over once and keeps them for good.
"""

from __future__ import annotations

import gc
import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from cosmos_fast.errors import InputError, MemoryPlanError
from cosmos_fast.memory.budget import Budget, gib, read_budget
from cosmos_fast.memory.cards import Card, card_of
from cosmos_fast.memory.copies import Copies
from cosmos_fast.memory.executor import Executor, host_blocks
from cosmos_fast.memory.files import Window, file_blocks
from cosmos_fast.memory.host import available_host_bytes
from cosmos_fast.memory.models import FRAME_BY_FRAME, SLOWDOWNS
from cosmos_fast.memory.plan import WINDOW_BYTES, smallest, solve
from cosmos_fast.memory.room import Gauge, Room, free_bytes, refuse_the_hopeless, taken
from cosmos_fast.model.cuts import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from cosmos_fast.memory.budget import Memory
    from cosmos_fast.memory.host import Block
    from cosmos_fast.memory.models import Workload
    from cosmos_fast.memory.plan import Plan
    from cosmos_fast.memory.room import Taken
    from cosmos_fast.memory.schedule import StagePlan
    from cosmos_fast.parallel import Ranks
    from cosmos_fast.weights.load import Sources

logger = logging.getLogger(__name__)

LEVEL: Final = 0.85
"""One level down: the share that the next plan may have of what the last one's peak held beside
the fixed bytes."""
_HOST_SHARE: Final = 0.9
"""Of the host memory that is free, what weights may take unless a budget says otherwise."""
_NO_LIMIT: Final = 1 << 62
"""Bytes, where ranks compare their budgets and one has none."""


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


class _Lowered(NamedTuple):
    """After the device ran out of memory."""

    budget: Budget
    failed: Plan


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
            shared: several ranks make each video together. Unless they were asked to move weights,
                every one keeps them; if they were, :meth:`agree` has to follow.

        Raises:
            InputError: ``memory`` is no budget.
        """
        asked = bool(offload) or memory not in ("auto", "resident")
        self.device: Final = device
        self.offload: Final = offload
        self.managed: Final = (device.type == "cuda" and not shared) or asked
        self.on_move: Callable[[], None] = _nothing
        """Called before weights change their places on the device: captured graphs are void."""
        self._shared: Final = shared
        self._card = (card or card_of(device)) if self.managed else None
        self._resident: Final = memory == "resident" and not offload
        self._host_is_stated = False
        """Else the host's share is what was free of its memory when the engine was made."""
        self._budget = self._read(memory)
        self._owned: dict[str, Owned] = {}
        self._lowered: _Lowered | None = None
        """For the next plan alone."""
        self._workload: Workload | None = None
        self.reserved_bytes = 0
        """Of the device, for networks that are none of the plan's."""
        self._reserved_for = ""
        self._parked_bytes = 0
        self._window = Window(device, WINDOW_BYTES)
        self._gauge: Final = (
            Gauge(device) if self._card is not None and device.type == "cuda" else None
        )
        self._copies: Final = Copies(device)
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
            budget = replace(budget, device=free_bytes(self.device, self._card))
        self._host_is_stated = budget.host is not None
        if budget.host is None and (free := available_host_bytes()) is not None:
            budget = replace(budget, host=int(free * _HOST_SHARE))
        return budget

    def agree(self, ranks: Ranks) -> None:
        """Ranks that share a video follow one plan, as they have to run the same layers in the same
        pieces: that of the first one's card, within the least that any of them has.

        Host memory that nobody stated a share of is divided among them.
        """
        if self._card is None:
            return
        host = self._budget.host
        if host is not None and not self._host_is_stated:
            host //= ranks.size
        taken = -ranks.least([-ranks.device_bytes()])[0]
        known = [_NO_LIMIT if each is None else each for each in (self._budget.device, host)]
        device, host = (None if each == _NO_LIMIT else each for each in ranks.least(known))
        self._budget = replace(self._budget, device=device, host=host)
        card = self._card
        card = Card(**ranks.same(lambda: asdict(card)))
        self._card = replace(card, context_bytes=card.context_bytes + taken)

    def reserve(self, device_bytes: int, whom: str, parked_bytes: int) -> None:
        """Leaves room on the device for networks that are none of the plan's; before anything is
        loaded.

        Args:
            whom: for whom, in words, as errors tell it.
            parked_bytes: what would do, did they rest elsewhere while they do not run.
        """
        self.reserved_bytes += device_bytes
        self._parked_bytes += parked_bytes
        self._reserved_for = "; ".join(filter(None, (self._reserved_for, whom)))

    def begin(self, workload: Workload) -> None:
        """Before anything is loaded: where weights go, by what the checkpoint is made for.

        A budget too small for that may do for less; then weights go where its own plan, for more
        memory, wants them.

        Raises:
            MemoryPlanError: the host has too little memory, or the device beside what is reserved,
                whatever is asked for.
        """
        try:
            self.prepare(workload)
        except MemoryPlanError as error:
            host = self._budget.host
            if error.plan is None or (host is not None and error.plan.host_budget_bytes != host):
                raise
            self._refuse_the_hopeless(workload, error.plan)
            logger.info("the profile's own size does not fit: %s", error)
            self.plan = error.plan
            self._take_over(error.plan)

    def prepare(self, workload: Workload) -> Plan | None:
        """The plan for a request, which everything follows from now on; None: nothing is planned.

        Raises:
            MemoryPlanError: the budget is too small.
        """
        lowered, self._lowered = self._lowered, None
        self.plan = None
        if self._card is None:
            self.wake()
            return None
        self._workload = workload = replace(workload, offloaded=self.offload)
        budget = self._budget if lowered is None else lowered.budget
        try:
            plan = self._planned(workload, self._card, budget)
            if self.executor is not None and plan is not None:
                self.executor.follow(plan)
            elif plan is None or set(plan.sources.values()) == {"device"}:
                self.wake()
            else:
                self._take_over(plan)
        except MemoryPlanError as error:
            if lowered is None:
                raise
            told = MemoryPlanError(
                f"out of memory on {self.device} with a plan of {gib(lowered.failed.peak_bytes)}, "
                f"and no smaller one can be followed: {error}"
            )
            told.plan = error.plan
            raise told from error
        self.plan = plan
        return plan

    def _planned(self, workload: Workload, card: Card, budget: Budget) -> Plan | None:
        key = (workload, budget, self.executor is None)
        plan = self._known.get(key)
        if plan is None and (plan := self._solve(workload, card, budget)) is not None:
            self._known[key] = plan
        return plan

    def _solve(self, workload: Workload, card: Card, budget: Budget) -> Plan | None:
        reserved = self.reserved_bytes
        if self.executor is None and not self.offload:
            # Nothing of it lies in host memory: that little of that is free is no reason against.
            room = budget if self._host_is_stated else replace(budget, host=None)
            try:
                return solve(
                    workload, card, room, resident=True, host_copies=False, reserved=reserved
                )
            except MemoryPlanError:
                if self._resident:
                    return None  # an estimate is no reason to refuse what was asked for
        return solve(workload, card, budget, reserved=reserved)

    def _refuse_the_hopeless(self, workload: Workload, plan: Plan) -> None:
        assert self._card is not None
        room = Room(
            self._card, self._budget, self.reserved_bytes, self._reserved_for, self._parked_bytes
        )
        refuse_the_hopeless(workload, room, plan)

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
            try:
                self._hand_over(self.executor, component, in_files=in_files)
            except BaseException:
                del self._owned[component]
                raise
            if self.plan is not None:
                self.executor.follow(self.plan)

    def disown(self, component: str) -> None:
        """A component has been let go of."""
        self._owned.pop(component, None)
        self._copies.forget(component)
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

    def outside(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a stage has made and a later one needs, where the stage's memory can go without
        it; ``tensor`` itself where no stage gives memory back."""
        return tensor if self.executor is None else self.executor.outside(tensor)

    def watch(self) -> None:
        """What is taken of the device counts from now on, for :meth:`taken`."""
        if self._gauge is not None:
            if self.executor is not None:
                self.executor.tidy()  # as each stage does; else it were taken for this call's
            elif self._cache_exceeds_share():
                with torch.cuda.device(self.device):
                    torch.cuda.empty_cache()
            self._gauge.start()

    def _cache_exceeds_share(self) -> bool:
        """Whether torch keeps more for later than this engine may take: it is a host program's, and
        would be reported as this engine's."""
        budget, card = self._budget.device, self._card
        assert card is not None
        if budget is None:
            return False
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return kept + card.context_bytes > budget

    def taken(self) -> Taken | None:
        """What has been taken of the device since :meth:`watch`; None on a CPU."""
        if self._card is None or self._gauge is None:
            return None
        return taken(self.device, self._card, self._gauge)

    @property
    def can_lower(self) -> bool:
        """A smaller plan may be tried: one was made, and the caller left the choice to it."""
        return (
            self.plan is not None
            and not self._resident
            and not self._shared  # the others are in the middle of something
            and self._one_level_down(self.plan) < self.plan.peak_bytes
        )

    def _one_level_down(self, plan: Plan) -> int:
        """Device bytes; no fewer than the smallest plan for the same takes."""
        assert self._card is not None
        assert self._workload is not None
        least = smallest(self._workload, self._card, self._budget, reserved=self.reserved_bytes)
        return max(plan.fixed_bytes + int((plan.peak_bytes - plan.fixed_bytes) * LEVEL), least)

    def lower(self) -> Plan:
        """After the device ran out of memory: the next plan's budget is one level smaller.

        The one after that has the whole budget again: what the device lacked for one call may be
        there for the next.

        Returns:
            The plan that did not fit.
        """
        assert self.plan is not None
        failed = self.plan
        budget = replace(self._budget, device=self._one_level_down(failed))
        self._lowered = _Lowered(budget, failed)
        gc.collect()  # what the error's traceback held
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.watch()
        return failed

    @property
    def asleep(self) -> bool:
        """No weight is on the device."""
        return self._asleep if self.executor is None else self.executor.asleep

    def sleep(self) -> None:
        """Takes all weights off the device; page-locked copies of them stay in host memory.

        Raises:
            MemoryPlanError: the host has no memory for the copies; nothing has moved.
        """
        if self.executor is not None:
            self.executor.sleep()
            return
        self._copies.make({name: owned.blocks for name, owned in self._owned.items()})
        self.on_move()
        self._asleep = True
        self._copies.rest()

    def wake(self) -> None:
        """Brings back what :meth:`sleep` took. Nothing happens where nothing is asleep.

        Raises:
            torch.OutOfMemoryError: the device has no room; everything sleeps on.
        """
        if self.executor is not None:
            self.executor.wake()
        elif self._asleep:
            self.on_move()
            self._copies.bring()
            self._asleep = False

    def _take_over(self, plan: Plan) -> None:
        """An executor moves the weights from now on; where it cannot, they stay as they are."""
        self._copies.make({name: owned.blocks for name, owned in self._owned.items()})
        self.on_move()
        executor = Executor(plan, {}, self.device)
        executor.on_move = lambda: self.on_move()
        if self._gauge is not None:
            executor.on_tidy = self._gauge.look
        self._asleep = True  # an error from here on leaves an engine that can be woken
        for component in self._owned:
            self._hand_over(executor, component, in_files=False)
        self.executor, self._asleep = executor, False
        self._copies.clear()
        executor.follow(plan)

    def _hand_over(self, executor: Executor, component: str, *, in_files: bool) -> None:
        owned = self._owned[component]

        def as_files() -> Mapping[str, Block]:
            return file_blocks(
                owned.network, owned.blocks, owned.sources(), owned.dtype, self._window
            )

        blocks: Mapping[str, Block] | None = as_files() if in_files else self._copies.of(component)
        if blocks is None:
            blocks = host_blocks(owned.blocks, self.device)
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
