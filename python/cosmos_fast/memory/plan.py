"""The memory plan of a generation: what it needs, before anything is loaded, on any card."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch

from cosmos_fast._core import smallest_memory
from cosmos_fast.config import Profile, finite_number, round_size, whole_number
from cosmos_fast.errors import InputError, MemoryPlanError
from cosmos_fast.memory.budget import gib, read_budget, read_offload, read_reserved
from cosmos_fast.memory.cards import find_card
from cosmos_fast.memory.models import T5_11B, Workload, stages
from cosmos_fast.memory.request import GIB, MIB, Link, Machine, Request
from cosmos_fast.memory.schedule import Schedule
from cosmos_fast.weights.released import (
    ACTION_KIND,
    ARCHITECTURES,
    PLAIN_VARIANT,
    family_of,
    released_profile,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cosmos_fast.memory.budget import Budget, Memory
    from cosmos_fast.memory.cards import Card
    from cosmos_fast.memory.room import Taken
    from cosmos_fast.memory.timeline import Drawing
    from cosmos_fast.types import Size


AUTO_SHARE: Final = 0.95
"""Of a card's memory, what "auto" takes: torch's allocator and the driver round up."""
_HOST_FIXED: Final = 2 * GIB
"""Python, torch and a CUDA process without weights; estimate."""
WINDOW_BYTES: Final = 512 * MIB
"""Of pinned memory through which weights pass on their way from files."""
_TextDtype = Literal["bfloat16", "float32", "none"]
_FILES: Final = Link(8_000_000_000)
"""Weight files in the page cache, through the window; estimate."""


@dataclass(frozen=True, kw_only=True)
class Plan(Schedule):
    """The schedule of one generation on one card."""

    model: str
    card: str
    size: Size
    num_frames: int
    reserved_bytes: int = 0
    """Of ``fixed_bytes``: for networks that are none of the plan's, such as a guardrail's."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: bytes and seconds."""
        plain: dict[str, Any] = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("stages", "request", "core", "size")
        }
        for name in ("budget_bytes", "host_budget_bytes", "fixed_bytes", "exact"):
            plain[name] = getattr(self, name)
        plain |= {"size": list(self.size), "stages": {}}
        for stage in self.stages:
            fields = {name: getattr(stage, name) for name in stage.__dataclass_fields__}
            fields |= {"streamed": stage.streamed, "pass_seconds": stage.pass_seconds}
            for name in ("name", "places", "blocks", "holdings"):
                del fields[name]
            plain["stages"][stage.name] = fields
        return plain

    def compared(self, seconds: Mapping[str, float], taken: Taken | None) -> dict[str, Any]:
        """Predictions beside measurements, as plain values.

        Args:
            seconds: measured, of stages by name.
            taken: of the device, by this process during this call; None: not known.
        """
        streamed = ", ".join(
            f"{stage.streamed} of {len(stage.blocks)} blocks of {stage.component}"
            for stage in self.stages
            if stage.streamed
        )
        shapes = ", ".join(
            f"{stage.name} in {stage.shape}" for stage in self.stages if stage.shape != "whole"
        )
        moves = f"streams {streamed}" if streamed else "streams nothing"
        seen = "" if taken is None else f", {gib(taken.peak)} taken by the process in this call"
        return {
            "summary": f"{gib(self.peak_bytes)} planned of {gib(self.budget_bytes)}{seen}, {moves}"
            + (f"; {shapes}" if shapes else ""),
            "budget_bytes": self.budget_bytes,
            "reserved_bytes": self.reserved_bytes,
            "predicted_peak_bytes": self.peak_bytes,
            "measured_peak_bytes": None if taken is None else taken.peak,
            "beside_torch_bytes": None if taken is None else taken.beside_torch,
            "exact": self.exact,
            "sources": dict(self.sources),
            "stages": {
                stage.name: {
                    "shape": stage.shape,
                    "streamed": stage.streamed,
                    "predicted_seconds": round(stage.seconds, 6),
                    "measured_seconds": round(seconds[stage.name], 6),
                }
                for stage in self.stages
                if stage.name in seconds
            },
        }

    def table(self) -> str:
        """Peak, time and traffic of each stage, as text."""
        header = ("stage", "peak", "weights", "streamed", "slots", "seconds", "a pass", "stalls")
        rows = [header]
        for stage in self.stages:
            kept = stage.holdings[0] == "kept"
            rows.append(
                (
                    stage.name,
                    gib(stage.peak_bytes),
                    "kept" if kept else gib(stage.arena_bytes),
                    f"{stage.streamed} of {len(stage.blocks)}",
                    str(stage.slots),
                    f"{stage.seconds:.3f}",
                    f"{stage.pass_seconds:.4f}",
                    f"{stage.stall_seconds:.3f}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self._subject]
        for row in rows:
            cells = zip(row[1:], widths[1:], strict=True)
            lines.append("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in cells)]))
        cut = [f"{stage.name} in {stage.shape}" for stage in self.stages if stage.shape != "whole"]
        lines += [
            f"peak {gib(self.peak_bytes)} of {gib(self.budget_bytes)} on the device "
            f"(smallest possible {gib(self.smallest_bytes, up=True)}), {self.seconds:.2f} s",
            f"of it {gib(self.reserved_bytes)} reserved for other networks"
            if self.reserved_bytes
            else "networks of a guardrail or an upsampler are not counted: reserve their share",
            f"host {gib(self.host_bytes)}, of it {gib(self.pinned_bytes)} pinned weights"
            + (f" ({gib(asleep)} more to sleep)" if (asleep := self._unpinned_bytes()) else "")
            + "; "
            + ", ".join(f"{name}: {source}" for name, source in self.sources.items()),
            "same bytes as with everything resident"
            if self.exact
            else f"within the lossless gate, not the same bytes: {'; '.join(cut)}",
        ]
        return "\n".join(lines)

    def timeline(self, stage: str = "denoise") -> Drawing:
        picture = super().timeline(stage)
        return picture.under(
            f"{self._subject}: {gib(self.peak_bytes)} planned of {gib(self.budget_bytes)}"
        )

    @property
    def _subject(self) -> str:
        return f"{self.model} on {self.card}, {self.size}, {self.num_frames} frames"

    def _unpinned_bytes(self) -> int:
        """Of weights on the device of which the host has no copy: an engine's first sleep makes
        them."""
        if self.request.host_copies:
            return 0
        blocks = {one.component: one.blocks for one in self.request.stages}
        found = [blocks[name] for name, where in self.sources.items() if where == "device"]
        return sum(block.bytes for those in found for block in those)


def plan(
    model: str | os.PathLike[str] | Profile,
    *,
    memory: Memory = "auto",
    gpu: str | Card = "measured",
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    num_conditional_frames: int = 1,
    num_steps: int | None = None,
    guidance: float | None = None,
    variant: str | None = None,
    host_memory: int | str | None = None,
    text_dtype: _TextDtype = "bfloat16",
    offload: str | Iterable[str] = (),
    reserved: int | str = 0,
    stable_slots: bool = False,
) -> Plan:
    """The memory plan of one generation, made without a GPU and without the model.

    It is the one that an engine follows which had nothing else to do before: where everything fits,
    all weights stay on the device, and nothing in the host's memory until the engine sleeps.

    Guardrail and upsampler are no part of it; an engine sets aside what theirs take (of NVIDIA's
    guardrail with ``placement="device"``, about 17 GiB), and so does ``reserved``.

    Args:
        model: hub id or path that carries a released model's name, or a profile.
        memory: "auto" (all of the card), "resident" (all of it, and nothing may leave), an amount
            such as "12GiB", bytes, or a :class:`Budget`: the engine's whole share, CUDA context
            and workspaces included.
        gpu: a name from ``CARDS``, a card of your own, or "measured": the one in this machine.
        size: (height, width) in pixels; None: the profile's.
        num_frames: 4 n + 1 frames; None: the profile's.
        num_steps, guidance: None: the profile's.
        variant: which of a model's released variants; None: the one that a file is named for, else
            "480p-16fps".
        host_memory: amount or bytes of RAM; None: as much as is asked for.
        text_dtype: what the text encoder is stored in; "none": embeddings are given.
        offload: components ("text encoder", "vae encoder", "dit", "vae decoder") that must leave
            the device when their stage ends.
        reserved: amount or bytes of the device for networks that are none of the plan's.
        stable_slots: a block lands in the same slot in every pass, as captured graphs need.

    Raises:
        InputError: an unknown model or card, a size or amount that is none.
        MemoryPlanError: the budget is too small; the message says which would do, and ``plan`` of
            the error is the plan for that one.
    """
    profile = _profile(model, variant)
    card, leaving = find_card(gpu), read_offload(offload)
    if text_dtype not in get_args(_TextDtype):
        raise InputError(f"{text_dtype = }: one of {', '.join(get_args(_TextDtype))} is needed")
    frames = profile.num_frames if num_frames is None else num_frames
    steps = profile.num_steps if num_steps is None else num_steps
    strength = profile.guidance if guidance is None else guidance
    workload = Workload(
        profile=profile,
        size=profile.size if size is None else round_size(size),
        num_frames=whole_number("num_frames", frames),
        num_conditional_frames=whole_number("num_conditional_frames", num_conditional_frames),
        num_steps=whole_number("num_steps", steps),
        guided=finite_number("guidance", strength) != 0,
        fused=True,  # every card that is listed runs our kernels
        products=card.products,
        text=None if text_dtype == "none" else T5_11B,
        text_dtype=torch.float32 if text_dtype == "float32" else torch.bfloat16,
        offloaded=leaving,
    )
    budget = read_budget(memory, card, host_memory)
    options: dict[str, Any] = {"reserved": read_reserved(reserved), "stable_slots": stable_slots}
    if not leaving:
        try:
            kept = solve(workload, card, budget, resident=True, host_copies=False, **options)
        except MemoryPlanError:
            if memory == "resident":
                raise
        else:
            if memory == "resident":
                return kept
            least = smallest(workload, card, budget, reserved=options["reserved"])
            return replace(kept, smallest_bytes=least)  # for which weights may move
    return solve(workload, card, budget, **options)


def solve(
    workload: Workload,
    card: Card,
    budget: Budget,
    *,
    resident: bool = False,
    host_copies: bool = True,
    reserved: int = 0,
    stable_slots: bool = False,
) -> Plan:
    """The fastest plan for ``workload`` on ``card`` within ``budget``.

    Args:
        resident: all weights stay on the device.
        host_copies: what is on the device has a pinned copy, to sleep and wake by.
        reserved: bytes of the device for networks that are none of the plan's.
        stable_slots: as for :func:`plan`.

    Raises:
        MemoryPlanError: as for :func:`plan`.
    """
    wanted = stages(workload, card, moves=not resident)
    if resident:
        wanted = tuple(replace(stage, residency="keep") for stage in wanted)
    request = Request(
        _machine(card, budget, reserved),
        wanted,
        stable_slots=stable_slots,
        host_copies=host_copies,
    )
    return _planned(workload, card, request, reserved)


def smallest(workload: Workload, card: Card, budget: Budget, *, reserved: int = 0) -> int:
    """The least device bytes in which ``workload`` can be planned, ``reserved`` and all included.

    Args:
        budget: its part of the device does not matter.
    """
    request = Request(_machine(card, budget, reserved), stages(workload, card), host_copies=True)
    return smallest_memory(request)[0]


def _machine(card: Card, budget: Budget, reserved: int) -> Machine:
    return Machine(
        device_bytes=budget.device or int(card.memory_bytes * AUTO_SHARE),
        device_fixed_bytes=card.context_bytes + card.workspace_bytes + reserved,
        host_bytes=budget.host or 1 << 45,
        host_fixed_bytes=_HOST_FIXED,
        window_bytes=WINDOW_BYTES,
        bus=Link(card.bus_bytes_per_second),
        files=_FILES,
    )


def _planned(workload: Workload, card: Card, request: Request, reserved: int) -> Plan:
    names: dict[str, Any] = {
        "model": workload.profile.name,
        "card": card.name,
        "size": workload.size,
        "num_frames": workload.num_frames,
        "reserved_bytes": reserved,
    }
    try:
        return Plan.solve(request, **names)
    except MemoryPlanError as refusal:
        error = refusal
        if {stage.residency for stage in request.stages} == {"keep"}:
            error = MemoryPlanError(
                f'{refusal}, all weights kept there; with memory="auto", or an amount, '
                f"those that do not fit are streamed"
            )
        if reserved:
            error = MemoryPlanError(
                f"{error}, of it {reserved} bytes ({gib(reserved)}) reserved on the device for "
                f"networks that are none of the plan's, such as a guardrail's or an upsampler's"
            )
        device, host = smallest_memory(request)
        machine = replace(
            request.machine,
            device_bytes=max(device, request.machine.device_bytes),
            host_bytes=max(host, request.machine.host_bytes),
        )
        error.plan = Plan.solve(replace(request, machine=machine), **names)
        raise error from None


def _profile(model: str | os.PathLike[str] | Profile, variant: str | None) -> Profile:
    if isinstance(model, Profile):
        return model
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"{model = }: a hub id, a path or a profile is needed")
    if not isinstance(variant, str | None):
        raise InputError(f"{variant = }: such as '480p-16fps' is needed")
    path = Path(model)
    family = family_of(path)
    if family is None:
        raise InputError(
            f"{model!r}: planning needs the name of a released model, such as "
            f"'nvidia/Cosmos-Predict2-2B-Video2World', or a profile"
        )
    if family.kind == ACTION_KIND:
        raise InputError(
            f"{model!r}: plans are of videos; this model makes worlds, which keep all weights on "
            f"their devices"
        )
    named = PLAIN_VARIANT.search(path.name)
    if named is not None and variant is not None and variant != named[0]:
        raise InputError(f"{variant = }: {path.name} is named for {named[0]}")
    variant = variant or (named[0] if named is not None else "480p-16fps")
    profile = released_profile(path, variant, ARCHITECTURES[family.size], family)
    if profile is None:
        raise InputError(f"{variant = }: such as '480p-16fps' or '720p-16fps' is needed")
    return profile
