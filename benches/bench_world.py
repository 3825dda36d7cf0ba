"""Worlds at released size: 12 actions, 480 x 640, random weights. What an embedder wants to know.

python benches/bench_world.py [CHECKPOINT] [--only latency trace batch flat] [--worlds 1 2 4 8]
    [--steps 100] [--seconds 15] [--flat 1000] [--flat-seconds 110] [--save FILE]

    latency   whole chunks of 1, 2, 4, 8 worlds: p50, p99, frames a second, seconds by stage; each
              row takes --steps chunks or --seconds, whichever is over first, and at least three
    trace     one chunk under the profiler: how often the host waits for the device or is copied to
    batch     a world alone and among seven others: are the bytes equal, and how far are both from
              the same chunk in float32? Their ratio is the lossless gate's: at most 1.1
    flat      --flat steps of one solver step each, as a planner takes them: one in ten is decoded
              and moves the world on, between them its fork is searched from. Memory of the device
              by torch and by the driver, pinned and resident host memory at twenty moments

CHECKPOINT is a folder with an action-conditioned network (``tools/make_random_checkpoint.py --size
2B --actions``); left out, one is made for the run. Every row is written as soon as it is there.
``--tiny`` does the same with a small network on a CPU: it shows that the script works, no more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness import WrongResult, machine, refuse_missing, relative_error

import cosmos_fast as cf
from cosmos_fast.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

MAKER = Path(__file__).parent.parent / "tools" / "make_random_checkpoint.py"
PARTS = ("latency", "trace", "batch", "flat")
GATE = 1.1
"""How much further from float32 a result may be than the plain one, to pass for lossless."""
NEIGHBOURS = 7
CHOSEN = 5
"""Which of the eight worlds is looked at."""
GROWN = 1 << 20
"""Bytes of the device that a run of many steps may have more at its end."""
LEAST_STEPS = 3
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")


class Bench:
    """One engine, and the document that grows row by row."""

    def __init__(self, engine: cf.Video2World, folder: Path, options: argparse.Namespace) -> None:
        self.engine, self.folder, self.options = engine, folder, options
        profile = engine.profile
        assert profile.actions is not None
        self.spec, self.size, self.device = profile.actions, profile.size, engine.device
        self.rows: list[dict[str, Any]] = []

    def started(self, engine: cf.Video2World, count: int, first: int = 0) -> cf.World:
        """Worlds number ``first`` and after: world k is the same whoever is beside it."""
        pictures = [self._drawn(first + k, (*self.size, 3)) for k in range(count)]
        frames = torch.from_numpy(np.stack(pictures)).mul_(255).to(torch.uint8)
        world = cf.World(engine, count)
        world.reset(frames.to(self.device), seed=range(first, first + count))
        return world

    def actions(self, count: int, first: int = 0) -> torch.Tensor:
        """float32 (N, chunk, dim) on the device, within the network's range."""
        shape = (self.spec.chunk, self.spec.dim)
        rows = [self._drawn(100 + first + k, shape) - 0.5 for k in range(count)]
        scale = torch.tensor(self.spec.scale, dtype=torch.float32)
        return (torch.from_numpy(np.stack(rows)) / scale).to(self.device)

    def latency(self) -> Iterator[dict[str, Any]]:
        for count in self.options.worlds:
            given = self.actions(count)
            with self.started(self.engine, count) as warm:
                warm.step(given).report.stages  # noqa: B018 - waits for the device
            with self.started(self.engine, count) as world:
                began, steps = time.perf_counter(), 0
                while steps < self.options.steps:
                    world.step(given).report.stages  # noqa: B018 - one at a time, as a loop does
                    steps += 1
                    over = time.perf_counter() - began > self.options.seconds
                    if over and steps >= LEAST_STEPS:
                        break
                report = world.report()
            yield {"worlds": count, "solver_steps": self.engine.profile.num_steps, **vars(report)}

    def trace(self) -> Iterator[dict[str, Any]]:
        """Counts what the driver was asked within one chunk of two worlds."""
        given = self.actions(2)
        with self.started(self.engine, 2) as world:
            world.step(given, num_steps=2).report.stages  # noqa: B018
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            with torch.profiler.profile(activities=activities) as seen:
                world.step(given, num_steps=2)
        names = Counter(event.name for event in seen.events())
        copies = {name: number for name, number in names.items() if name.startswith("Memcpy")}
        waits = {name: names[name] for name in WAITS if names[name]}
        yield {
            "worlds": 2, "events": names.total(), "waits": waits, "copies": copies,
            "note": "the profiler itself waits once, for the device, when it ends",
        }  # fmt: skip

    def batch(self) -> Iterator[dict[str, Any]]:
        """
        Raises:
            WrongResult: beyond the lossless gate.
        """
        one = self.actions(1, CHOSEN)
        among, alone = (
            world.step(given, decode=False).latents.tensor[row].cpu()
            for world, given, row in (
                (self.started(self.engine, NEIGHBOURS + 1), self.actions(NEIGHBOURS + 1), CHOSEN),
                (self.started(self.engine, 1, CHOSEN), one, 0),
            )
        )
        apart = relative_error(among, alone)
        row = {
            "worlds": NEIGHBOURS + 1, "world": CHOSEN, "equal_bytes": torch.equal(among, alone),
            "apart": apart, "solver_steps": self.engine.profile.num_steps,
        }  # fmt: skip
        exact_engine = load(self.folder, str(self.device), precision="fp32")
        exact = self.started(exact_engine, 1, CHOSEN).step(one, decode=False).latents.tensor[0]
        errors = [relative_error(each, exact.cpu()) for each in (alone, among)]
        ratio = errors[1] / errors[0] if errors[0] else 1.0
        row |= {"error_alone": errors[0], "error_among": errors[1], "ratio": ratio, "gate": GATE}
        yield row
        if not row["equal_bytes"] and not ratio <= GATE:
            raise WrongResult(f"among others {ratio:.3f} times as far from float32: {GATE} is most")

    def flat(self) -> Iterator[dict[str, Any]]:
        """
        Raises:
            WrongResult: as :func:`growth`.
        """
        asked, limit = self.options.flat, self.options.flat_seconds
        every = max(1, asked // 20)
        given = self.actions(1)
        seen, decoded, searched = list[dict[str, int]](), list[float](), list[float]()
        began = time.perf_counter()
        with self.started(self.engine, 1) as world:
            branch = world.fork(0, 1)
            for number in range(1, asked + 1):
                start = time.perf_counter()
                if number % 10 == 0:
                    world.step(given, num_steps=1).report.stages  # noqa: B018
                    branch = world.fork(0, 1)
                    decoded.append(time.perf_counter() - start)
                else:
                    branch.step(given, num_steps=1, decode=False).report.stages  # noqa: B018
                    branch = world.fork(0, 1)
                    searched.append(time.perf_counter() - start)
                if number % every == 0 or number == 1:
                    seen.append({"step": number, **held(self.device)})
                if time.perf_counter() - began > limit:
                    break
        yield {
            "worlds": 1, "solver_steps": 1, "steps": number, "asked": asked,
            "seconds": time.perf_counter() - began, "decoded": spread(decoded),
            "searched": spread(searched), "seen": seen,
        }  # fmt: skip
        growth(seen, number)

    def write(self) -> str:
        """The document as it stands, and its one line."""
        line = json.dumps(
            {
                "bench": "world",
                "command": " ".join(["python", *sys.argv]),
                "machine": machine(self.device),
                "settings": {
                    "weights": "random", "size": list(self.size), "chunk": self.spec.chunk,
                    "dim": self.spec.dim,
                },
                "rows": self.rows,
            }
        )  # fmt: skip
        if self.options.save is not None:
            self.options.save.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.options.save, f"{line}\n".encode())
        return line

    @staticmethod
    def _drawn(seed: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(seed).random(shape, np.float32)


def held(device: torch.device) -> dict[str, int]:
    """Bytes that the process holds now: on the device, pinned, and resident on the host."""
    status = Path("/proc/self/status").read_text("ascii")
    own = int(status.partition("RssAnon:")[2].split()[0]) * 1024
    if device.type != "cuda":
        return {"allocated": 0, "reserved": 0, "taken_of_card": 0, "pinned": 0, "resident": own}
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "taken_of_card": total - free,
        "pinned": int(torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)),
        "resident": own,
    }


