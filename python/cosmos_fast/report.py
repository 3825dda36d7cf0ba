"""What happened during a run: stage times, step times, backends, memory, provenance."""

from __future__ import annotations

import functools
import itertools
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, Literal, Self

import torch

_PLAIN = ("torch", "torch sdpa", "one by one")
"""What every machine has: torch's own, launched kernel by kernel."""
StageCallback = Callable[[str, Literal["start", "end"], float | None], None]
"""``on_stage(name, "start" | "end", seconds or None)``."""


@dataclass(frozen=True)
class Stage:
    """A part of the run and the seconds it took, the device's work included."""

    name: str
    seconds: float


class Clock:
    """Times the stages and steps of one run on one device."""

    def __init__(self, device: torch.device, on_stage: StageCallback | None = None) -> None:
        self.device = device
        self.stages: list[Stage] = []
        self.notes: list[str] = []
        """What the run's report has to tell."""
        self.started_again = False
        self._on_stage = on_stage
        self._steps: list[Any] = []

    def start_again(self, note: str) -> None:
        """Forgets stages and steps: the run begins once more, and ``note`` says why."""
        self.stages.clear()
        self._steps.clear()
        self.notes.append(note)
        self.started_again = True

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the body as stage ``name``; waits for the device at both ends."""
        self._tell(name, "start", None)
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        seconds = time.perf_counter() - start
        self.stages.append(Stage(name, seconds))
        self._tell(name, "end", seconds)

    def mark_step(self) -> None:
        """Call once before the first step and after each.

        On a CUDA device the host then waits for the step before the last one: it stays one step
        ahead of the device, which never runs dry, while progress and cancelling stay honest.
        """
        if self.device.type != "cuda":
            self._steps.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self._steps.append(event)
        if len(self._steps) > 2:
            self._steps[-2].synchronize()

    def step_seconds(self) -> tuple[float, ...]:
        """Seconds between the marks; waits for the last one."""
        marks = self._steps
        if self.device.type != "cuda":
            return tuple(b - a for a, b in itertools.pairwise(marks))
        if marks:
            marks[-1].synchronize()
        return tuple(a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _tell(self, name: str, state: Literal["start", "end"], seconds: float | None) -> None:
        if self._on_stage is not None:
            self._on_stage(name, state, seconds)


@dataclass(frozen=True)
class Report:
    """The record of one clip; ``as_dict`` is what the manifest holds."""

    arguments: Mapping[str, Any]
    stages: tuple[Stage, ...]
    step_seconds: tuple[float, ...]
    forwards_per_step: int
    flops_per_forward: int
    backends: Mapping[str, str]
    device: str
    precision: str
    guardrail: Mapping[str, Any]
    model: Mapping[str, Any]
    latents_sha256: str
    """Digest of the final latents' float32 bytes: two runs are the same where this is."""
    peak_device_bytes: int | None
    peak_host_bytes: int
    memory: Mapping[str, Any] | None = None
    """The memory plan beside what was measured; None where nothing was planned."""
    parallel: Mapping[str, Any] = field(default_factory=dict)
    """How the ranks shared the work and what they waited for one another; empty for one."""
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    upsampler: Mapping[str, Any] = field(default_factory=dict)
    """Which one was asked for, whether it ran, and the prompt it wrote."""

    @classmethod
    def restored(cls, plain: Mapping[str, Any]) -> Self:
        """The report that ``dataclasses.asdict`` made ``plain`` of, JSON in between or not."""
        listed = {
            "stages": tuple(Stage(**stage) for stage in plain["stages"]),
            "step_seconds": tuple(plain["step_seconds"]),
            "notes": tuple(plain["notes"]),
        }
        return cls(**{**plain, **listed})

    @property
    def seconds(self) -> float:
        """Seconds of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def teraflops(self) -> float | None:
        """Median rate of a solver step in TFLOP/s (model FLOPs over time), None without steps."""
        if not self.step_seconds:
            return None
        work = self.forwards_per_step * self.flops_per_forward
        return work / statistics.median(self.step_seconds) / 1e12

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        plain = asdict(self)
        plain["stages"] = {stage.name: round(stage.seconds, 6) for stage in self.stages}
        plain["step_seconds"] = [round(seconds, 6) for seconds in self.step_seconds]
        plain["seconds"] = round(self.seconds, 6)
        plain["teraflops"] = self.teraflops
        return plain

    def table(self) -> str:
        """The stage table as text."""
        planned = {} if self.memory is None else self.memory["stages"]
        rows = [(one.name, f"{one.seconds:.3f} s{_planned(planned, one)}") for one in self.stages]
        rows.append(("total", f"{self.seconds:.3f} s"))
        if self.step_seconds:
            median = statistics.median(self.step_seconds)
            rows.append(("median step", f"{median:.3f} s, {self.forwards_per_step} forwards"))
            rows.append(("rate", f"{self.teraflops or 0:.3g} TFLOP/s"))
        if self.peak_device_bytes is not None:
            rows.append(("peak device memory", _since_the_start(self.peak_device_bytes)))
        if self.memory is not None:
            rows.append(("memory plan", str(self.memory["summary"])))
        rows.append(("peak host memory", _since_the_start(self.peak_host_bytes)))
        if self.parallel:
            rows += _parallel_rows(self.parallel)
        rows += _backend_rows(self.backends)
        rows.append(("guardrail", str(self.guardrail.get("verdict"))))
        rows += [
            (f"guardrail: {one['check']}", f"{one['subject']}: {one['verdict']}")
            for one in self.guardrail.get("checks", ())
        ]
        if self.upsampler.get("ran"):
            rows.append(("upsampler", str(self.upsampler["requested"])))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _since_the_start(amount: int) -> str:
    return f"{amount / 2**30:.2f} GiB since the process began"


def _planned(planned: Mapping[str, Any], stage: Stage) -> str:
    if stage.name not in planned:
        return ""
    return f", {planned[stage.name]['predicted_seconds']:.3f} planned"


def _backend_rows(backends: Mapping[str, str]) -> list[tuple[str, str]]:
    """One row where all is plain torch, else one for each that is not; the manifest has all."""
    others = {name: backend for name, backend in backends.items() if backend not in _PLAIN}
    if not others:
        return [("backends", "torch")] if backends else []
    rows = [(f"backend: {name}", backend) for name, backend in others.items()]
    return rows if len(others) == len(backends) else [*rows, ("other backends", "torch")]


def _parallel_rows(parallel: Mapping[str, Any]) -> list[tuple[str, str]]:
    way = f"{parallel['guidance_branches']} of guidance x {parallel['context']} of context"
    share, waited = parallel["communication_share"], parallel["communication_seconds"]
    return [
        ("ranks", f"{parallel['ranks']}: {way} ({parallel['attention']}), {parallel['backend']}"),
        ("communication", f"{waited:.3f} s, {share:.1%} of denoising and decoding"),
    ]


def peak_device_bytes(device: torch.device) -> int | None:
    """Largest number of bytes that torch's allocator ever held on ``device``; None on a CPU.

    The statistics belong to the host process: they are read, never reset.
    """
    if device.type != "cuda":
        return None
    return int(torch.cuda.max_memory_allocated(device))


def peak_host_bytes() -> int:
    """Largest resident size of this process so far."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    packages = ("cosmos-fast", "torch", "triton", "numpy", "transformers")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


@functools.cache  # every report asks, and looking takes milliseconds a package
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"
