"""Seconds of the first use, compiling included, and what a second process still compiles.

python benches/bench_first_use.py --checkpoints DIR [--shape example1 ...] [--save FILE]

For each shape an empty folder for what Triton compiles, and two processes, one after the other.
Each starts, imports, loads the engine and makes a clip of one step; the clock runs from before its
start until the frames are there. The first then makes a clip of another prompt, seed and picture.

Kernels are compiled in threads while the engine is loaded: they count to "load", and what still
compiles in "clip" was not foreseen.

The second process must compile nothing, nor the other clip of the first, and both processes must
make the same latents: otherwise the exit code is 1. ``--tiny`` does the same on a CPU, where
nothing is compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from bench_run import NEGATIVE, PROMPT, SHAPES, Shape, load, made, photograph
from contest import Report, Row
from harness import WrongResult
from triton import knobs

import cosmos_fast as cf

if TYPE_CHECKING:
    from collections.abc import Callable

BAR_SECONDS = 60.0
"""Within which a first use shall have frames."""

EMPTY, FILLED = "ours, nothing compiled before", "ours, a second process"

OTHER_PROMPT = "Two cups on a wooden shelf. One of them falls."


class Kernels:
    """Counts what Triton compiles in this process, and what it finds compiled."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.found: list[str] = []

    @classmethod
    def watched(cls) -> Kernels:
        """One that Triton tells from here on."""
        kernels = cls()
        knobs.compilation.listener = kernels
        return kernels

    def __call__(self, *, src: Any, cache_hit: bool, **_: object) -> None:
        (self.found if cache_hit else self.compiled).append(str(src.name))

    def taken(self) -> dict[str, list[str]]:
        """What was told since the last time, by name."""
        told = {"compiled": self.compiled, "found": self.found}
        self.compiled, self.found = [], []
        return told


def use(options: argparse.Namespace) -> dict[str, Any]:
    """One process: seconds of each part since the process was called for, and its kernels."""
    kernels = Kernels.watched()
    seconds: dict[str, float] = {}
    told: dict[str, dict[str, list[str]]] = {}
    shape, folder = SHAPES[options.role], Path(options.scratch)

    def part(name: str, work: Callable[[], Any]) -> Any:
        result = work()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds[name] = time.time() - options.began - sum(seconds.values())
        told[name] = kernels.taken()
        return result

    part("start", lambda: None)
    size = "tiny" if options.tiny else "2B"
    engine = part("load", lambda: load(options.checkpoints, size, options.device))
    first = part("clip", lambda: clip_of(engine, shape, folder / "one.jpg", PROMPT, seed=0))
    if options.others:
        part("others", lambda: clip_of(engine, shape, folder / "two.jpg", OTHER_PROMPT, seed=7))
    return {
        "seconds": seconds,
        "kernels": told,
        "latents_sha256": first.report.latents_sha256,
        "backends": dict(first.report.backends),
    }


def clip_of(
    engine: cf.Video2World, shape: Shape, picture: Path, prompt: str, *, seed: int
) -> cf.Clip:
    prompts = (prompt, NEGATIVE) if shape.to_file else (cf.NO_TEXT,)
    options = shape.options | {"num_steps": 1}
    return engine.generate(picture, *prompts, seed=seed, **options)


