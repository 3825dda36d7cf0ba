"""Running a guardrail so that it can only fail closed, and writing down what it did.

A check passes something on in one way: it was loaded, it answered in time, and its answer is a
:class:`Verdict` that says ``safe is True``. Everything else raises :class:`GuardrailBlocked`.
"""

from __future__ import annotations

import contextvars
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from cosmos_fast.errors import CosmosFastError, GuardrailBlocked, InputError
from cosmos_fast.prompt.guardrail import (
    DefaultGuardrail,
    Guardrail,
    NoCheck,
    NoGuardrail,
    Verdict,
)
from cosmos_fast.types import Frames
from cosmos_fast.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from cosmos_fast.prompt.guardrail import FrameCheck, PromptCheck

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass
class CheckRecord:
    """What one check did for one subject."""

    check: str
    subject: str
    loaded: bool = False
    ran: bool = False
    verdict: Literal["safe", "blocked", "not run", "not checked"] = "not run"
    reason: str = ""
    seconds: float = 0.0
    details: dict[str, int | float] = field(default_factory=dict)

    def add(self, verdict: Verdict, seconds: float) -> None:
        self.ran = True
        self.seconds = round(self.seconds + seconds, 6)
        self.verdict = "safe" if verdict.safe is True else "blocked"
        self.reason = verdict.reason or self.reason
        for name, value in verdict.details.items():
            if name not in self.details:
                self.details[name] = value
            elif isinstance(value, int):
                self.details[name] += value
            else:
                self.details[name] = max(self.details[name], value)


