"""What the planner is asked: the machine, the stages, and what may be traded for memory.

The Rust core reads these objects by attribute and checks them; see ``rust/core/src/plan``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Residency = Literal["free", "keep", "drop"]
"""What the caller demands of a stage's weights: "free" leaves it to the planner, "keep" holds them
on the device for good, "drop" takes them off the device when the stage ends."""

NANOS: Final = 1_000_000_000
MIB: Final = 1 << 20
GIB: Final = 1 << 30


@dataclass(frozen=True)
class Link:
    """A way for weights to reach the device."""

    bytes_per_second: int
    latency_nanos: int = 10_000
    """What each copy costs on top."""


@dataclass(frozen=True)
class Machine:
    """What there is to spend, in bytes, and how fast weights move."""

    device_bytes: int
    """The engine's whole share of the device."""
    device_fixed_bytes: int
    """What is gone before the first weight: CUDA context, library workspaces, graphs."""
    host_bytes: int
    """The engine's whole share of the host's memory."""
    host_fixed_bytes: int
    """What the process needs without any weight."""
    window_bytes: int
    """Pinned bytes through which weights pass that are not held in pinned memory."""
    bus: Link
    """From pinned memory to the device."""
    files: Link
    """From the weight files, through the window, to the device."""


@dataclass(frozen=True)
class Block:
    """A unit of weights that moves as a whole."""

    name: str
    bytes: int
    nanos: int
    """Time of one use in the stage's first shape."""
    hold: bool = False
    """It is used all over a pass and cannot be streamed."""


@dataclass(frozen=True)
class Shape:
    """One way to run a stage: whole, chunked, tiled."""

    name: str
    activation_bytes: int
    """Peak beside the weights: activations, workspace, caches, what earlier stages left."""
    slowdown_ppm: int = 0
    """Additional time of every use, in millionths."""
    exact: bool = True
    """It computes the same bytes as the first shape."""
    heap_bytes: int = 0
    """Of ``activation_bytes``: made as one segment when the stage begins, for all that it makes
    and lets go of; 0: torch's allocator asks for what it needs. The planner does not read it."""


@dataclass(frozen=True)
class Stage:
    """A part of the run that uses its blocks in order, ``passes`` times."""

    name: str
    component: str
    """Whose weights it uses; several stages may share a component."""
    blocks: tuple[Block, ...]
    passes: int
    shapes: tuple[Shape, ...]
    """Alternatives; the first is the plain one."""
    residency: Residency = "free"


@dataclass(frozen=True)
class Request:
    """Everything the planner knows."""

    machine: Machine
    stages: tuple[Stage, ...]
    """In the order in which they run, once each a generation."""
    max_slots: int = 4
    """Most slots that the streamed blocks of a stage share."""
    stable_slots: bool = False
    """A streamed block lands in the same slot in every pass, as captured graphs need."""
    host_copies: bool = False
    """Weights on the device have a pinned copy, so that the device can be given back and restored
    at the speed of the bus."""
