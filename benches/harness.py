"""How a figure is made: warm up, repeat, median and spread, beside what the device can do.

Every bench runs ours and the rivals in one process on the same inputs, checks each against an
exact result first, and ends its output with one JSON object.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

FLUSH_BYTES = 512 * 2**20
"""More than the last-level cache of any device: inputs come from memory each time."""


class WrongResult(Exception):
    """A contender computed something else; nothing of the run is reported."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int


def measure(
    function: Callable[[], object], device: torch.device, *, warmup: int = 5, repeats: int = 50
) -> Timing:
    """Times ``function`` with the caches of ``device`` flushed before every call."""
    for _ in range(warmup):
        function()
    timed = _timed_on_cuda if device.type == "cuda" else _timed_on_host
    milliseconds = sorted(timed(function, device, repeats))
    return Timing(
        median_ms=statistics.median(milliseconds),
        p10_ms=milliseconds[len(milliseconds) // 10],
        p90_ms=milliseconds[-1 - len(milliseconds) // 10],
        repeats=repeats,
    )


def _timed_on_cuda(
    function: Callable[[], object], device: torch.device, repeats: int
) -> list[float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    starts, ends = (
        [torch.cuda.Event(enable_timing=True) for _ in range(repeats)] for _ in range(2)
    )
    torch.cuda.synchronize(device)
    for start, end in zip(starts, ends, strict=True):
        flush.zero_()
        start.record()
        function()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]


def _timed_on_host(
    function: Callable[[], object], device: torch.device, repeats: int
) -> list[float]:
    milliseconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        milliseconds.append((time.perf_counter() - start) * 1e3)
    return milliseconds


def copy_bandwidth(device: torch.device, size: int = FLUSH_BYTES) -> float:
    """Gigabytes a second, read and written, of a copy within ``device``: the ceiling here."""
    source = torch.empty(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), device, repeats=20)
    return 2 * size / timing.median_ms / 1e6


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def refuse_missing(device: torch.device) -> None:
    """
    Raises:
        SystemExit: it is a CUDA device, and torch sees none.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "torch sees no CUDA device, and figures are of one; that a bench works is shown on a "
            "CPU by --tiny (attention, several cards: --dry)"
        )


def check(contender: str, error: float, bound: float) -> None:
    """
    Raises:
        WrongResult: ``error`` is beyond ``bound``, or not a number.
    """
    if not error <= bound:
        raise WrongResult(f"{contender}: relative error {error:.2e} is beyond {bound:.0e}")


def visible_card() -> str:
    """What nvidia-smi calls the first card that this process sees."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the code."""
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("cosmos-fast", "torch", "triton")},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