@dataclass(frozen=True)
class GuardrailRecord:
    """What the report and the manifest say about the guardrail of a run."""

    requested: str
    loaded: bool
    ran: bool
    verdict: str
    """"safe"; "partly checked" (a check was left out on purpose); "blocked"; "not checked" (no
    guardrail); "not applicable" (a toy model)."""
    reason: str | None = None
    checks: tuple[CheckRecord, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Gate:
    """A guardrail at work in one engine; every call of the engine makes an :class:`Inspection`."""

    def __init__(
        self, guardrail: Guardrail | None, requested: str, without: GuardrailRecord | None = None
    ) -> None:
        """
        Args:
            guardrail: None lets everything pass, and says so with ``without``.
            requested: what was asked for, as the report names it.
            without: the record of going without; exactly where there is no guardrail.
        """
        assert (guardrail is None) == (without is not None)
        self.guardrail = guardrail
        self.requested = requested
        self.without = without
        self._loaded: set[int] = set()
        self._stuck: str | None = None
        self._idle: list[Worker] = []
        """Threads that have answered and wait for the next question: torch keeps plans of
        convolutions for every thread, and a new one would make its own and leave them behind."""

    @classmethod
    def open(cls, requested: str, verdict: str, reason: str) -> Gate:
        """A gate that lets everything pass, on record."""
        return cls(None, requested, GuardrailRecord(requested, False, False, verdict, reason))

    def load(self) -> None:
        """Makes every check ready.

        Raises:
            GuardrailBlocked: one could not be; nothing can be generated.
        """
        if self.guardrail is None:
            return
        checks: list[PromptCheck | FrameCheck] = [
            *self.guardrail.prompt_checks,
            *self.guardrail.frame_checks,
        ]
        for check in checks:
            self.load_check(check, None)

    @property
    def identity(self) -> str:
        """Tells this guardrail from another in a few words; "none" where nothing is checked."""
        if self.guardrail is None:
            return "none"
        if self.requested != "own":
            return self.requested
        checks = (self.guardrail.prompt_checks, self.guardrail.frame_checks)
        return "own: " + "; ".join(", ".join(one.name for one in some) for some in checks)

    def inspection(self) -> Inspection:
        return Inspection(self)

    def load_check(self, check: PromptCheck | FrameCheck, subject: str | None) -> None:
        if id(check) not in self._loaded:
            self.answer(check.name, subject, "loading", check.load)
            self._loaded.add(id(check))

    def is_loaded(self, check: PromptCheck | FrameCheck) -> bool:
        return id(check) in self._loaded

    def answer(
        self, name: str, subject: str | None, doing: str, work: Callable[[], Value]
    ) -> Value:
        """What ``work`` returns, if it does so in time.

        Raises:
            GuardrailBlocked: it raises, or takes too long; one that hangs blocks for good, because
                nobody knows what it still holds.
        """
        assert self.guardrail is not None
        if self._stuck is not None:
            raise GuardrailBlocked(
                f"{self._stuck}; that cannot be undone in this process: load the engine again in "
                f"another one",
                cause="timeout",
                check=name,
                subject=subject,
            )
        seconds = self.guardrail.timeout_s
        try:
            return _within(self._idle, seconds, work)
        except _TooLate:
            self._stuck = f"the guardrail's {name} did not answer within {seconds:g} s ({doing})"
            raise GuardrailBlocked(
                f"{self._stuck}, so nothing passes; give it more time with timeout_s=",
                cause="timeout",
                check=name,
                subject=subject,
            ) from None
        except GuardrailBlocked:
            raise
        except Exception as error:
            raise GuardrailBlocked(
                f"the guardrail's {name} failed ({doing}): {_told(error)}; without its word "
                f"nothing passes",
                cause="error",
                check=name,
                subject=subject,
            ) from error


class Inspection:
    """What the guardrail sees and says during one call."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._records: list[CheckRecord] = []
        self._safe_texts: set[str] = set()
        self._blocked: str | None = None
        if gate.guardrail is not None:
            # On record from the beginning, so that one that never ran shows as such.
            for check in gate.guardrail.frame_checks:
                self._record(check, "video")

    @property
    def active(self) -> bool:
        """Whether anything is checked at all."""
        return self._gate.guardrail is not None

    @property
    def identity(self) -> str:
        """Of the guardrail; "none" where nothing is checked."""
        return self._gate.identity

    def recall(self, found: Iterable[CheckRecord]) -> None:
        """Puts on record what the same guardrail found in another call about what this one uses."""
        known = {(one.check, one.subject) for one in self._records}
        for one in found:
            if (one.check, one.subject) not in known:
                self._records.append(replace(one, details=dict(one.details)))

    def prompt(self, subject: str, text: str) -> None:
        """Passes a text on to whoever reads it next.

        Args:
            subject: which one it is, such as "prompt" or "negative prompt".

        Raises:
            GuardrailBlocked: a check says no, fails, or does not answer.
        """
        if self._gate.guardrail is None or text in self._safe_texts:
            return
        for check in self._gate.guardrail.prompt_checks:
            self._run(check, subject, check.check, text)
        self._safe_texts.add(text)

    def refuse(self, subject: str, reason: str) -> None:
        """Blocks what no check can look at; without a guardrail it passes.

        Raises:
            GuardrailBlocked: always, where anything is checked at all.
        """
        if self.active:
            self._blocked = f"the {subject} cannot be checked: {reason}"
            record = self.record().as_dict()
            raise GuardrailBlocked(self._blocked, subject=subject, record=record)

    def frames(self, frames: Frames) -> Frames:
        """Passes frames on; what comes out is what may be published.

        Raises:
            GuardrailBlocked: as :meth:`prompt`.
        """
        if self._gate.guardrail is None:
            return frames
        for check in self._gate.guardrail.frame_checks:
            verdict = self._run(check, "video", check.check, frames)
            frames = verdict.frames if verdict.frames is not None else frames
        return frames

    def record(self) -> GuardrailRecord:
        """What to report, now."""
        gate = self._gate
        if gate.without is not None:
            return gate.without
        found = {one.verdict for one in self._records}
        verdict = "not checked"
        if "safe" in found and found <= {"safe", "not checked"}:
            verdict = "safe" if found == {"safe"} else "partly checked"
        return GuardrailRecord(
            gate.requested,
            loaded=all(one.loaded for one in self._records),
            ran=any(one.ran for one in self._records),
            verdict="blocked" if self._blocked else verdict,
            reason=self._blocked,
            checks=tuple(self._records),
        )

    def _record(self, check: PromptCheck | FrameCheck, subject: str) -> CheckRecord:
        for known in self._records:
            if known.check == check.name and known.subject == subject:
                return known
        self._records.append(CheckRecord(check.name, subject, self._gate.is_loaded(check)))
        return self._records[-1]

    def _run(
        self,
        check: PromptCheck | FrameCheck,
        subject: str,
        ask: Callable[[Any], Verdict],
        about: str | Frames,
    ) -> Verdict:
        record = self._record(check, subject)
        try:
            self._gate.load_check(check, subject)
            record.loaded = True
            start = time.perf_counter()
            verdict = self._gate.answer(
                check.name, subject, f"checking the {subject}", lambda: _held_to(ask(about), about)
            )
            record.add(verdict, time.perf_counter() - start)
            if isinstance(check, NoCheck):
                record.ran, record.verdict = False, "not checked"
            if verdict.safe is not True:
                raise GuardrailBlocked(
                    f"the {subject} was blocked by the guardrail's {check.name}: "
                    f"{verdict.reason or 'it gives no reason'}",
                    check=check.name,
                    subject=subject,
                )
        except GuardrailBlocked as blocked:
            record.verdict, self._blocked = "blocked", str(blocked)
            record.reason = record.reason or str(blocked)
            blocked.record = self.record().as_dict()
            raise
        return verdict


def choose_gate(choice: object, *, toy: bool, build: Callable[[], Guardrail]) -> Gate:
    """The gate that an engine works behind.

    Args:
        choice: a :data:`GuardrailChoice`.
        toy: the checkpoint is a small model that ships with the package; nothing it can show needs
            a guardrail, so "default" means none.
        build: makes the default guardrail that was asked for.

    Raises:
        InputError: the choice is none.
        GuardrailBlocked: the default guardrail cannot be made.
    """
    if isinstance(choice, NoGuardrail):
        logger.warning("no guardrail: prompts and videos are not checked (%s)", choice.reason)
        return Gate.open("none", "not checked", choice.reason)
    if isinstance(choice, Guardrail):
        return Gate(choice, "own")
    if isinstance(choice, DefaultGuardrail):
        return Gate(build(), "default")
    if choice != "default":
        raise InputError(
            f'guardrail = {choice!r}: "default", DefaultGuardrail(...), Guardrail(...) or '
            f'NoGuardrail(reason="...") is needed'
        )
    if toy:
        return Gate.open("default", "not applicable", "toy model")
    return Gate(build(), "default")


def grouped(chunks: Iterable[Frames], at_once: int) -> Generator[Frames]:
    """Consecutive pieces of one video, ``at_once`` frames or more together: fewer, larger ones."""
    waiting: list[Frames] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(map(len, waiting)) >= at_once:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


def joined(chunks: list[Frames]) -> Frames:
    """Consecutive pieces of one video as one."""
    if len(chunks) == 1:
        return chunks[0]
    return Frames(torch.cat([chunk.to("pt") for chunk in chunks]), chunks[0].fps)


def _held_to(verdict: object, about: str | Frames) -> Verdict:
    """``verdict``, if it is one and speaks of what was asked."""
    if not isinstance(verdict, Verdict):
        raise TypeError(f"it answers {verdict!r}; a Verdict is needed")
    if not isinstance(verdict.reason, str) or not _are_numbers(verdict.details):
        raise TypeError(f"it answers {verdict!r}; its reason is a str, its details are numbers")
    if verdict.frames is not None and (
        not isinstance(about, Frames)
        or verdict.frames.shape != about.shape
        or verdict.frames.fps != about.fps
    ):
        raise TypeError(f"it gives back {verdict.frames!r} in place of {about!r}")
    return verdict


def _are_numbers(details: object) -> bool:
    """Whether the report can take them: by name, none of them infinite."""
    return isinstance(details, Mapping) and all(
        isinstance(name, str) and isinstance(value, int | float) and math.isfinite(value)
        for name, value in details.items()
    )


class _TooLate(Exception):
    """The work is not done and will be left behind."""


def _within(idle: list[Worker], seconds: float, work: Callable[[], Value]) -> Value:
    """Runs ``work`` in another thread, on the caller's CUDA device and stream.

    Python cannot end a thread: one that does not come back is left behind, as a daemon.

    Args:
        idle: takes one of these, or a new one, and puts it back where it has answered. Whoever asks
            at the same time has another one: nobody's time runs while others are looked at.
    """
    outcome: list[Value] = []
    errors: list[BaseException] = []
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def run() -> None:
        try:
            if stream is None:
                outcome.append(work())
            else:
                with torch.cuda.device(stream.device), torch.cuda.stream(stream):
                    outcome.append(work())
        except BaseException as error:
            errors.append(error)

    try:
        worker = idle.pop()
    except IndexError:
        worker = Worker("cosmos-fast guardrail", exit_seconds=0.0)
    answer = worker.line().submit(partial(contextvars.copy_context().run, run))
    try:
        answer.result(seconds)
    except TimeoutError:
        raise _TooLate from None
    idle.append(worker)
    if not errors:
        return outcome[0]
    error = errors.pop()
    try:
        # What would end the process from a thread of the host's own is an error from this one.
        if isinstance(error, Exception):
            raise error
        raise RuntimeError(f"it ended with {type(error).__name__}") from error
    finally:
        del error  # it holds this frame: a circle that would keep the callers' frames alive


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, CosmosFastError) else f"{type(error).__name__}: {text}"
