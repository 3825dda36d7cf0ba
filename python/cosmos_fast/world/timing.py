"""Where the time of a step went, told without making the device wait."""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_REMEMBERED: Final = 1000


class Marks:
    """Points in the device's time; seconds are read from them when someone asks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = self._mark()
        yield
        self._spans.append((name, begin, self._mark()))

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in order; waits for the last one."""
        found: dict[str, float] = {}
        for name, begin, end in self._spans:
            if self._device.type == "cuda":
                end.synchronize()
                passed = begin.elapsed_time(end) / 1000
            else:
                passed = end - begin
            found[name] = found.get(name, 0.0) + passed
        return found

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class StepReport:
    """One step; its times are read, and waited for, on first use."""

    def __init__(self, marks: Marks, frames: int, guardrail: dict[str, Any]) -> None:
        self._marks = marks
        self._seconds: dict[str, float] | None = None
        self.frames: Final = frames
        """New frames of all worlds and samples together."""
        self.guardrail: Final = guardrail

    @property
    def stages(self) -> dict[str, float]:
        if self._seconds is None:
            self._seconds = self._marks.seconds()
        return self._seconds

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        return f"StepReport({self.frames} frames)"


@dataclass(frozen=True)
class WorldReport:
    """What a world has done so far; latencies are of the last 1000 steps."""

    steps: int
    frames: int
    latency_p50: float
    """Seconds from the start of a step to its last frame; NaN before the first step."""
    latency_p99: float
    frames_per_second: float
    stages: dict[str, float]
    """Mean seconds of a step by stage."""


class History:
    """The last steps of a world."""

    def __init__(self) -> None:
        self._steps = 0
        self._frames = 0
        self._last: deque[StepReport] = deque(maxlen=_REMEMBERED)

    def add(self, step: StepReport) -> None:
        self._steps += 1
        self._frames += step.frames
        self._last.append(step)

    def report(self) -> WorldReport:
        """Waits for the device."""
        last = list(self._last)
        times = np.array([step.seconds for step in last] or [np.nan])
        names = dict.fromkeys(name for step in last for name in step.stages)
        made = sum(step.frames for step in last)
        return WorldReport(
            steps=self._steps,
            frames=self._frames,
            latency_p50=float(np.percentile(times, 50)),
            latency_p99=float(np.percentile(times, 99)),
            frames_per_second=float(made / times.sum()) if last else 0.0,
            stages={
                name: sum(step.stages.get(name, 0.0) for step in last) / len(last) for name in names
            },
        )
