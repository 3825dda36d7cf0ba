"""Times our attention kernels beside cuDNN's, FlashAttention-3's and SageAttention's.

    PYTHONPATH=python python3 benches/bench_attention.py --long 30 --save attention.json

Each contender is checked in a process of its own, all at once, with a time-out: one that crashes
or hangs takes nobody down. Those that pass are then timed in turns in one process, and checked
again on every shape that is timed. Calls below half a millisecond are timed out of graphs that
hold fifty of them. ``--wheels DIR`` adds the wheels of a folder. ``--dry`` walks the same paths on
a CPU with stand-ins, three of them broken. What is wrong is refused; the
exit code is not 0 where one of ours is. The last line is one JSON object, also written to
``--save``, row by row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attention_checks import check, check_all, refused, run
from attention_contenders import DEFAULT, DRY, DRY_OURS_BROKEN, RIVAL_WHEELS, designs
from attention_shapes import DRY_SHAPES, SHAPES, Shape
from attention_timing import SKIPPED, beside_cudnn, time_all, unrun
from contest import Clocks, Report, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGAN = time.perf_counter()


def spent() -> float:
    return time.perf_counter() - BEGAN


def names_of(options: argparse.Namespace) -> list[str]:
    """Who takes part.

    Raises:
        SystemExit: somebody is named whom nobody knows.
    """
    if not options.contenders:
        return list(DRY if options.dry else DEFAULT)
    names = [one.strip() for one in options.contenders.split(";") if one.strip()]
    known = {*DEFAULT, *DRY, *DRY_OURS_BROKEN, *designs()}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"--contenders {unknown}: nobody has such a name; known: {sorted(known)}")
    return names


def shapes_of(options: argparse.Namespace) -> list[Shape]:
    every = DRY_SHAPES if options.device == "cpu" else SHAPES
    wanted = options.shape or [shape.name for shape in every]
    return [shape for shape in every if shape.name in wanted]


def lead(options: argparse.Namespace) -> int:
    """Checks, then times; the exit code."""
    names, shapes = names_of(options), shapes_of(options)
    settings = {
        "contenders": names,
        "shapes": [shape.name for shape in shapes],
        "seconds": options.seconds,
        "long": options.long,
        "budget": options.budget,
        "keep": options.keep,
    }
    report = Report("attention", torch.device(options.device), settings, options.save)
    problem = ""
    with wheels_on_the_path(options.wheels) as environment:
        checks = check_all(names, options.device, options.check_seconds, environment)
        report.extra["rival_wheels"] = installed(environment)
        report.extra["checks"] = checks
        report.add(refused(checks))
        passed = [name for name in names if checks[name]["passed"]]
        if passed:
            with Clocks() as clocks:
                problem = time_in_a_process(options, report, passed, shapes, environment)
            report.extra["clocks"] = clocks.summary()
        else:
            problem = "no contender passed its check"
    report.extra["over_cudnn"] = beside_cudnn(report.rows)
    for one in report.extra["over_cudnn"]:
        print(
            f"{one['shape']:48} {one['contender']:30} {one['ms']:9.4f} ms, cuDNN "
            f"{one['cudnn_ms']:9.4f} ms: {one['times_cudnn']:.2f} times as fast"
        )
    report.extra["elapsed_s"] = spent()
    if problem:
        report.extra["problem"] = problem
    report.finish()
    wrong = [row for row in report.rows if is_wrong(row)]
    for row in wrong:
        print(f"bench_attention: {row.contender} at {row.shape}: {row.note}", file=sys.stderr)
    if problem:
        print(f"bench_attention: {problem}", file=sys.stderr)
    return 1 if wrong or problem else 0


def is_wrong(row: Row) -> bool:
    """Whether one of ours was refused, or did not run where it should have."""
    return row.ours and row.median_ms is None and not row.note.startswith(SKIPPED)


@contextmanager
def wheels_on_the_path(folder: Path | None) -> Iterator[dict[str, str]]:
    """The environment of the other processes, which see what the wheels of ``folder`` bring."""
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as unpacked:
        for wheel in sorted(folder.glob("*.whl")) if folder else ():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        paths = [unpacked, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        yield environment


def installed(environment: dict[str, str]) -> dict[str, str]:
    """Versions of the rivals' wheels that the processes find."""
    places = [*environment["PYTHONPATH"].split(os.pathsep), *sys.path]
    return {
        one.metadata["Name"]: one.version
        for wheel in RIVAL_WHEELS.values()
        for one in metadata.distributions(name=wheel, path=places)
    }


