"""Times our attention kernels beside cuDNN's and FlashAttention-3's, after checking each.

    PYTHONPATH=kernels python3 benches/bench_attention.py --out attention.json --budget 100

Each contender is checked in a process of its own, all at once, with a time-out: one that crashes
or hangs takes nobody down. Those that pass are then timed interleaved in one process, round by
round, and checked again on every shape that is timed. ``--wheels DIR`` adds the wheels of a folder
(for FlashAttention-3). ``--dry`` walks the same paths on a CPU with stand-ins, two of them broken.
The last line is one JSON object, also written to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from attention_contenders import Attend, contender, designs
from attention_shapes import CHECKS, DRY_SHAPES, SHAPES, Shape, error, inputs
from contest import SCHEMA, Row
from harness import machine

BEGAN = time.perf_counter()

ROUNDS = 10
ERROR_RATIO = 1.1
"""Beyond this many times the error of cuDNN against float32 a contender is not timed."""

HANG_SECONDS = 5.0
"""A stand-in that hangs is given so long; the others have all of ``--check-seconds``."""

ERROR_FLOOR = 1e-4
"""Where cuDNN's error is 0, as with one key."""


def measured_error(attend: Attend, shape: Shape, device: str) -> float:
    q, k, v = inputs(shape, device)
    out = torch.full(q.shape, math.nan, device=device, dtype=q.dtype)
    return error(attend(q, k, v, out, shape.zero_keys), q, k, v, shape.zero_keys)


def check(name: str, device: str) -> dict[str, Any]:
    """Errors of one contender, and of cuDNN on the same inputs."""
    began = time.perf_counter()
    attend = contender(name)
    rivals = [contender("cudnn"), contender("torch")]
    report: dict[str, Any] = {"errors": {}, "passed": True}
    for shape in CHECKS[:-2] if device == "cpu" else CHECKS:
        if name == "cudnn" and shape.queries < 64:
            continue
        ours = measured_error(attend, shape, device)
        # cuDNN does not take every small shape.
        theirs = measured_error(rivals[shape.queries < 64], shape, device)
        passed = ours <= ERROR_RATIO * theirs + ERROR_FLOOR
        report["errors"][shape.name] = [ours, theirs]
        report["passed"] &= passed
        if "first_s" not in report:
            report["first_s"] = time.perf_counter() - began
    return report


def hold(work: Callable[[], object], calls: int, device: str) -> float:
    """Milliseconds of one call, over ``calls`` of them back to back."""
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - began) * 1e3 / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def calls_in(work: Callable[[], object], seconds: float, device: str) -> int:
    """How many calls fill ``seconds``."""
    hold(work, 1, device)
    return max(1, round(seconds * 1e3 / max(1e-3, hold(work, 2, device))))


def time_all(names: list[str], device: str, budget: float, keep: int, seconds: float) -> None:
    """Print one JSON line for each shape, until the budget is spent."""
    deadline = time.perf_counter() + budget
    ceiling = gemm_ceiling(device, seconds / 2)
    print(json.dumps({"gemm_tflops": ceiling}), flush=True)
    rivals = [name for name in names if name in ("cudnn", "fa3")]
    own = [name for name in names if name not in rivals]
    shapes = DRY_SHAPES if device == "cpu" else SHAPES
    for index, shape in enumerate(shapes):
        present = own + rivals
        # Beside the timed rounds: the inputs, the first calls and the checks.
        if time.perf_counter() + 1.2 * seconds * len(present) + 1.0 > deadline and index:
            print(json.dumps({"dropped": [left.name for left in shapes[index:]]}), flush=True)
            break
        rows = time_shape(present, shape, device, seconds)
        if index == 0 and device != "cpu":
            hold_all(rows, shape, seconds)
        for row in rows.values():
            if "ms" in row:
                row["tflops"] = shape.flops / row["ms"] / 1e9
                row["share_of_gemm"] = row["tflops"] / ceiling
        print(json.dumps({"shape": asdict(shape), "name": shape.name, "rows": rows}), flush=True)
        if index == 0:
            best = sorted((rows[one]["ms"], one) for one in own if "ms" in rows[one])
            own = [one for _, one in best[:keep]]
            own += [one for one in ("gluon two tiles",) if one in rows and one not in own]


