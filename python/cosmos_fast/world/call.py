"""What one call of ``advance`` asks for, and whether its states can be advanced together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from cosmos_fast.engine import Video2World
from cosmos_fast.errors import InputError
from cosmos_fast.request import no_engine
from cosmos_fast.world.state import WorldState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from cosmos_fast.sampling.solver import CancelToken
    from cosmos_fast.world.noise import NoiseKind

    OnFrames = Callable[[tuple[tuple[int, int], ...], int, torch.Tensor], None]


@dataclass(frozen=True)
class Plan:
    """How the chunks of one call are made."""

    samples: int
    decode: bool
    noise: NoiseKind
    num_steps: int
    guidance: float
    batch: int
    """Futures computed together: 1 on a CPU, where a product over several rows may round otherwise
    than over one, and a world's future must not depend on its neighbours to the last bit."""
    on_frames: OnFrames | None
    cancel: CancelToken | None


def check_engine(engine: object) -> None:
    """
    Raises:
        InputError: it is none, such as the name of a checkpoint.
    """
    if not isinstance(engine, Video2World):
        raise no_engine(engine, "pusherworld")


def check_states(engine: Video2World, states: Sequence[WorldState]) -> None:
    """
    Raises:
        InputError: states of another checkpoint, of different shapes, or none.
    """
    if not states or not all(isinstance(state, WorldState) for state in states):
        raise InputError(f"states = {states!r}: a sequence of at least one WorldState is needed")
    for number, state in enumerate(states):
        if state.profile != engine.profile:
            raise InputError(
                f"state {number} belongs to {state.profile.name}, this engine is "
                f"{engine.profile.name}"
            )
        if (state.size, state.tail.given) != (states[0].size, states[0].tail.given):
            raise InputError(
                f"state {number} is {state.size} with {state.tail.given} frames given, state 0 "
                f"{states[0].size} with {states[0].tail.given}: advance them in two calls"
            )


def positive(name: str, value: int) -> int:
    """
    Raises:
        InputError: ``value`` is no whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} = {value!r}: a whole number of at least 1 is needed")
    return int(value)


def finite(name: str, value: float) -> float:
    """
    Raises:
        InputError: ``value`` is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name} = {value!r}: a finite number is needed")
    return float(value)
