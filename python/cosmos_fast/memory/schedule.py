"""A schedule: what the planner decided, stage by stage, for the executor and for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cosmos_fast._core import MemoryPlan, plan_memory
from cosmos_fast.errors import InputError
from cosmos_fast.memory.timeline import Drawing, timeline

if TYPE_CHECKING:
    from typing import Self

    from cosmos_fast.memory.request import Request

Holding = Literal["kept", "resident", "streamed"]


@dataclass(frozen=True)
class StagePlan:
    """What happens in one stage. Bytes and seconds are predictions."""

    name: str
    component: str
    shape: str
    exact: bool
    """It computes the same bytes as the plain shape."""
    blocks: tuple[str, ...]
    holdings: tuple[Holding, ...]
    """Of each block: on the device for good, for the stage, or for the moment."""
    places: tuple[tuple[int, int], ...]
    """(offset, bytes) in the stage's arena: the slots, then the residents. Of a kept stage: of
    each block in the arena of what is kept."""
    slots: int
    slot_bytes: int
    arena_bytes: int
    activation_bytes: int
    peak_bytes: int
    copied_bytes: int
    passes: int
    seconds: float
    first_pass_seconds: float
    stall_seconds: float

    @property
    def streamed(self) -> int:
        """Blocks that are copied in every pass."""
        return self.holdings.count("streamed")

    @property
    def pass_seconds(self) -> float:
        """A pass, the first one apart: of the DiT a forward."""
        if self.passes == 1:
            return self.seconds
        return (self.seconds - self.first_pass_seconds) / (self.passes - 1)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Where every weight is at every moment, and what that costs. Bytes and seconds."""

    stages: tuple[StagePlan, ...]
    sources: dict[str, Literal["device", "pinned", "files"]]
    """Where each component's weights rest while they are not in use."""
    kept_bytes: int
    """Of the arena of what stays on the device for good."""
    peak_bytes: int
    host_bytes: int
    pinned_bytes: int
    copied_bytes: int
    seconds: float
    smallest_bytes: int
    """The least device memory for which there is a schedule."""
    smallest_host_bytes: int
    request: Request
    core: MemoryPlan
    """For the executor: ``core.actions(stage)`` and ``core.timeline(stage)``."""

    @classmethod
    def solve(cls, request: Request, **more: Any) -> Self:
        """The fastest schedule for ``request``; ``more`` are fields of a child class.

        Raises:
            InputError: values that make no sense.
            MemoryPlanError: the budget is below the smallest.
        """
        core = plan_memory(request)
        found = core.as_dict()
        stages = []
        for stage in found.pop("stages"):
            for name in ("", "first_pass_", "stall_"):
                stage[f"{name}seconds"] = stage.pop(f"{name}nanos") / 1e9
            for name in ("blocks", "holdings", "places"):
                stage[name] = tuple(stage[name])
            stages.append(StagePlan(**stage))
        return cls(
            stages=tuple(stages),
            seconds=found.pop("nanos") / 1e9,
            smallest_bytes=found.pop("smallest_device_bytes"),
            request=request,
            core=core,
            **found,
            **more,
        )

    @property
    def exact(self) -> bool:
        """It only moves weights: results have the same bytes as with everything resident."""
        return all(stage.exact for stage in self.stages)

    @property
    def budget_bytes(self) -> int:
        return self.request.machine.device_bytes

    @property
    def host_budget_bytes(self) -> int:
        return self.request.machine.host_bytes

    @property
    def fixed_bytes(self) -> int:
        """Of the device: context, library workspaces, graphs."""
        return self.request.machine.device_fixed_bytes

    def stage(self, name: str) -> StagePlan:
        """The stage called ``name``."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise InputError(f"no stage {name!r}: {', '.join(stage.name for stage in self.stages)}")

    def heap_bytes(self, stage: StagePlan) -> int:
        """Of a stage's activations: what is made as one segment when it begins."""
        shapes = self.request.stages[self.stages.index(stage)].shapes
        return next(shape.heap_bytes for shape in shapes if shape.name == stage.shape)

    def timeline(self, stage: str = "denoise") -> Drawing:
        """Slots and copies of the first passes of ``stage``, as a picture."""
        index = self.stages.index(self.stage(stage))
        copies, uses = self.core.timeline(index)
        return timeline(self.stages[index], copies, uses)
