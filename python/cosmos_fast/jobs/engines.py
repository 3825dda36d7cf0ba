"""What makes the videos of a list: the parts of an engine that a job needs, and its identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from cosmos_fast.request import no_engine

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.clip import Sidecar
    from cosmos_fast.config import Profile
    from cosmos_fast.prompt import Inspection

NO_GUARDRAIL: Final = "none"
"""Identity of going without one."""


class Saves(Protocol):
    """What a job's engine returns."""

    def save(self, path: Path, *, crf: int, sidecar: Sidecar | None) -> Any:
        """Writes the video and, beside it, its manifest and text; as :meth:`Clip.save`."""


class Generates(Protocol):
    """The part of ``Video2World`` that a job needs."""

    @property
    def profile(self) -> Profile: ...

    def generate(self, *arguments: Any, **options: Any) -> Saves:
        """``(frames, prompt, negative_prompt, **options)``; as ``Video2World.generate``."""


@runtime_checkable
class Shares(Protocol):
    """The part of ``Video2World`` that tells with how many it shares; one without is alone."""

    @property
    def ranks(self) -> int: ...


@runtime_checkable
class Inspects(Protocol):
    """The part of ``Video2World`` that tells of its guardrail; an engine without has none."""

    def inspection(self) -> Inspection: ...


def check_engine(engine: object) -> None:
    """
    Raises:
        InputError: it is none, such as the name of a checkpoint.
    """
    is_one = hasattr(engine, "profile") and hasattr(engine, "generate")
    if isinstance(engine, type) or not is_one:
        raise no_engine(engine, "ballworld")


def guardrail_of(engine: Generates) -> str:
    """Identity of an engine's guardrail; "none" where nothing is checked."""
    return engine.inspection().identity if isinstance(engine, Inspects) else NO_GUARDRAIL


def identity(model: str, guardrail: str) -> str:
    """What makes a list's videos: the model, and what stands between it and the world."""
    return model if guardrail == NO_GUARDRAIL else f"{model} guardrail {guardrail}"
