"""One video on several GPUs beside the same video on one: peer bandwidth, steps, decode, error.

    PYTHONPATH=python:. python3 benches/bench_parallel.py --ranks 1 2 --save parallel.json

On a machine of two GPUs this makes a checkpoint of random weights (4.3 GB in --folder), measures
what the links carry, and makes 432 x 768 x 81 of the 2B, 12 evaluations, on one GPU and on two in
every way of sharing; about five minutes. Four GPUs: ``--ranks 1 2 4``; the large model: ``--size
14B`` (28 GB). It needs the compiled core at python/cosmos_fast/_core.abi3.so and no ffmpeg.

Each way is first checked in float32 on a small clip against one GPU, then its bfloat16 latents are
compared; nothing is reported of a way that is wrong. NVLink multicast stays off. ``--dry`` walks
the same path on CPU processes with a tiny model. Every row is saved as it comes; a way that fails,
or of which nothing is heard for ``--patience`` seconds, is named under "failed", and new processes
go on with the next. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch
from harness import check, machine, refuse_missing, relative_error
from tools.make_random_checkpoint import make_checkpoint

import cosmos_fast as cf
from cosmos_fast.config import Seat, keep_multicast_off
from cosmos_fast.parallel import LOOPBACK, join, leave, serve_store
from cosmos_fast.parallel.exchange import Exchange
from cosmos_fast.types import TextEmbedding

FP32_BOUND = 1e-4
BF16_BOUND = 0.2
"""Relative errors of the latents: a swapped shard is off by about 1, and guidance makes eight times
bfloat16's own rounding of random weights."""
FRAMES_BOUND = 1e-3
"""Relative error of the float32 clip's pixels: a missing border is off by a hundredth."""
PEER_BYTES = (2**20, 2**24, 2**28)


@dataclass(frozen=True)
class Clip:
    """What is made."""

    size: tuple[int, int]
    num_frames: int
    num_steps: int


@dataclass(frozen=True)
class Job:
    """What the ranks of one run are to do."""

    world: Path
    """Checkpoint."""
    folder: Path
    """Of results and faults."""
    kind: str
    """Of device."""
    clip: Clip
    repeats: int
    patience: float
    """Seconds without a row after which the ranks are ended."""
    ways: tuple[str, ...] = ()
    links: bool = True
    """Whether what they carry is measured first."""
    memory: str | None = None
    """Budget of every rank's device for the timed clips; None: all weights stay on it."""


CHECKED = Clip((96, 160), 9, 3)
GRACE = 15.0
"""Seconds in which the other ranks may say why one has failed."""


