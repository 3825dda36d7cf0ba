"""Each contender of attention checked in a process of its own: a hanging one takes nobody down."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attention_contenders import OWN_LIMITS, contender, is_ours
from attention_shapes import CHECKS, Shape, error, inputs
from attention_timing import ERROR_FLOOR, ERROR_RATIO, OPERATION, Work
from contest import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).with_name("bench_attention.py")

HANG_SECONDS = 5.0
"""A stand-in that hangs is given so long; the others have all of ``--check-seconds``."""

GRAPHED = Shape(2000, 200, 16, zero_keys=312)
"""What shows whether a contender can be captured."""


def check(name: str, device: str) -> dict[str, Any]:
    """Errors of one contender, and of cuDNN on the same inputs; and whether a graph can hold it."""
    began = time.perf_counter()
    attend = contender(name)
    rivals = [contender("cudnn"), contender("torch")]
    report: dict[str, Any] = {"errors": {}, "passed": True}
    for shape in CHECKS[:-2] if device == "cpu" else CHECKS:
        if not takes(name, shape):
            continue
        ours = measured_error(attend, shape, device)
        # cuDNN does not take every small shape.
        theirs = measured_error(rivals[shape.queries < 64], shape, device)
        limit = OWN_LIMITS.get(name, ERROR_RATIO * theirs + ERROR_FLOOR)
        report["errors"][shape.name] = [ours, theirs]
        report["passed"] &= ours <= limit
        if "first_s" not in report:
            report["first_s"] = time.perf_counter() - began
    report["no_graph"] = why_no_graph(name, device)
    return report


def takes(name: str, shape: Shape) -> bool:
    """Whether a shape is one that this rival is made for; ours take all."""
    if name == "cudnn":
        return shape.queries >= 64
    # SageAttention 1.0.6 counts the rest of the last 64 keys as keys that score 0.
    return name != "sage" or (shape.keys + shape.zero_keys) % 64 == 0


def measured_error(attend: Any, shape: Shape, device: str) -> float:
    q, k, v = inputs(shape, device)
    out = torch.full(q.shape, math.nan, device=device, dtype=q.dtype)
    return error(attend(q, k, v, out, shape.zero_keys), q, k, v, shape.zero_keys)


def why_no_graph(name: str, device: str) -> str:
    """Why a graph cannot hold this contender, or nothing if it can. Last in a process: a capture
    that has failed may leave its memory behind."""
    if device == "cpu":
        return ""
    work = Work(name, GRAPHED, inputs(GRAPHED, device))
    try:
        work.capture(2)
        limit = OWN_LIMITS.get(name, 0.01)
        wrong = work.error()
    except Exception as problem:  # it is timed without
        return f"{type(problem).__name__}: {problem}".splitlines()[0][:120]
    return "" if wrong <= limit else f"a replay has relative error {wrong:.1e}"


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """This bench once more, in another role."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """(what it printed, why it failed or ""), after at most ``seconds``."""
    try:
        text, _ = process.communicate(timeout=max(0.1, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        return text, f"no end within {seconds:.0f} s"
    return text, "" if process.returncode == 0 else f"exit code {process.returncode}"


def json_lines(text: str) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in text.splitlines() if line.startswith("{"))


def check_all(
    names: list[str], device: str, seconds: float, environment: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The report of each, by name: errors, ``passed``, ``no_graph``, ``problem`` if any."""
    deadline = time.perf_counter() + seconds
    running = {
        name: run(["--role", "check", "--contender", name, "--device", device], environment)
        for name in names
    }
    reports: dict[str, dict[str, Any]] = {}
    # Who hangs on purpose is waited for last, and briefly.
    for name, process in sorted(running.items(), key=lambda item: item[0] == "dry hang"):
        left = deadline - time.perf_counter()
        text, problem = finish(process, min(left, HANG_SECONDS) if name == "dry hang" else left)
        found = list(json_lines(text))
        reports[name] = found[-1] if found else {"passed": False}
        if problem:
            last = text.strip().splitlines()[-1:]
            told = {"problem": ": ".join([problem, *last]), "output": text[-1500:]}
            reports[name] |= {"passed": False, **told}
    return reports


def refused(reports: dict[str, dict[str, Any]]) -> list[Row]:
    """A row for each contender that did not pass, with the check that it is furthest off in."""
    rows = []
    for name, report in reports.items():
        if report["passed"]:
            continue
        shape, wrong, limit, why = "small shapes", None, None, report.get("problem", "")
        if why:
            why = f"not run: {why[:300]}"
        else:
            limits = {
                shape: OWN_LIMITS.get(name, ERROR_RATIO * theirs + ERROR_FLOOR)
                for shape, (_, theirs) in report["errors"].items()
            }
            beyond = {one: ours / limits[one] for one, (ours, _) in report["errors"].items()}
            # A NaN is further off than any number.
            shape = max(beyond, key=lambda one: (math.isnan(beyond[one]), beyond[one]))
            wrong, limit = report["errors"][shape][0], limits[shape]
            why = f"refused: relative error {wrong:.2e} is beyond {limit:.2e}"
        rows.append(
            Row(OPERATION, shape, name, is_ours(name), error=wrong, error_limit=limit, note=why)
        )
    return rows
