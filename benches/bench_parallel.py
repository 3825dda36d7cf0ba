"""One video on several GPUs beside the same video on one: peer bandwidth, steps, decode, error.

    PYTHONPATH=python:. python3 benches/bench_parallel.py --ranks 1 2 --save parallel.json

On a machine of two GPUs this makes a checkpoint of random weights (4.3 GB in --folder), measures
what the links carry, and makes 432 x 768 x 81 of the 2B, 12 evaluations, on one GPU and on two in
every way of sharing; about five minutes. Four GPUs: ``--ranks 1 2 4``; the large model: ``--size
14B`` (28 GB). It needs the compiled core at python/cosmos_fast/_core.abi3.so and no ffmpeg.

Each way is first checked in float32 on a small clip against one GPU, then its bfloat16 latents are
compared; nothing is reported of a way that is wrong. NVLink multicast stays off. ``--dry`` walks
the same path on CPU processes with a tiny model. The last line is one JSON object.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from harness import check, machine, relative_error
from tools.make_random_checkpoint import make_checkpoint

import cosmos_fast as cf
from cosmos_fast.config import Seat, keep_multicast_off
from cosmos_fast.parallel import LOOPBACK, join, serve_store
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


Job = tuple[Path, Path, Path, str, Clip, argparse.Namespace]
"""Checkpoint, folder of the results, file of them, kind of device, clip, options."""

CHECKED = Clip((96, 160), 9, 3)


def ways(ranks: int) -> dict[str, dict[str, Any]]:
    """The ways of sharing that are timed: name to the fields of ``cf.Parallel``."""
    if ranks == 1:
        return {"alone": {}}
    found: dict[str, dict[str, Any]] = {"guidance split": {"guidance": "split"}}
    if ranks > 2:
        found |= {
            f"guidance split, {pieces} pieces": {"guidance": "split", "pieces": pieces}
            for pieces in (1, 4)
        }
        del found["guidance split"]
        found["guidance split, 2 pieces"] = {"guidance": "split"}
    for pieces in (1, 2, 4):
        found[f"heads, {pieces} pieces"] = {"guidance": "together", "pieces": pieces}
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
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--save", type=Path)
    parser.add_argument("--dry", action="store_true", help="tiny model on CPU processes")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry else "cuda")
    timed = CHECKED if options.dry else Clip((432, 768), 81, options.steps)
    keep_multicast_off()
    folder = Path(tempfile.mkdtemp(prefix="bench-parallel-", dir=options.folder))
    try:
        began = time.perf_counter()
        size = "tiny" if options.dry else options.size
        world = make_checkpoint(
            folder / "checkpoints", size, layout="nvidia", device=device.type, text_encoder=False
        )
        say(f"made {size} in {time.perf_counter() - began:.1f} s")
        results = []
        for ranks in sorted({1, *options.ranks}):
            job = (world, folder, folder / f"{ranks}.jsonl", device.type, timed, options)
            results += run(ranks, job)
    finally:
        shutil.rmtree(folder)
    figures = [figure(one, results[0]) for one in results if "way" in one]
    links = [one for one in results if "peer" in one]
    line = json.dumps(
        {
            "bench": "parallel",
            "command": " ".join(sys.argv),
            "machine": machine(torch.device(device.type)),
            "settings": {"model": size, "clip": timed.__dict__, "repeats": options.repeats},
            "peer": links,
            "figures": figures,
        }
    )
    if options.save is not None:
        partial = options.save.with_name(options.save.name + ".partial")
        partial.write_text(line + "\n", "utf-8")
        partial.replace(options.save)
    print(line)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(ranks: int, job: Job) -> list[dict[str, Any]]:
    """What rank 0 of ``ranks`` processes measured."""
    store = serve_store(ranks)
    out = job[2]
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
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise SystemExit(f"{ranks} ranks ended with exit codes {codes}")
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def rank_main(seat: Seat, job: Job) -> None:
    """One rank: the links, then every way, checked and timed."""
    world, folder, out, kind, clip, options = job
    device = torch.device(kind, seat.local_rank) if kind == "cuda" else torch.device(kind)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # TF32 would round the float32 clip's convolutions, and for other heights otherwise.
        torch.backends.cudnn.allow_tf32 = False
    group = join(seat, device) if seat.size > 1 else None
    found: list[dict[str, Any]] = []
    if group is not None:
        found += [peer(Exchange(group, device), count) for count in PEER_BYTES]
    for name, fields in ways(seat.size).items():
        if group is not None and options.ways and name not in options.ways:
            continue
        parallel = None if group is None else cf.Parallel(group, **fields)
        made, small, engine = None, None, None
        precisions: tuple[tuple[Literal["fp32", "bf16"], Clip], ...]
        precisions = (("fp32", CHECKED), ("bf16", clip))
        for precision, what in precisions:
            del engine
            engine = cf.Video2World.from_pretrained(
                world,
                device=device,
                precision=precision,
                prompt_cache=False,
                parallel=parallel,
                guardrail=cf.NoGuardrail(reason="a benchmark"),
            )
            if precision == "fp32":
                small = generate(engine, what)
                continue
            generate(engine, replace(what, num_steps=2))
            made = [generate(engine, what) for _ in range(options.repeats)]
        assert made is not None
        assert small is not None
        found.append(timing(name, seat, made, small, folder))
        if seat.rank == 0:
            say(json.dumps(found[-1]))
    if seat.rank == 0:
        out.write_text("\n".join(map(json.dumps, found)) + "\n", "utf-8")
    sys.stderr.flush()
    os._exit(0)


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