def ways(ranks: int) -> dict[str, dict[str, Any]]:
    """The ways of sharing that are timed: name to the fields of ``cf.Parallel``."""
    if ranks == 1:
        return {"alone": {}}
    found: dict[str, dict[str, Any]] = {"guidance split": {"guidance": "split"}}
    if ranks > 2:
        found |= {
            f"guidance split, {pieces} pieces": {
                "guidance": "split",
                "windows": False,
                "pieces": pieces,
            }
            for pieces in (1, 2)
        }
    found["heads, windows"] = {"guidance": "together"}
    for pieces in (1, 2, 4):
        found[f"heads, {pieces} pieces"] = {
            "guidance": "together",
            "windows": False,
            "pieces": pieces,
        }
    found["ring"] = {"guidance": "together", "context": "ring"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", default="2B", choices=["2B", "14B"])
    parser.add_argument("--steps", type=int, default=11, help="solver steps; one more evaluation")
    parser.add_argument("--ways", nargs="+", default=[], help="of sharing: these alone")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--memory", help='of every card, such as "4GiB": weights that pass through')
    parser.add_argument("--patience", type=float, default=300.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--save", type=Path)
    parser.add_argument("--dry", action="store_true", help="tiny model on CPU processes")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry else "cuda")
    refuse_missing(device)
    timed = CHECKED if options.dry else Clip((432, 768), 81, options.steps)
    size = "tiny" if options.dry else options.size
    settings = {"model": size, "clip": timed.__dict__, "repeats": options.repeats}
    settings |= {} if options.memory is None else {"memory": options.memory}
    results = Results(options.save, settings, machine(device))
    keep_multicast_off()
    folder = Path(tempfile.mkdtemp(prefix="bench-parallel-", dir=options.folder))
    try:
        began = time.perf_counter()
        world = make_checkpoint(
            folder / "checkpoints", size, layout="nvidia", device=device.type, text_encoder=False
        )
        say(f"made {size} in {time.perf_counter() - began:.1f} s")
        job = Job(world, folder, device.type, timed, options.repeats, options.patience)
        job = replace(job, memory=options.memory)
        for ranks in sorted({1, *options.ranks}):
            chosen = [way for way in ways(ranks) if ranks == 1 or way in (options.ways or [way])]
            measure(ranks, replace(job, ways=tuple(chosen)), results)
            if not results.figures:
                break  # without one rank there is nothing to compare with
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(results.line())
    if results.failed:
        raise SystemExit(f"{len(results.failed)} of the ways failed")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Results:
    """Every row so far, in a file from the first one on."""

    save: Path | None
    settings: dict[str, Any]
    machine: dict[str, Any]
    figures: list[dict[str, Any]] = field(default_factory=list)
    links: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        if "peer" in row:
            self.links.append(row)
            say(json.dumps(row))
        else:
            self.figures.append(figure(row, self.figures[0] if self.figures else row))
        self._write()

    def fail(self, ranks: int, way: str, fault: str) -> None:
        self.failed.append({"ranks": ranks, "way": way, "fault": fault})
        say(f"{ranks} ranks, {way}: FAILED: {fault}")
        self._write()

    def line(self) -> str:
        return json.dumps(
            {
                "bench": "parallel",
                "command": " ".join(sys.argv),
                "machine": self.machine,
                "settings": self.settings,
                "peer": self.links,
                "figures": self.figures,
                "failed": self.failed,
            }
        )

    def _write(self) -> None:
        if self.save is not None:
            partial = self.save.with_name(self.save.name + ".partial")
            partial.write_text(self.line() + "\n", "utf-8")
            partial.replace(self.save)


def measure(ranks: int, job: Job, results: Results) -> None:
    """Every way of ``job`` on ``ranks`` processes, on others after each that fails."""
    while job.ways:
        rows, fault = run(ranks, job, results.add)
        left = job.ways[sum("way" in row for row in rows) :]
        if fault is None:
            return
        if left:
            results.fail(ranks, left[0], fault)
        job = replace(job, ways=left[1:], links=job.links and not rows)


def run(
    ranks: int, job: Job, on_row: Callable[[dict[str, Any]], None]
) -> tuple[list[dict[str, Any]], str | None]:
    """What rank 0 of ``ranks`` processes measured, and what ended them if it was a fault."""
    for stale in job.folder.glob("rank*"):
        stale.unlink()
    store = serve_store(ranks)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=rank_main,
            args=(Seat(rank, ranks, rank, LOOPBACK, store.port, store_is_served=True), job),
            daemon=True,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    rows: list[dict[str, Any]] = []
    heard = time.monotonic()
    fault = None
    while fault is None:
        ended = not any(process.is_alive() for process in processes)
        for row in rows_of(job)[len(rows) :]:
            rows.append(row)
            on_row(row)
            heard = time.monotonic()
        if any(process.exitcode for process in processes):
            fault = fault_of(processes, job)
        elif ended:
            break
        elif time.monotonic() - heard > job.patience:
            fault = f"nothing was heard for {job.patience:g} s"
        time.sleep(0.2)
    for process in processes:
        process.kill()
        process.join()
    return rows, fault


def rows_of(job: Job) -> list[dict[str, Any]]:
    """The whole lines that rank 0 has written."""
    path = job.folder / "rank0.jsonl"
    whole = path.read_text("utf-8").rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def fault_of(processes: Sequence[BaseProcess], job: Job) -> str:
    """What each rank that failed has to say, once they had time to say it."""
    until = time.monotonic() + GRACE
    while any(process.is_alive() for process in processes) and time.monotonic() < until:
        time.sleep(0.2)
    told = {path.stem: path.read_text("utf-8") for path in sorted(job.folder.glob("rank*.fault"))}
    codes = [process.exitcode for process in processes]
    return "; ".join(f"{rank}: {text}" for rank, text in told.items()) or f"exit codes {codes}"


def rank_main(seat: Seat, job: Job) -> None:
    """One rank; its fault, if there is one, is left in a file."""
    try:
        rank_work(seat, job)
    except BaseException as error:
        # Whatever it is, the parent is to hear of it, and the other ranks must not wait.
        traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        (job.folder / f"rank{seat.rank}.fault").write_text(text[:500], "utf-8")
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)


def rank_work(seat: Seat, job: Job) -> None:
    """The links, then every way, checked and timed."""
    device = torch.device(job.kind, seat.local_rank) if job.kind == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # TF32 would round the float32 clip's convolutions, and for other heights otherwise.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    group = join(seat, device) if seat.size > 1 else None
    with (job.folder / f"rank{seat.rank}.jsonl").open("w", encoding="utf-8") as out:

        def keep(row: dict[str, Any]) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()

        if group is not None and job.links:
            exchange = Exchange(group, device)
            for count in PEER_BYTES:
                keep(peer(exchange, count))
        for name in job.ways:
            parallel = None if group is None else cf.Parallel(group, **ways(seat.size)[name])
            small, made = clips(job, device, parallel)
            keep(timing(name, seat, made, small, job.folder))
    if group is not None:
        leave(group, device)


