"""Memory plans carried out: peak, time and bytes beside everything resident, and beside the plan.

python benches/bench_memory.py --checkpoints DIR [--only 2b_480p ...] [--steps 3] [--save FILE]

Every row is a process of its own on an otherwise idle card; its peak is what the driver says is
taken of the card while it runs, CUDA context included, less what was taken before. Beside it stand
the most that torch's allocator had of the driver, and of each stage both and what was allocated.
``of_budget`` is the peak by the budget: above 1 the promise is broken. A generation of the same
size with one step goes before the one that is timed. Random weights of the released sizes and
T5-11B; where DIR has none, they are made there. Rows:

    MODEL_SHAPE_resident     everything on the device: what the others are compared with
    MODEL_SHAPE_4GiB, ...    within so much: slowdown, same bytes, predicted beside measured
    ..._bus25, ..._bus12     copies slowed down to so many GB/s: a simulation of slower buses
    ..._diffusers            the same transformer in diffusers' group offload with streams
    auto_8GiB                memory="auto" in a process that torch limits to 8 GiB
    sleep_2b, sleep_14b      what sleeping leaves, and how long waking takes
    flat                     200 short generations within 4 GiB: device, pinned and resident memory

``--tiny`` runs them with small networks on a CPU: it shows that the script works, nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness import machine, visible_card

import cosmos_fast as cf
from cosmos_fast.files import write_atomically
from cosmos_fast.memory import cards, executor, residence
from cosmos_fast.memory.engines import CudaEngines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GIB = 1 << 30
MAKER = Path(__file__).parent.parent / "tools" / "make_random_checkpoint.py"
PICTURE = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
SHAPES = {"480p": ((432, 768), 81), "720p": ((704, 1280), 93), "tiny": ((32, 48), 9)}
BUDGETS = {
    ("2b", "480p"): ("4GiB", "5GiB", "6GiB", "8GiB"),
    ("14b", "480p"): ("6.5GiB", "8GiB", "12GiB"),
    ("2b", "720p"): ("8GiB", "9GiB", "12GiB"),
    ("14b", "720p"): ("8GiB", "12GiB", "14GiB"),
}
REFERENCE_GB = {"2b": (27.3, 32.5), "14b": (39.0, 56.4)}
"""The original with everything offloaded, and the later tool, by their own tables."""


@dataclass(frozen=True)
class Row:
    """One process."""

    name: str
    kind: str
    model: str = "2b"
    shape: str = "480p"
    memory: str = "resident"
    bus: float | None = None
    """GB/s that copies are slowed down to."""


def rows(tiny: bool) -> list[Row]:
    if tiny:
        return [
            Row("tiny_resident", "run", "tiny", "tiny"),
            Row("tiny_24MiB", "run", "tiny", "tiny", "24MiB"),
            Row("sleep_tiny", "sleep", "tiny", "tiny"),
            Row("flat", "flat", "tiny", "tiny", "24MiB"),
        ]
    found = []
    for (model, shape), budgets in BUDGETS.items():
        name = f"{model}_{shape}"
        found.append(Row(f"{name}_resident", "run", model, shape))
        found += [Row(f"{name}_{one}", "run", model, shape, one) for one in budgets]
        found.append(Row(f"{name}_diffusers", "diffusers", model, shape))
    found += [Row(f"14b_480p_bus{b}", "run", "14b", "480p", "8GiB", b) for b in (25, 12)]
    found.append(Row("auto_8GiB", "run", "2b", "480p", "auto"))
    found += [Row(f"sleep_{model}", "sleep", model) for model in ("2b", "14b")]
    return [*found, Row("flat", "flat", "2b", "480p", "4GiB")]


def main() -> None:
    options = _options()
    if options.row is not None:
        print(json.dumps(_measure(options.row, options)))
        return
    wanted = [
        row
        for row in rows(options.tiny)
        if not options.only or _is_wanted(row.name, options.only, options.tiny)
    ]
    for model in {row.model for row in wanted}:
        _make(options.checkpoints, model)
    done: list[dict[str, Any]] = []
    for row in wanted:
        idle = _taken_of_card()
        command = [sys.executable, __file__, *sys.argv[1:], "--row", row.name]
        start = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            print(f"{row.name}: failed\n{run.stderr[-3000:]}", file=sys.stderr)
            done.append({"row": row.name, "error": run.stderr.splitlines()[-1:]})
            continue
        result = json.loads(run.stdout.splitlines()[-1])
        if result.get("peak_taken") is not None:
            _account(result, idle or 0)
        result["wall_s"] = time.perf_counter() - start
        done.append(result)
        _compare(done)
        print(_line(result))
        _save(done, options)  # what was measured stays, if a later row is cut short
    print(_document(done, options))


def _account(result: dict[str, Any], idle: int) -> None:
    """The driver's peak without what was taken before, and beside the budget."""
    peak = result["peak_taken"] - idle
    result["peak_gib"] = peak / GIB
    memory = result.get("memory")
    if memory is not None:
        result["of_budget"] = peak / memory["budget_bytes"]
        result["of_predicted"] = peak / memory["predicted_peak_bytes"]


