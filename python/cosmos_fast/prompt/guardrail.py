"""What stands between a prompt, a video, and the world: checks, their verdicts, and going without.

A guardrail is two lists of checks. Whoever brings a guardrail of their own writes checks; loading
them, timing them, holding them to their answer and writing it down is done in inspection.py, in
one place, so that no check can fail open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    import os

    from cosmos_fast.types import Frames

Placement = Literal["device", "host", "disk"]
"""Where a model stays between uses: on the device, in host memory, or nowhere (read each time)."""

DEFAULT_TIMEOUT = 600.0
"""Seconds that loading a check, or one answer of it, may take."""


@dataclass(frozen=True)
class Verdict:
    """What a check found."""

    safe: bool
    """Anything but True blocks."""
    reason: str = ""
    """For people: what was found, where."""
    details: Mapping[str, int | float] = field(default_factory=dict)
    """For the report. Over the pieces of a video counts (int) add up and scores (float) keep their
    largest."""
    frames: Frames | None = None
    """From a check of frames: what to publish in their place; of the same shape and rate."""


@runtime_checkable
class PromptCheck(Protocol):
    """Looks at every text that reaches a model."""

    @property
    def name(self) -> str:
        """As in the report."""
        ...

    def load(self) -> None:
        """Makes ready for :meth:`check`; called once. Raising blocks everything."""
        ...

    def check(self, prompt: str) -> Verdict:
        """The verdict on one text. Raising, or not coming back in time, blocks it."""
        ...


@runtime_checkable
class FrameCheck(Protocol):
    """Looks at every frame before anybody else does."""

    @property
    def name(self) -> str:
        """As in the report."""
        ...

    def load(self) -> None:
        """Makes ready for :meth:`check`; called once. Raising blocks everything."""
        ...

    def check(self, frames: Frames) -> Verdict:
        """The verdict on some consecutive frames of a video; they may lie on a device."""
        ...


@runtime_checkable
class Sleeper(Protocol):
    """A check that can give its device memory back; one of your own may."""

    def sleep(self) -> None:
        """The engine goes to sleep: off the device until :meth:`check` is called again."""
        ...


@dataclass(frozen=True)
class Guardrail:
    """Checks of prompts and of frames, each run in order; the first that says no ends it."""

    prompt_checks: Sequence[PromptCheck]
    frame_checks: Sequence[FrameCheck]
    timeout_s: float = DEFAULT_TIMEOUT
    """Seconds that loading a check, or one answer of it, may take."""

    def __post_init__(self) -> None:
        for name, checks, kind in (
            ("prompt_checks", self.prompt_checks, PromptCheck),
            ("frame_checks", self.frame_checks, FrameCheck),
        ):
            if not checks:
                raise InputError(
                    f"Guardrail({name}=[]): no check would pass everything; give one, or say why "
                    f'none is needed with [NoCheck(reason="...")]'
                )
            if strange := [check for check in checks if not isinstance(check, kind)]:
                raise InputError(
                    f"Guardrail({name}=...): {strange[0]!r} has not all of name, load() and check()"
                )
            names = [check.name for check in checks]
            if len(set(names)) != len(names):
                raise InputError(f"Guardrail({name}=...): two checks have one name, of {names}")
        if not 0 < self.timeout_s < float("inf"):
            raise InputError(f"{self.timeout_s = } seconds: a number above 0 is needed")


@dataclass(frozen=True)
class NoCheck:
    """Stands in a list of checks for one that is left out on purpose; the report repeats why."""

    reason: str
    name: str = "no check"

    def __post_init__(self) -> None:
        _needs_words("NoCheck", self.reason)

    def load(self) -> None:
        """There is nothing to load."""

    def check(self, _: object) -> Verdict:
        """Passes everything; the report says "not checked" all the same."""
        return Verdict(True, self.reason)


@dataclass(frozen=True)
class NoGuardrail:
    """The auditable way to run without a guardrail.

    The licence of NVIDIA's weights asks for a guardrail, or a substantially similar one, in
    products; whoever opts out says why, and every manifest repeats it.
    """

    reason: str

    def __post_init__(self) -> None:
        _needs_words("NoGuardrail", self.reason)


@dataclass(frozen=True)
class DefaultGuardrail:
    """The reference's guardrail: word lists, Llama Guard 3, a classifier of frames, face blur."""

    folder: str | os.PathLike[str] | None = None
    """nvidia/Cosmos-Guardrail1; None looks below the checkpoint root, beside the model, and where
    the model came from the hub, there."""
    llama_guard: str | os.PathLike[str] | None = None
    """meta-llama/Llama-Guard-3-8B; None looks in the same places."""
    placement: Placement = "device"
    timeout_s: float = DEFAULT_TIMEOUT

    def __post_init__(self) -> None:
        check_placement(self.placement)
        for name in ("folder", "llama_guard"):
            path = getattr(self, name)
            if path is not None and not Path(path).expanduser().is_dir():
                raise InputError(f"DefaultGuardrail({name}={str(path)!r}): not a folder")


GuardrailChoice = Literal["default"] | DefaultGuardrail | Guardrail | NoGuardrail
"""What ``from_pretrained(guardrail=...)`` takes."""


def check_placement(placement: str) -> None:
    """
    Raises:
        InputError: there is no such placement.
    """
    if placement not in ("device", "host", "disk"):
        raise InputError(f'{placement = }: "device", "host" or "disk" is needed')


def _needs_words(name: str, reason: object) -> None:
    if not isinstance(reason, str) or not reason.strip():
        raise InputError(f"{name}(reason={reason!r}): say in a few words why none is needed")