def settled(seen: list[dict[str, int]], steps: int) -> list[dict[str, int]]:
    """Without the first tenth, in which allocators and caches may grow."""
    return [one for one in seen if one["step"] >= steps / 10]


def growth(seen: list[dict[str, int]], steps: int) -> dict[str, int]:
    """Bytes more at the end than after a tenth of the steps.

    Raises:
        WrongResult: the device holds more, or too little was seen to tell.
    """
    moments = settled(seen, steps)
    if len(moments) < 2:
        raise WrongResult(f"{steps} steps are too few to tell: give more --flat-seconds")
    first, last = moments[0], moments[-1]
    grown = {key: last[key] - first[key] for key in first if key != "step"}
    if max(grown["allocated"], grown["taken_of_card"]) > GROWN:
        raise WrongResult(f"memory grew over {steps} steps: {grown}")
    return grown


def spread(seconds: list[float]) -> dict[str, float]:
    """Of the host's clock around one step, waited for."""
    if not seconds:
        return {}
    return {
        "number": len(seconds), "p50": statistics.median(seconds),
        "p99": float(np.percentile(seconds, 99)), "most": max(seconds),
    }  # fmt: skip


def line_of(part: str, row: dict[str, Any]) -> str:
    """A row, for a terminal."""
    if part == "latency":
        stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in row["stages"].items())
        return (
            f"{row['worlds']} worlds, {row['steps']} chunks: p50 {row['latency_p50']:.3f} s, p99 "
            f"{row['latency_p99']:.3f} s, {row['frames_per_second']:.1f} frames/s ({stages} s)"
        )
    if part == "trace":
        return f"trace of a chunk: waits {row['waits']}, copies {row['copies']}"
    if part == "batch":
        return (
            f"world {row['world']} alone and among {row['worlds'] - 1}: equal bytes "
            f"{row['equal_bytes']}, apart {row['apart']:.2e}; from float32 {row['error_alone']:.3e}"
            f" and {row['error_among']:.3e}, ratio {row['ratio']:.3f} of {row['gate']}"
        )
    moments = settled(row["seen"], row["steps"])
    held_mib = {
        key: f"{moments[0][key] / 2**20:.1f} to {moments[-1][key] / 2**20:.1f}"
        for key in moments[0]
        if key != "step"
    }
    return (
        f"{row['steps']} of {row['asked']} steps in {row['seconds']:.0f} s: MiB {held_mib}; "
        f"seconds decoded {row['decoded']}, searched {row['searched']}"
    )