def _is_wanted(name: str, only: list[str], tiny: bool) -> bool:
    """Where one of ``only`` is a row's whole name, it means that row alone; else all rows that
    begin with it."""
    known = {row.name for row in rows(tiny)}
    return any(name == one if one in known else name.startswith(one) for one in only)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="rows by name, or by its start")
    parser.add_argument("--steps", type=int, default=3, help="solver steps; one more follows")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def _make(checkpoints: Path, model: str) -> None:
    if not _folder(checkpoints, model).is_dir():
        size = {"2b": "2B", "14b": "14B"}.get(model, model)
        out = checkpoints / "tiny" if model == "tiny" else checkpoints
        command = [sys.executable, str(MAKER), "--size", size, "--out", str(out)]
        subprocess.run([*command, "--layout", "diffusers"], check=True, stdout=sys.stderr)


def _folder(checkpoints: Path, model: str) -> Path:
    name = "14B" if model == "14b" else "2B"
    root = checkpoints / "tiny" if model == "tiny" else checkpoints
    return root / "diffusers" / f"Cosmos-Predict2-{name}-Video2World"


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    row = next(row for row in rows(options.tiny) if row.name == name)
    measure = {"run": _run, "diffusers": _diffusers, "sleep": _sleep, "flat": _flat}[row.kind]
    with _watched() as watch:
        result = measure(row, options, watch)
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"row": name, "peak_taken": watch.peak, "host_gib": host} | result


def _engine(row: Row, options: argparse.Namespace) -> cf.Video2World:
    device = "cpu" if options.tiny else "cuda"
    if device == "cuda":
        rate = row.bus and row.bus * 1e9
        # Predictions are made from this card's own rates, not from a table's.
        residence.card_of = lambda device: _slowed(cards.measured_card(device), rate)
        if rate:
            executor.CudaEngines = lambda place: _SlowCopies(place, rate)  # type: ignore[assignment, misc]
        if row.memory == "auto":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(8 * GIB / total)
    return cf.Video2World.from_pretrained(
        _folder(options.checkpoints, row.model),
        device=device,
        memory=row.memory,
        prompt_cache=False,
        guardrail=cf.NoGuardrail(reason="a measurement with random weights"),
    )


def _generate(engine: cf.Video2World, row: Row, steps: int, **more: Any) -> cf.Clip:
    size, frames = SHAPES[row.shape]
    arguments: dict[str, Any] = {
        "prompt": "a red cube on a steel table",
        "negative_prompt": "blurred",
        "size": size,
        "num_frames": frames,
        "num_steps": steps,
        "guidance": 7.0,
    }
    return engine.generate(PICTURE, **(arguments | more))


def _run(row: Row, options: argparse.Namespace, watch: _Watch) -> dict[str, Any]:
    start = time.perf_counter()
    engine = _engine(row, options)
    loaded = time.perf_counter() - start
    steps = 1 if row.shape == "720p" and row.model == "14b" else options.steps
    # Loads T5 and compiles; and cuDNN chooses anew for each size: a first encode takes thrice as
    # long as the next.
    _generate(engine, row, 1, on_stage=watch.on_stage("first "))
    report = _generate(engine, row, steps, on_stage=watch.on_stage("")).report
    # The first step holds what is made once: keys and values of the prompts, tables, first copies.
    forwards = [seconds / report.forwards_per_step for seconds in report.step_seconds[1:]]
    return {
        "load_s": loaded,
        "steps": steps,
        "forward_s": sum(forwards) / len(forwards),
        "stages_s": {stage.name: stage.seconds for stage in report.stages},
        "latents_sha256": report.latents_sha256,
        "memory": report.memory,
        "stage_peaks": watch.stages,
        "predicted_forward_s": _predicted(engine),
        "backends": dict(report.backends),
        "notes": list(report.notes),
    }