def time_shape(
    names: list[str], shape: Shape, device: str, seconds: float
) -> dict[str, dict[str, Any]]:
    q, k, v = inputs(shape, device)
    out = torch.empty(q.shape, device=device, dtype=q.dtype)
    works: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            attend = contender(name)
            out.fill_(math.nan)
            found = error(attend(q, k, v, out, shape.zero_keys), q, k, v, shape.zero_keys)
        except Exception as problem:  # another contender's failure must not end the run
            rows[name] = {"failed": repr(problem)[:300]}
            continue
        rows[name] = {"error": found}
        works[name] = lambda attend=attend: attend(q, k, v, out, shape.zero_keys)  # type: ignore[misc]
    limit = ERROR_RATIO * rows.get("cudnn", {}).get("error", 1.0) + ERROR_FLOOR
    works = {name: work for name, work in works.items() if rows[name]["error"] <= limit}
    taken: dict[str, list[float]] = {name: [] for name in works}
    calls = {name: calls_in(work, seconds / ROUNDS, device) for name, work in works.items()}
    for _ in range(ROUNDS):
        for name, work in works.items():
            taken[name].append(hold(work, calls[name], device))
    for name, times in taken.items():
        rows[name] |= {"ms": median(times), "ms_min": min(times), "ms_max": max(times)}
    return rows