def used(
    name: str, options: argparse.Namespace, scratch: Path, cache: Path, *, others: bool
) -> dict[str, Any]:
    """What a process of its own reports.

    Raises:
        WrongResult: it failed, or did not end in time.
    """
    words = ["--role", name, "--checkpoints", str(options.checkpoints), "--scratch", str(scratch)]
    words += ["--device", options.device] + ["--tiny"] * options.tiny + ["--others"] * others
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
    }
    command = [sys.executable, __file__, *words, "--began", repr(time.time())]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=options.limit
        )
    except subprocess.TimeoutExpired as end:
        raise WrongResult(f"{name}: no end within {end.timeout:.0f} s") from None
    if done.returncode:
        raise WrongResult(f"{name}: exit code {done.returncode}: {done.stderr[-1500:]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def row_of(name: str, who: str, report: dict[str, Any]) -> Row:
    parts = {part: one for part, one in report["seconds"].items() if part != "others"}
    whole = sum(parts.values())
    kernels = {
        kind: sum(len(report["kernels"][part][kind]) for part in parts)
        for kind in ("compiled", "found")
    }
    told = [", ".join(f"{part} {one:.1f}" for part, one in parts.items()) + " s"]
    told.append(f"{kernels['compiled']} kernels compiled, {kernels['found']} found")
    if who == EMPTY:
        told.append(f"bar {BAR_SECONDS:.0f} s, {'met' if whole <= BAR_SECONDS else 'NOT MET'}")
    if "others" in report["seconds"]:
        other = len(report["kernels"]["others"]["compiled"])
        told.append(
            f"another prompt, seed and picture: {other} compiled, "
            f"{report['seconds']['others']:.1f} s"
        )
    milliseconds = whole * 1e3
    return Row(
        "first use",
        name,
        who,
        ours=True,
        median_ms=milliseconds,
        p10_ms=milliseconds,
        p90_ms=milliseconds,
        calls=1,
        seconds=whole,
        note="; ".join(told),
    )


def faults(
    name: str, first: dict[str, Any], second: dict[str, Any], *, compiles: bool
) -> list[str]:
    """What two processes of one shape have done that they must not.

    Args:
        compiles: whether kernels are compiled on this device at all.
    """
    found = []
    if again := [one for part in second["kernels"].values() for one in part["compiled"]]:
        found.append(f"{name}: the second process compiled {again}")
    if again := first["kernels"].get("others", {}).get("compiled", []):
        found.append(f"{name}: another prompt, seed and picture compiled {again}")
    if compiles and not any(part["compiled"] for part in first["kernels"].values()):
        found.append(f"{name}: nothing was compiled in an empty cache: the counter does not count")
    if first["latents_sha256"] != second["latents_sha256"]:
        found.append(f"{name}: two processes made different latents")
    return found


def measured(name: str, options: argparse.Namespace, scratch: Path, report: Report) -> list[str]:
    """Both processes of a shape; each is a row as soon as it has ended.

    Returns:
        what they must not have done.

    Raises:
        WrongResult: as :func:`used`.
    """
    with tempfile.TemporaryDirectory() as cache:
        uses = {}
        for who in (EMPTY, FILLED):
            uses[who] = used(name, options, scratch, Path(cache), others=who == EMPTY)
            report.extra.setdefault("uses", []).append({"shape": name, "who": who, **uses[who]})
            report.add([row_of(name, who, uses[who])])
    return faults(name, uses[EMPTY], uses[FILLED], compiles=options.device == "cuda")


def main() -> int:
    options = parsed()
    if options.role:
        print(json.dumps(use(options)))
        return 0
    names = options.shape or (["tiny"] if options.tiny else ["example1", "action"])
    settings = {"shapes": names, "num_steps": 1, "weights": "random"}
    report = Report("first_use", torch.device(options.device), settings, options.save)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        options.checkpoints = options.checkpoints or scratch / "checkpoints"
        made(options.checkpoints, "tiny" if options.tiny else "2B", options.device)
        photograph((1080, 1920)).save(scratch / "one.jpg", quality=90)
        photograph((720, 960)).save(scratch / "two.jpg", quality=90)
        for name in names:
            try:
                wrong += measured(name, options, scratch, report)
            except WrongResult as problem:
                wrong.append(str(problem))
                report.add([Row("first use", name, "ours", ours=True, note=f"not run: {problem}")])
    report.extra["faults"] = wrong
    report.finish()
    for one in wrong:
        print(f"bench_first_use: {one}", file=sys.stderr)
    return 1 if wrong else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, help="folder of random checkpoints")
    parser.add_argument(
        "--shape", action="append", choices=SHAPES, help="default: example1, action"
    )
    parser.add_argument("--limit", type=float, default=150.0, help="seconds for one process")
    parser.add_argument("--save", type=Path, help="also write the JSON object here")
    parser.add_argument("--tiny", action="store_true", help="small networks and clips")
    parser.add_argument("--device")
    inner = parser.add_argument_group("of the processes that it starts")
    inner.add_argument("--role", choices=SHAPES)
    inner.add_argument("--scratch")
    inner.add_argument("--began", type=float)
    inner.add_argument("--others", action="store_true")
    options = parser.parse_args()
    options.device = options.device or ("cpu" if options.tiny else "cuda")
    return options


if __name__ == "__main__":
    sys.exit(main())