def _predicted(engine: cf.Video2World) -> float | None:
    plan = engine.memory_plan
    return None if plan is None else plan.stage("denoise").pass_seconds


def _diffusers(row: Row, options: argparse.Namespace, watch: _Watch) -> dict[str, Any]:
    """One forward of the same transformer, block by block through diffusers' group offload."""
    import rivals

    from cosmos_fast.model.dit import DiT
    from cosmos_fast.model.ops import Ops
    from cosmos_fast.weights.released import ARCHITECTURES

    device = torch.device("cuda")
    config = ARCHITECTURES[row.model.upper()]
    with torch.device("meta"):
        ours = DiT(config, Ops()).to(torch.bfloat16).eval().requires_grad_(False)
    ours = ours.to_empty(device="cpu")
    for weight in ours.parameters():
        weight.copy_(torch.randn(weight.shape, device=device) * weight.shape[-1] ** -0.5)
    theirs = rivals.diffusers_dit(ours)
    del ours
    gc.collect()
    theirs.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=True,
    )
    size, frames = SHAPES[row.shape]
    shape = (1, 16, (frames - 1) // 4 + 1, size[0] // 8, size[1] // 8)
    sample = torch.randn(shape, dtype=torch.bfloat16, device=device)
    times = torch.full((1, 1, shape[2], 1, 1), 0.5, dtype=torch.bfloat16, device=device)
    text = torch.randn(1, 512, 1024, dtype=torch.bfloat16, device=device)
    mask, padding = torch.zeros_like(sample[:, :1]), sample.new_zeros(1, 1, *size)
    seconds = []
    with torch.no_grad():
        for _ in range(4):
            torch.cuda.synchronize()
            start = time.perf_counter()
            theirs(
                hidden_states=sample,
                timestep=times,
                encoder_hidden_states=text,
                fps=24,
                condition_mask=mask,
                padding_mask=padding,
            )
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return {"forward_s": sum(seconds[1:]) / 3, "transformer_alone": True}


def _sleep(row: Row, options: argparse.Namespace, watch: _Watch) -> dict[str, Any]:
    cuda = not options.tiny
    if cuda:
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    context = _taken() or 0
    engine = _engine(row, options)
    small: dict[str, Any] = {} if options.tiny else {"size": (64, 64), "num_frames": 5}
    before = _generate(engine, row, 1, prompt=cf.NO_TEXT, negative_prompt=cf.NO_TEXT, **small)
    naps = []
    for _ in range(3):  # the first sleep makes the pinned copies
        start = time.perf_counter()
        engine.sleep()
        gc.collect()
        slept, left = time.perf_counter() - start, (_taken() or 0) - context
        start = time.perf_counter()
        engine.wake()
        if cuda:
            torch.cuda.synchronize()
        naps.append({"sleep_s": slept, "wake_s": time.perf_counter() - start, "left_bytes": left})
    after = _generate(engine, row, 1, prompt=cf.NO_TEXT, negative_prompt=cf.NO_TEXT, **small)
    same = before.report.latents_sha256 == after.report.latents_sha256
    return {"naps": naps, "same_bytes": same}


def _flat(row: Row, options: argparse.Namespace, watch: _Watch) -> dict[str, Any]:
    engine = _engine(row, options)
    seen = []
    for number in range(200):
        text = {"prompt": cf.NO_TEXT, "negative_prompt": cf.NO_TEXT}
        _generate(engine, row, 1, size=(64, 64), num_frames=5, **text)
        if number in (20, 110, 199):
            gc.collect()
            moving = engine._parts.residence.executor
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
            seen.append(
                {
                    "generation": number,
                    "taken_bytes": _taken(),
                    "allocated_bytes": 0 if options.tiny else torch.cuda.memory_allocated(),
                    "pinned_bytes": 0 if moving is None else moving.pinned_bytes,
                    "resident_bytes": pages * resource.getpagesize(),
                }
            )
    plan = engine.memory_plan
    return {"seen": seen, "streamed": plan and plan.stage("denoise").streamed}


class _SlowCopies(CudaEngines):
    """Copies that take as long as over a bus of ``rate``: the copy queue idles after each."""

    def __init__(self, device: torch.device, rate: float) -> None:
        super().__init__(device)
        self._rate = rate
        self._own = cards._bus_rate(device)
        self._cycles = torch.cuda.get_device_properties(device).clock_rate * 1e3

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        super().copy(target, source)
        idle = source.nbytes * (1 / self._rate - 1 / self._own)
        with torch.cuda.stream(self._copies):
            torch.cuda._sleep(int(max(idle, 0) * self._cycles))


def _slowed(card: cf.Card, rate: float | None) -> cf.Card:
    return card if rate is None else replace(card, bus_bytes_per_second=int(rate))


class _Watch:
    """What the card holds, as its driver says, and what torch says of it, stage by stage."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self.stages: dict[str, dict[str, int]] = {}
        """By stage: most bytes taken by the driver's count, reserved and allocated by torch's, as
        seen every few milliseconds."""
        self._stage = "load"

    def look(self) -> None:
        if not torch.cuda.is_initialized():
            return
        # Torch's own peaks are the process's, and the report's; they are not reset for this.
        counts = {
            "taken": _taken() or 0,
            "reserved": torch.cuda.memory_reserved(),
            "allocated": torch.cuda.memory_allocated(),
        }
        self.peak = max(self.peak or 0, counts["taken"])
        seen = self.stages.setdefault(self._stage, counts)
        for name, count in counts.items():
            seen[name] = max(seen[name], count)

    def on_stage(self, prefix: str) -> Callable[[str, str, float | None], None]:
        """For a generation."""

        def tell(name: str, state: str, seconds: float | None) -> None:
            self.look()
            self._stage = prefix + name if state == "start" else f"after {prefix}{name}"

        return tell


@contextmanager
def _watched() -> Iterator[_Watch]:
    """Looks at how much of the card is taken, every few milliseconds."""
    watch, done = _Watch(), threading.Event()

    def look() -> None:
        while not done.wait(0.003):
            watch.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()
        watch.look()


def _taken() -> int | None:
    """Bytes of the card that are taken by anyone, as the driver says."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(0)
    return int(total - free)


def _taken_of_card() -> int | None:
    """The same without a CUDA context of this process."""
    which = f"--id={visible_card()}"
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", which]
    try:
        run = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return int(run.stdout) * (1 << 20)


def _compare(done: list[dict[str, Any]]) -> None:
    """The last row beside its resident one."""
    last = done[-1]
    base = "_".join(last["row"].split("_")[:2]) + "_resident"
    if last["row"] == "auto_8GiB":
        base = "2b_480p_resident"
    if last["row"].startswith("tiny"):
        base = "tiny_resident"
    resident = next((one for one in done if one["row"] == base and "forward_s" in one), None)
    if resident is None or "forward_s" not in last:
        return
    last["slowdown"] = last["forward_s"] / resident["forward_s"] - 1
    if "latents_sha256" in last:
        last["same_bytes"] = last["latents_sha256"] == resident["latents_sha256"]


def _line(result: dict[str, Any]) -> str:
    parts = [f"{result['row']:22}"]
    if "peak_gib" in result:
        memory = result.get("memory") or {}
        planned = memory.get("predicted_peak_bytes")
        parts.append(f"peak {result['peak_gib']:6.2f} GiB")
        if planned:
            parts.append(f"(planned {planned / GIB:.2f}, {result['of_budget']:.1%} of the budget)")
    if "forward_s" in result:
        predicted = result.get("predicted_forward_s")
        parts.append(f"forward {result['forward_s']:8.4f} s")
        if predicted:
            parts.append(f"(planned {predicted:.4f})")
    if "slowdown" in result:
        parts.append(f"{result['slowdown']:+.1%} to resident")
    if "same_bytes" in result:
        parts.append("same bytes" if result["same_bytes"] else "other bytes")
    if "naps" in result:
        nap = result["naps"][-1]
        parts.append(
            f"sleeping leaves {nap['left_bytes'] / 1e6:.0f} MB, wake {nap['wake_s']:.3f} s"
        )
    if "seen" in result:
        parts.append(f"resident {[round(s['resident_bytes'] / 2**20) for s in result['seen']]} MiB")
    return "  ".join(parts)


def _document(done: list[dict[str, Any]], options: argparse.Namespace) -> str:
    return json.dumps(
        {
            "bench": "memory",
            "command": " ".join(sys.argv),
            "machine": machine(torch.device("cpu" if options.tiny else "cuda")),
            "reference_gb": REFERENCE_GB,
            "rows": done,
        }
    )


def _save(done: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if options.save is not None:
        write_atomically(options.save, f"{_document(done, options)}\n".encode())


if __name__ == "__main__":
    main()