def clips(
    job: Job, device: torch.device, parallel: cf.Parallel | None
) -> tuple[cf.Clip, list[cf.Clip]]:
    """The small clip in float32, and the timed ones in bfloat16."""

    def engine(precision: Literal["fp32", "bf16"], memory: str = "auto") -> cf.Video2World:
        return cf.Video2World.from_pretrained(
            job.world,
            device=device,
            precision=precision,
            prompt_cache=False,
            parallel=parallel,
            guardrail=cf.NoGuardrail(reason="a benchmark"),
            memory=memory,
        )

    small = generate(engine("fp32"), CHECKED)
    rounded = engine("bf16", job.memory or "auto")
    generate(rounded, replace(job.clip, num_steps=2))
    return small, [generate(rounded, job.clip) for _ in range(job.repeats)]


def generate(engine: cf.Video2World, clip: Clip) -> cf.Clip:
    generator = torch.Generator().manual_seed(0)
    width = engine.profile.dit.text_dim
    rows = torch.zeros(512, width, dtype=torch.bfloat16)
    rows[:60] = torch.randn(60, width, generator=generator) * 0.2
    picture = torch.randint(0, 256, (*clip.size, 3), dtype=torch.uint8, generator=generator)
    return engine.generate(
        picture,
        TextEmbedding(rows, 60),
        cf.NO_TEXT,
        size=clip.size,
        num_frames=clip.num_frames,
        num_steps=clip.num_steps,
        guidance=7.0,
    )


def timing(
    name: str, seat: Seat, made: list[cf.Clip], small: cf.Clip, folder: Path
) -> dict[str, Any]:
    """The best of the runs, and errors against what one rank has left in ``folder``."""
    reports = [clip.report for clip in made]
    best = min(reports, key=lambda report: statistics.median(report.step_seconds[1:]))
    ours = {
        "fp32": small.latents.tensor.cpu(),
        "bf16": made[-1].latents.tensor.cpu(),
        "frames": small.frames.to("pt").cpu(),
    }
    if seat.size == 1:
        torch.save(ours, folder / "one.pt")
    one = torch.load(folder / "one.pt", weights_only=True)
    errors = {f"error_{what}": relative_error(ours[what], one[what]) for what in ours}
    bounds = {"fp32": FP32_BOUND, "bf16": BF16_BOUND, "frames": FRAMES_BOUND}
    for what, bound in bounds.items():
        check(f"{seat.size} ranks, {name}, {what}", errors[f"error_{what}"], bound)
    return {
        "way": name,
        "ranks": seat.size,
        "median_step_seconds": statistics.median(best.step_seconds[1:]),
        "step_seconds": [list(report.step_seconds) for report in reports],
        "stages": {stage.name: round(stage.seconds, 4) for stage in best.stages},
        "teraflops": best.teraflops,
        "peak_device_bytes": best.peak_device_bytes,
        "memory": (best.memory or {}).get("summary"),
        "parallel": dict(best.parallel),
        "backends": dict(best.backends),
        "device": best.device,
        **errors,
    }


def peer(exchange: Exchange, count: int) -> dict[str, Any]:
    """Gigabytes a second that each rank sends to the others while it receives as much."""
    block = torch.zeros(exchange.size * count, dtype=torch.uint8, device=exchange.device)
    counts = [count] * exchange.size
    seconds = []
    for _ in range(8):
        if exchange.device.type == "cuda":
            torch.cuda.synchronize(exchange.device)
        began = time.perf_counter()
        exchange.start(block, counts, counts).wait()
        if exchange.device.type == "cuda":
            torch.cuda.synchronize(exchange.device)
        seconds.append(time.perf_counter() - began)
    sent = count * (exchange.size - 1)
    return {
        "peer": count,
        "ranks": exchange.size,
        "gigabytes_per_second": round(sent / statistics.median(seconds[3:]) / 1e9, 2),
    }


def figure(one: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """A result with its speed-up over one rank."""
    step = alone["median_step_seconds"] / one["median_step_seconds"]
    decode = alone["stages"]["decode"] / one["stages"]["decode"]
    say(
        f"{one['ranks']} ranks, {one['way']:28} step {one['median_step_seconds'] * 1e3:9.1f} ms "
        f"x {step:5.2f}, decode {one['stages']['decode']:7.3f} s x {decode:5.2f}, waiting "
        f"{one['parallel'].get('communication_share', 0):6.1%}, errors "
        f"{one['error_fp32']:.1e} {one['error_bf16']:.1e}"
    )
    return {**one, "speedup": step, "efficiency": step / one["ranks"], "decode_speedup": decode}


if __name__ == "__main__":
    main()
