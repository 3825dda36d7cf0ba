"""A contest: ours and the rivals at one shape, checked, then held in turns, in one process.

Each contender is first checked against the exact result on inputs made for that. Those that are
right are timed in rounds, everybody once a round and each round in another order, so that clocks
and heat are everybody's; a round fills its share of the seconds with calls back to back. What is
wrong is refused: a rival loses its row, one of ours ends the run.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from harness import WrongResult, copy_bandwidth, machine, refuse_missing, visible_card

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROUNDS = 10
SCHEMA = 2

if not torch.cuda.is_available():
    # Read when Triton is first imported: the tiny shapes then run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@dataclass(frozen=True)
class Contender:
    """Who takes part."""

    name: str
    call: Callable[[], object]
    """The work that is timed, enqueued on the current stream."""
    error: Callable[[], float]
    """Runs it on inputs whose exact result is known, and returns the relative error."""
    ours: bool = False
    note: str = ""
    works: int = 1
    """How many times ``call`` does the work, as the replay of a graph does."""
    error_limit: float | None = None
    """Its own, where it computes in another arithmetic; None: the contest's."""


@dataclass(frozen=True)
class Contest:
    """One operation at one shape."""

    operation: str
    shape: str
    contenders: tuple[Contender, ...]
    error_limit: float
    """Beyond it a contender is not timed."""
    flops: float = 0.0
    """Floating-point operations of a call, as spec'd by the model and not by who computes it."""
    moved_bytes: float = 0.0
    """Fewest bytes that a call has to read and write."""
    seconds: float = 4.0
    """How long each contender is held."""
    rounds: int = ROUNDS


@dataclass(frozen=True)
class Row:
    """One contender at one shape, or why it is not there."""

    operation: str
    shape: str
    contender: str
    ours: bool
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    calls: int = 0
    seconds: float = 0.0
    teraflops: float | None = None
    share_of_gemm: float | None = None
    gigabytes_per_second: float | None = None
    share_of_copy: float | None = None
    error: float | None = None
    error_limit: float | None = None
    speed: float | None = None
    """Times as fast as the fastest of ours: below 1 is slower."""
    peak_gib: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Ceilings:
    """What the device reached in this run."""

    gemm_teraflops: float
    """bfloat16, 8192 x 8192 x 8192 (a small one on a CPU)."""
    copy_gigabytes_per_second: float
    """Read and written, within the device."""