def time_in_a_process(
    options: argparse.Namespace,
    report: Report,
    names: list[str],
    shapes: list[Shape],
    environment: dict[str, str],
) -> str:
    """Adds the rows as they come, and rows for what did not; why it ended early, or nothing."""
    left = options.budget - spent()
    graphs = {name: report.extra["checks"][name]["no_graph"] for name in names}
    words = ["--role", "time", "--contenders", ";".join(names), "--device", options.device]
    words += ["--seconds", str(options.seconds), "--long", str(options.long or options.seconds)]
    words += [
        "--alone",
        str(options.alone),
        "--budget",
        str(left - 20),
        "--keep",
        str(options.keep),
    ]
    words += ["--no-graph", json.dumps({name: why for name, why in graphs.items() if why})]
    for shape in shapes:
        words += ["--shape", shape.name]
    seen, other = set[str](), list[str]()
    with run(words, environment) as process:
        timer = threading.Timer(max(1.0, left), process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                if line.startswith("{"):
                    found: dict[str, Any] = json.loads(line)
                    rows = [Row(**row) for row in found.pop("rows", [])]
                    seen |= {found.pop("shape")} if "shape" in found else set()
                    report.extra |= found
                    report.add(rows)
                else:
                    other.append(line)
            code = process.wait()
            killed = timer.finished.is_set()
        finally:
            timer.cancel()
    if code == 0:
        return ""
    why = f"killed as --budget of {options.budget:.0f} s was spent" if killed else f"code {code}"
    for shape in shapes:
        if shape.name not in seen:
            report.add(unrun(shape, names, f"not run: timing ended early: {why}"))
    return f"timing ended early: {why}: {''.join(other)[-1500:]}"


def main() -> int:
    options = parsed(sys.argv[1:])
    if options.role == "check":
        print(json.dumps(check(options.contender, options.device)))
        return 0
    if options.role == "time":
        lines = time_all(
            shapes_of(options),
            options.contenders.split(";"),
            torch.device(options.device),
            seconds=options.seconds,
            first_seconds=options.long,
            alone_seconds=options.alone,
            budget=options.budget,
            keep=options.keep,
            no_graph=json.loads(options.no_graph),
        )
        with torch.inference_mode():
            for line in lines:
                print(json.dumps(line), flush=True)
        return 0
    return lead(options)


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", "--out", type=Path, help="also write the JSON object here")
    parser.add_argument("--shape", action="append", help="default: all; as the rows name them")
    parser.add_argument("--seconds", type=float, default=4.0, help="each contender, each shape")
    parser.add_argument("--long", type=float, help="the same, first shape (default: no longer)")
    parser.add_argument(
        "--alone", type=float, default=0.0, help="each alone, first shape, to read its clock"
    )
    parser.add_argument("--budget", type=float, default=560.0, help="seconds for everything")
    parser.add_argument("--check-seconds", type=float, help="for the checks (60; 150 dry)")
    parser.add_argument("--keep", type=int, default=4, help="own designs after the first shape")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to use, unpacked")
    parser.add_argument(
        "--contenders", default="", help=f"separated by semicolons (default: {'; '.join(DEFAULT)})"
    )
    parser.add_argument("--dry", action="store_true", help="control flow only, on a CPU")
    parser.add_argument("--role", default="lead", choices=["lead", "check", "time"])
    parser.add_argument("--contender", default="")
    parser.add_argument("--no-graph", default="{}")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(words)
    if options.dry:
        options.device = "cpu"
    # Dry, all stand-ins start Python at once, on cores that others may be using.
    if options.check_seconds is None:
        options.check_seconds = 150.0 if options.dry else 60.0
    known = [shape.name for shape in (DRY_SHAPES if options.device == "cpu" else SHAPES)]
    for name in options.shape or ():
        if name not in known:
            parser.error(f"--shape {name!r}: the shapes are {known}")
    return options


if __name__ == "__main__":
    sys.exit(main())