def load(folder: Path, device: str, precision: Any = "auto") -> cf.Video2World:
    return cf.Video2World.from_pretrained(
        folder,
        device=device,
        precision=precision,
        guardrail=cf.NoGuardrail(reason="a benchmark"),
    )


def made(folder: Path, device: str, *, tiny: bool) -> Path:
    """A checkpoint of random weights below ``folder``."""
    command = [sys.executable, str(MAKER), "--size", "tiny" if tiny else "2B", "--actions"]
    command += ["--out", str(folder), "--layout", "diffusers", "--device", device]
    subprocess.run([*command, "--no-text-encoder"], check=True, stdout=subprocess.DEVNULL)
    return next((folder / "diffusers").iterdir())


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=100, help="most chunks of a row of latency")
    parser.add_argument("--seconds", type=float, default=15.0, help="most seconds of such a row")
    parser.add_argument("--flat", type=int, default=1000, help="steps over which memory is flat")
    parser.add_argument("--flat-seconds", type=float, default=110.0, help="most seconds of them")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(words)
    if options.flat < LEAST_STEPS or options.steps < 1:
        parser.error(f"--flat is at least {LEAST_STEPS}, --steps at least 1")
    return options


def main() -> int:
    options = parsed()
    device = "cpu" if options.tiny else "cuda"
    refuse_missing(torch.device(device))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.checkpoint or made(Path(temporary, "random"), device, tiny=options.tiny)
        bench, wrong = Bench(load(folder, device), folder, options), 0
        for part in options.only:
            try:
                for row in getattr(bench, part)():
                    bench.rows.append({"part": part, **row})
                    bench.write()
                    print(line_of(part, row), flush=True)
            except WrongResult as problem:
                print(f"bench_world: {part}: {problem}", file=sys.stderr)
                wrong = 1
        print(bench.write())
    return wrong


if __name__ == "__main__":
    sys.exit(main())
