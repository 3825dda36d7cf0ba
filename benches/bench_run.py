"""Whole runs, model warm: a prompt and a photograph become an mp4 on disk, or frames on the device.

python benches/bench_run.py --checkpoints DIR [--shape example1 ...] [--repeats 2] [--save FILE]

Ours, and the same engine with diffusers' transformer (blocks compiled) and VAE (eager) in the place
of ours, in turns. Random weights of the released size: where DIR has none, they are made there
(``tools/make_random_checkpoint.py``). T5 is resident and run each time; guardrail and upsampler are
off.

Before it is timed, ours makes a clip of 5 frames of the same size in one step, twice, and must be
within 1.1 times the error of diffusers' eager networks against float32. The rival's first step at
the whole shape must be as near to ours as two results within that bound are. How far apart they may
be after 35 steps nobody knows, so the row shows the error of that one step. Every repeat of ours
must give the same latents, and every file is read again. ``--tiny`` does the same with networks and
clips for a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import Clocks, Report, Row
from harness import WrongResult, relative_error
from PIL import Image
from run_checks import SHORT, ShortRun, made_latents, short_run, verify_file
from run_engines import with_their_networks

import cosmos_fast as cf

PROMPT = (
    "A robotic arm stands over a steel table in a bright workshop. It lowers its gripper towards a "
    "red cube, closes it, lifts the cube and carries it to the left, where a blue tray waits. The "
    "camera does not move; shadows follow the arm, and behind it a person walks by."
)
NEGATIVE = "Blurred, distorted, jerky, overexposed; objects that appear, vanish or change shape."
MAKER = Path(__file__).parent.parent / "tools" / "make_random_checkpoint.py"


@dataclass(frozen=True)
class Shape:
    """One run."""

    size: tuple[int, int]
    num_frames: int
    num_steps: int = 35
    guidance: float = 7.0
    picture: tuple[int, int] = (3648, 5472)
    to_file: bool = True

    @property
    def options(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "num_frames": self.num_frames,
            "num_steps": self.num_steps,
            "guidance": self.guidance,
        }


SHAPES = {
    "example1": Shape((432, 768), 81),
    "480p_93": Shape((432, 768), 93),
    "action": Shape((480, 640), 13, guidance=0.0, picture=(480, 640), to_file=False),
    "720p_93": Shape((704, 1280), 93),
    "tiny": Shape((32, 48), 5, num_steps=2, picture=(40, 60)),
}
PUBLISHED = ("example1", "480p_93", "action")
"""What BENCHMARKS.md shows."""

THEIRS = "diffusers' networks"


def made(checkpoints: Path, size: str, device: str) -> Path:
    """Where the model of random weights is, made there if it was not."""
    folder = checkpoints / "diffusers" / "Cosmos-Predict2-2B-Video2World"
    if not folder.is_dir():
        command = [sys.executable, str(MAKER), "--size", size, "--out", str(checkpoints)]
        command += ["--layout", "diffusers", "--device", device]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def load(checkpoints: Path, size: str, device: str) -> cf.Video2World:
    return cf.Video2World.from_pretrained(
        made(checkpoints, size, device),
        device=device,
        precision="bf16",
        rope_table="float32",  # diffusers has no other
        prompt_cache=False,
        guardrail=cf.NoGuardrail(reason="a benchmark"),
    )


def photograph(size: tuple[int, int]) -> Image.Image:
    """Blots with some grain: about as many bytes a pixel as a photograph has, as JPEG."""
    random = np.random.default_rng(0)
    height, width = size
    blots = random.integers(0, 256, (height // 48, width // 48, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blots).resize((width, height)), np.int16)
    grain = random.integers(-4, 5, (height, width, 1), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def once(
    engine: cf.Video2World, shape: Shape, folder: Path, *, to_file: bool, **changes: Any
) -> tuple[cf.Clip, float]:
    """A run, and its seconds by the clock on the wall: to the published file, or to frames that
    are there."""
    picture = folder / f"{shape.picture[0]}x{shape.picture[1]}.jpg"
    if not picture.exists():
        photograph(shape.picture).save(picture, quality=90)
    options = shape.options | changes
    prompts = (PROMPT, NEGATIVE) if shape.to_file else (cf.NO_TEXT,)
    start = time.perf_counter()
    if to_file:
        clip = engine.generate_to(folder / "clip.mp4", picture, *prompts, **options)
    else:
        clip = engine.generate(picture, *prompts, **options)
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
    return clip, time.perf_counter() - start


@dataclass(frozen=True)
class Verdict:
    """Whether a contender is right."""

    error: float | None
    limit: float | None
    note: str

    @property
    def refused(self) -> bool:
        return self.error is not None and self.limit is not None and not self.error <= self.limit


def verdicts(
    name: str, engines: dict[str, cf.Video2World], folder: Path
) -> tuple[dict[str, Verdict], ShortRun | None]:
    """Everybody's first step; compiles too, and makes what is made once.

    Raises:
        WrongResult: ours is too far from float32.
    """
    shape, ours = SHAPES[name], engines["ours"]
    made = {
        who: once(engine, shape, folder, to_file=shape.to_file, num_steps=1)[0]
        for who, engine in engines.items()
    }
    try:
        short = short_run(
            ours, lambda engine: once(engine, shape, folder, to_file=False, **SHORT)[0], name
        )
    except ImportError as problem:
        return {who: Verdict(None, None, f"not compared: {problem}") for who in engines}, None
    found = {"ours": Verdict(short.ours, short.limit, "first step of 5 frames against float32")}
    if THEIRS in made:
        apart = relative_error(made_latents(made[THEIRS]), made_latents(made["ours"]))
        found[THEIRS] = Verdict(apart, short.distance, "first step against ours")
    return found, short


def rows_of(
    name: str, engines: dict[str, cf.Video2World], repeats: int, folder: Path, report: Report
) -> list[Row]:
    """Runs everybody who is right, in turns.

    Raises:
        WrongResult: ours is wrong, two runs of it differ, or a file is not what was made.
    """
    shape = SHAPES[name]
    found, short = verdicts(name, engines, folder)
    if short is not None:
        report.extra.setdefault("checks", []).append(
            {"shape": name, "ours": short.ours, "diffusers eager": short.theirs}
        )
    present = {who: engine for who, engine in engines.items() if not found[who].refused}
    clips: dict[str, list[tuple[cf.Clip, float]]] = {who: [] for who in present}
    for _ in range(repeats):
        for who, engine in present.items():
            clips[who].append(once(engine, shape, folder, to_file=shape.to_file))
            if shape.to_file:
                verify_file(folder / "clip.mp4", shape.size, shape.num_frames)
    digests = {one.report.latents_sha256 for one, _ in clips["ours"]}
    if len(digests) > 1:
        raise WrongResult(f"{name}: {repeats} runs of ours gave {len(digests)} results")
    fastest = statistics.median(wall for _, wall in clips["ours"])
    for who, runs in clips.items():
        reports = [one.report.as_dict() | {"wall_seconds": wall} for one, wall in runs]
        report.extra.setdefault("runs", []).append(
            {"shape": name, "contender": who, "reports": reports}
        )
    rows = [row_of(name, who, runs, found[who], fastest) for who, runs in clips.items()]
    for who in engines.keys() - present.keys():
        error, limit = found[who].error, found[who].limit
        why = f"refused: {found[who].note}, relative error {error:.2e} is beyond {limit:.2e}"
        rows.append(Row("whole run", name, who, ours=False, error=error, note=why))
    return rows


def row_of(
    name: str, who: str, runs: list[tuple[cf.Clip, float]], verdict: Verdict, fastest: float
) -> Row:
    """The row of one contender, ``fastest`` being the seconds of ours."""
    times = sorted(wall * 1e3 for _, wall in runs)
    last = runs[-1][0].report
    stages = ", ".join(f"{stage.name} {stage.seconds:.2f}" for stage in last.stages)
    return Row(
        "whole run",
        name,
        who,
        who == "ours",
        median_ms=statistics.median(times),
        p10_ms=times[0],
        p90_ms=times[-1],
        calls=len(runs),
        seconds=sum(times) / 1e3,
        teraflops=last.teraflops,
        error=verdict.error,
        error_limit=verdict.limit,
        speed=fastest * 1e3 / statistics.median(times),
        note=f"{stages} s; error: {verdict.note}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, help="folder of random checkpoints")
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: published")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--without", nargs="+", default=[], help=f'as in --without "{THEIRS}"')
    parser.add_argument("--only-ours", action="store_true", help="without diffusers' networks")
    parser.add_argument("--save", type=Path, help="also write the JSON object here")
    parser.add_argument("--tiny", action="store_true", help="small networks and clips")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    device = arguments.device or ("cpu" if arguments.tiny else "cuda")
    names = arguments.shape or (["tiny"] if arguments.tiny else [*PUBLISHED])
    settings = {"shapes": names, "repeats": arguments.repeats, "weights": "random"}
    report = Report("run", torch.device(device), settings, arguments.save)
    with tempfile.TemporaryDirectory() as folder, Clocks() as clocks:
        checkpoints = arguments.checkpoints or Path(folder, "checkpoints")
        engines = {"ours": load(checkpoints, "tiny" if arguments.tiny else "2B", device)}
        if not arguments.only_ours and THEIRS not in arguments.without:
            try:
                engines[THEIRS] = with_their_networks(engines["ours"])
            except ModuleNotFoundError as missing:
                print(f"bench_run: without {THEIRS}: {missing}", file=sys.stderr)
        try:
            for name in names:
                report.add(rows_of(name, engines, arguments.repeats, Path(folder), report))
        except WrongResult as problem:
            print(f"bench_run: {problem}", file=sys.stderr)
            return 1
    report.extra["clocks"] = clocks.summary()
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