class Clocks:
    """What nvidia-smi says of the card, twice a second, while the block runs."""

    FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")

    def __enter__(self) -> Self:
        self.lines: list[str] = []
        self._process = None
        if shutil.which("nvidia-smi"):
            self._process = subprocess.Popen(
                [
                    "nvidia-smi",
                    f"--id={visible_card()}",
                    f"--query-gpu={','.join(self.FIELDS)}",
                    "--format=csv,noheader,nounits",
                    "--loop-ms=500",
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self.lines = self._process.communicate()[0].splitlines()

    def summary(self) -> dict[str, dict[str, float]]:
        """Least, median and most of each reading; empty where nvidia-smi told nothing."""
        rows = [reading for line in self.lines if len(reading := _numbers(line)) == 4]
        return {
            name: {"min": min(column), "median": statistics.median(column), "max": max(column)}
            for name, column in zip(self.FIELDS, zip(*rows, strict=True), strict=False)
        }


def _numbers(line: str) -> list[float]:
    """Of one line of nvidia-smi, which may be cut, lack a reading, or say what is wrong."""
    try:
        found = [float(cell) for cell in line.split(",")]
    except ValueError:
        return []
    return found if all(map(math.isfinite, found)) else []


def hold(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Milliseconds of one call, over ``calls`` of them back to back."""
    if device.type == "cpu":
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) * 1e3 / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def calls_in(call: Callable[[], object], seconds: float, device: torch.device) -> int:
    """How many calls fill ``seconds``, after a first one that may compile."""
    hold(call, 1, device)
    return max(1, round(seconds * 1e3 / max(1e-3, hold(call, 1, device))))


def ceilings(device: torch.device, seconds: float = 2.0) -> Ceilings:
    """Measures what the device can do at best."""
    size = 256 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    calls = calls_in(lambda: a @ b, seconds / 5, device)
    gemm = statistics.median(hold(lambda: a @ b, calls, device) for _ in range(5))
    copied = 2**20 if device.type == "cpu" else 2**29
    return Ceilings(2.0 * size**3 / gemm / 1e9, copy_bandwidth(device, copied))


def held(contest: Contest, device: torch.device, top: Ceilings) -> list[Row]:
    """The rows of a contest: errors first, then times.

    Raises:
        WrongResult: one of ours is wrong, or does not run.
    """
    right, refused = checked(contest)
    for row in refused:
        if row.ours:
            raise WrongResult(f"{row.operation} by {row.contender} at {row.shape}: {row.note}")
    return timed(contest, right, device, top) + refused


def checked(contest: Contest) -> tuple[list[tuple[Contender, float]], list[Row]]:
    """Who is right, with relative errors; and a row for each that is wrong or does not run."""
    right, refused = [], []
    for one in contest.contenders:
        place = (contest.operation, contest.shape, one.name, one.ours)
        limit = _limit(contest, one)
        try:
            error = one.error()
        except Exception as problem:  # a rival that does not run here is a row that says so
            if one.ours:
                traceback.print_exc()
            why = f"not run: {type(problem).__name__}: {problem}".splitlines()[0][:200]
            refused.append(Row(*place, note=why))
            continue
        if error <= limit:  # not a NaN
            right.append((one, error))
        else:
            why = f"refused: relative error {error:.2e} is beyond {limit:.2e}"
            refused.append(Row(*place, error=error, error_limit=limit, note=why))
    return right, refused


def _limit(contest: Contest, one: Contender) -> float:
    return contest.error_limit if one.error_limit is None else one.error_limit


def timed(
    contest: Contest,
    contenders: list[tuple[Contender, float]],
    device: torch.device,
    top: Ceilings,
) -> list[Row]:
    """The rows of those who are right, each beside its error."""
    share = contest.seconds / contest.rounds
    calls, peaks = {}, {}
    for one, _ in contenders:
        _reset_peak(device)
        calls[one.name] = calls_in(one.call, share, device)
        peaks[one.name] = _peak(device)
    taken: dict[str, list[float]] = {one.name: [] for one, _ in contenders}
    for turn in range(contest.rounds):
        for step in range(len(contenders)):
            one, _ = contenders[(turn + step) % len(contenders)]
            taken[one.name].append(hold(one.call, calls[one.name], device) / one.works)
    best = min((statistics.median(taken[one.name]) for one, _ in contenders if one.ours), default=0)
    rows = []
    for one, error in contenders:
        times = sorted(taken[one.name])
        middle = statistics.median(times)
        works = calls[one.name] * one.works
        rate, bandwidth = contest.flops / middle / 1e9, contest.moved_bytes / middle / 1e6
        rows.append(
            Row(
                contest.operation,
                contest.shape,
                one.name,
                one.ours,
                median_ms=middle,
                p10_ms=times[len(times) // 10],
                p90_ms=times[-1 - len(times) // 10],
                calls=works * contest.rounds,
                seconds=sum(times) * works / 1e3,
                teraflops=rate or None,
                share_of_gemm=rate / top.gemm_teraflops or None,
                gigabytes_per_second=bandwidth or None,
                share_of_copy=bandwidth / top.copy_gigabytes_per_second or None,
                error=error,
                error_limit=_limit(contest, one),
                speed=best / middle or None,
                peak_gib=peaks[one.name],
                note=one.note,
            )
        )
    return rows


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**30


@dataclass
class Report:
    """The rows of one bench, on their way to the screen and to a file."""

    bench: str
    device: torch.device
    settings: Mapping[str, Any]
    save: Path | None = None
    rows: list[Row] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """
        Raises:
            SystemExit: there is no such device, or no such place to write to: told before anything
                is measured.
        """
        refuse_missing(self.device)
        if self.save is None:
            return
        if self.save.is_dir():
            sys.exit(f"--save {self.save}: a folder; the name of a file is needed")
        try:
            self.save.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch()
            self._partial.unlink()
        except OSError as problem:
            sys.exit(
                f"--save {self.save}: {problem.strerror}; a file that can be written is needed"
            )

    @property
    def _partial(self) -> Path:
        assert self.save is not None
        return self.save.with_name(self.save.name + ".partial")

    def run(self, contests: list[Callable[[], Contest]]) -> None:
        """Holds one contest after the other; each is made when its turn comes, and then forgotten.

        Raises:
            WrongResult: one of ours is wrong; what was measured before is still written.
        """
        top = ceilings(self.device)
        self.extra["ceilings"] = asdict(top)
        print(
            f"ceilings of this run: GEMM {top.gemm_teraflops:.0f} TFLOP/s, copy "
            f"{top.copy_gigabytes_per_second:.0f} GB/s"
        )
        with Clocks() as clocks:
            try:
                for make in contests:
                    self.add(held(make(), self.device, top))
            finally:
                _reset_peak(self.device)
        self.extra["clocks"] = clocks.summary()

    def carry_out(self, contests: list[Callable[[], Contest]]) -> int:
        """All of a bench: its contests, its last line, and its exit code, 1 where ours is wrong."""
        try:
            self.run(contests)
        except WrongResult as error:
            print(f"bench_{self.bench}: {error}", file=sys.stderr)
            return 1
        except ModuleNotFoundError as missing:
            sys.exit(f"{missing}: what a bench compares with is listed in requirements/dev.in")
        self.finish()
        return 0

    def add(self, rows: list[Row]) -> None:
        """Prints rows, keeps them, and writes the file anew: a run that is cut short has those."""
        self.rows += rows
        for row in rows:
            print(line_of(row), flush=True)
        self.write()

    def as_dict(self) -> dict[str, Any]:
        """Numbers that JSON has no words for are None."""
        whole: dict[str, Any] = {
            "schema": SCHEMA,
            "bench": self.bench,
            "command": shlex.join(["python", *sys.argv]),
            "machine": machine(self.device),
            "settings": dict(self.settings),
            **self.extra,
            "rows": [asdict(row) for row in self.rows],
        }
        return _finite(whole)

    def write(self) -> None:
        if self.save is not None:
            self._partial.write_text(json.dumps(self.as_dict(), indent=1) + "\n", "utf-8")
            self._partial.replace(self.save)

    def finish(self) -> None:
        """Writes, and ends the output with the same JSON object in one line."""
        self.write()
        print(json.dumps(self.as_dict()))


def _finite(value: Any) -> Any:
    """The same, with None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line_of(row: Row) -> str:
    """One row, for a terminal."""
    name = f"{row.operation:12} {row.shape:24} {row.contender:34}"
    if row.median_ms is None:
        return f"{name} {row.note}"
    parts = [f"{name} {row.median_ms:10.3f} ms [{row.p10_ms:.3f}, {row.p90_ms:.3f}]"]
    if row.teraflops:
        parts.append(f"{row.teraflops:6.0f} TFLOP/s {row.share_of_gemm or 0:4.0%} of GEMM")
    if row.gigabytes_per_second:
        parts.append(f"{row.gigabytes_per_second:6.0f} GB/s {row.share_of_copy or 0:4.0%} of copy")
    checked = row.error is not None and row.error_limit is not None
    error = f"error {row.error:.1e} of {row.error_limit:.1e}" if checked else "error not known"
    parts.append(f"speed {row.speed or 0:.2f}, {error}")
    return ", ".join([*parts, row.note] if row.note else parts)