def hold_all(rows: dict[str, dict[str, Any]], shape: Shape, seconds: float) -> None:
    """Add to each timed row the clock it runs at alone, and its share of the tensor cores at it.

    Where the card is held to its power, a rate says little: many cycles at a high clock and few at
    a low one look the same.
    """
    if not shutil.which("nvidia-smi"):
        return
    card = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", f"--id=GPU-{card.uuid}", "--query-gpu=clocks.sm"]
    query += ["--format=csv,noheader,nounits"]
    q, k, v = inputs(shape, "cuda")
    out = torch.empty_like(q)
    for name, row in rows.items():
        if "ms" not in row:
            continue
        attend = contender(name)
        for _ in range(round(seconds * 1e3 / row["ms"])):
            attend(q, k, v, out, shape.zero_keys)
        end = torch.cuda.Event()
        end.record()
        clocks: list[float] = []
        while not end.query():
            found = subprocess.run(query, capture_output=True, text=True).stdout.strip()
            # What was read as the work ended may be of an idle card.
            if found.isdigit() and not end.query():
                clocks.append(float(found))
        if clocks:
            row["clock_mhz"] = median(clocks[len(clocks) // 2 :])
            cycles = row["ms"] * 1e3 * row["clock_mhz"] * card.multi_processor_count
            row["share_of_cycles"] = shape.flops / (4096.0 * cycles)


def gemm_ceiling(device: str, seconds: float) -> float:
    size = 256 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    calls = calls_in(lambda: a @ b, seconds / 5, device)
    times = [hold(lambda: a @ b, calls, device) for _ in range(5)]
    return 2.0 * size**3 / median(times) / 1e9


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
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


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def check_all(
    names: list[str], device: str, seconds: float, environment: dict[str, str]
) -> dict[str, dict[str, Any]]:
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
        found = json_lines(text)
        reports[name] = found[-1] if found else {"passed": False}
        if problem:
            reports[name] |= {"passed": False, "problem": f"{problem}: {text[-600:]}"}
    return reports


class Clocks:
    """What nvidia-smi says of the cards, twice a second, while the block runs."""

    def __enter__(self) -> Clocks:
        query = "clocks.sm,power.draw,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        self.lines: list[str] = []
        self.process = None
        if shutil.which(command[0]):
            self.process = subprocess.Popen(
                [*command, "--loop-ms=500"], stdout=subprocess.PIPE, text=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.terminate()
            self.lines = self.process.communicate()[0].splitlines()


def table(result: dict[str, Any]) -> str:
    lines = [f"GEMM ceiling {result.get('gemm_tflops', 0):.0f} TF/s"]
    for name, report in result["checks"].items():
        if not report["passed"]:
            lines.append(f"RED {name}: {report.get('problem', report.get('errors'))}"[-700:])
    for shape in result["shapes"]:
        lines.append(shape["name"])
        for name, row in sorted(shape["rows"].items(), key=lambda item: item[1].get("ms", 1e9)):
            if "ms" not in row:
                lines.append(f"  {name:32s} not timed: {row}")
                continue
            lines.append(
                f"  {name:32s} {row['ms']:9.3f} ms [{row['ms_min']:.3f} {row['ms_max']:.3f}]"
                f" {row['tflops']:6.0f} TF/s {row['share_of_gemm']:5.0%}  error {row['error']:.2e}"
            )
            if "clock_mhz" in row:
                lines[-1] += f"  {row['share_of_cycles']:.0%} at {row['clock_mhz']:.0f} MHz"
    return "\n".join(lines)


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of every shape in the form that the tables are made of; ours are named as such."""
    rows = []
    for shape in result["shapes"]:
        found = {name: row for name, row in shape["rows"].items() if "ms" in row}
        ours = [row["ms"] for name, row in found.items() if name.startswith(("gluon", "triton"))]
        limit = ERROR_RATIO * found.get("cudnn", {}).get("error", math.nan) + ERROR_FLOOR
        rows += [
            asdict(
                Row(
                    "attention",
                    shape["name"],
                    name,
                    name.startswith(("gluon", "triton")),
                    median_ms=row["ms"],
                    p10_ms=row["ms_min"],
                    p90_ms=row["ms_max"],
                    seconds=result["settings"]["seconds"],
                    teraflops=row["tflops"],
                    share_of_gemm=row["share_of_gemm"],
                    error=row["error"],
                    error_limit=limit if math.isfinite(limit) else None,
                    speed=min(ours) / row["ms"] if ours else None,
                )
            )
            for name, row in sorted(found.items(), key=lambda item: item[1]["ms"])
        ]
    return rows


def lead(options: argparse.Namespace) -> None:
    device = "cpu" if options.dry else "cuda"
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        for wheel in sorted(Path(options.wheels).glob("*.whl")) if options.wheels else ():
            zipfile.ZipFile(wheel).extractall(folder)
        paths = [folder, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        names = [*designs(), "triton", "cudnn", "fa3"]
        if options.dry:
            names = ["dry one", "dry two", "dry wrong", "dry crash", "dry hang", "cudnn"]
        if options.contenders:
            names = [one for one in options.contenders.split(";") if one in names]
        checks = check_all(names, device, options.check_seconds, environment)
        passed = [name for name in names if checks[name]["passed"]]
        if not passed:
            sys.exit(f"no contender passed its check: {json.dumps(checks)}")
        result: dict[str, Any] = {
            "machine": machine(torch.device(device)),
            "settings": vars(options),
            "checks": checks,
            "shapes": [],
        }
        left = options.budget - (time.perf_counter() - BEGAN)
        timer = ["--role", "time", "--contenders", ";".join(passed), "--device", device]
        timer += ["--budget", str(left - 12), "--keep", str(options.keep)]
        timer += ["--seconds", str(options.seconds)]
        with Clocks() as card:
            text, problem = finish(run(timer, environment), left - 2)
    result["clocks_mhz_power_w_temperature_c"] = card.lines
    for line in json_lines(text):
        if "shape" in line:
            result["shapes"].append(line)
        else:
            result |= line
    if problem:
        result["problem"] = f"{problem}: {text[-1500:]}"
    result |= {
        "schema": SCHEMA,
        "bench": "attention",
        "command": " ".join(["python", *sys.argv]),
        "rows": rows_of(result),
    }
    result["elapsed_s"] = time.perf_counter() - BEGAN
    if options.out:
        target = Path(options.out)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1))
    print(table(result), result.get("problem", ""), sep="\n")
    print(json.dumps(result))
    if problem:
        sys.exit(f"timing ended early: {problem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="where to write the JSON")
    parser.add_argument("--budget", type=float, help="seconds for everything (100; 300 dry)")
    parser.add_argument("--check-seconds", type=float, help="for the checks (50; 150 dry)")
    parser.add_argument("--seconds", type=float, default=1.0, help="each contender, each shape")
    parser.add_argument("--keep", type=int, default=3, help="own designs after the first shape")
    parser.add_argument("--wheels", help="folder of wheels to use, unpacked")
    parser.add_argument("--contenders", default="", help="only these, separated by semicolons")
    parser.add_argument("--dry", action="store_true", help="control flow only, on a CPU")
    parser.add_argument("--role", default="lead", choices=["lead", "check", "time"])
    parser.add_argument("--contender", default="")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    # Dry, all stand-ins start Python at once, on cores that others may be using.
    if options.budget is None:
        options.budget = 300.0 if options.dry else 100.0
    if options.check_seconds is None:
        options.check_seconds = 150.0 if options.dry else 50.0
    if options.role == "check":
        print(json.dumps(check(options.contender, options.device)))
    elif options.role == "time":
        names = options.contenders.split(";")
        time_all(names, options.device, options.budget, options.keep, options.seconds)
    else:
        lead(options)


if __name__ == "__main__":
    main()
