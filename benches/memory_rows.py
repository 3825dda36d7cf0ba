"""One process of ``bench_memory.py``: asked for rows one by one, it measures them on one engine.

It imports what takes seconds first and touches the device only when the first row is asked for, so
that it can be started while another one still measures.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from harness import machine
from memory_offload import inputs, offloaded
from memory_stages import SHAPES, decodes, generate, short_stages
from memory_watch import Account, Watch, taken_of_card, tidy, wait, watched

import cosmos_fast as cf
from cosmos_fast.memory import cards
from cosmos_fast.memory.activations import activations
from cosmos_fast.memory.budget import parse_amount
from cosmos_fast.memory.models import SLOWDOWNS, Workload
from cosmos_fast.types import Size
from cosmos_fast.weights import find_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.memory.engines import Engines
    from cosmos_fast.memory.residence import Residence

GIB = 1 << 30
MIB = 1 << 20
WARM_FRAMES = {"480p": 29, "720p": 13, "tiny": 9}
"""Of the clip that goes before: more tokens than graphs are captured for, and every kind of chunk
of the decoder."""
HOST = 100 * GIB
"""What plans may take of the host's memory."""
SPARE_CONTEXT = 16 * MIB
"""What a context is planned with beyond what it was measured to be."""


@dataclass(frozen=True)
class Row:
    """What is measured at a time."""

    name: str
    kind: str
    model: str = "2b"
    shape: str = "480p"
    memory: str = "resident"
    steps: int = 1
    """Of the solver; one evaluation more follows, and guidance makes each two forwards."""
    bus: float | None = None
    """GB/s that copies are slowed down to."""
    expected_s: float = 30
    """On an H200, everything before it included; a row that takes four times as long is given
    up."""

    @property
    def process(self) -> str:
        """Rows of the same one follow one another in one process."""
        if self.kind != "run" or self.memory == "auto":
            return f"{self.kind}_{self.model}_{self.memory}"
        moves = "resident" if self.memory == "resident" else "moved"
        return f"{moves}_{self.model}"


@dataclass(frozen=True)
class Setting:
    """What rows of a process share."""

    checkpoint: Path
    outcomes: Path
    """Where latents and pictures of resident rows are kept for the others."""
    tiny: bool
    listed_context: bool
    """Plans take the context for as large as cards are listed with."""

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"


def serve(setting: Setting, rows: dict[str, Row], process: str) -> None:
    """Reads requests, a line of JSON each, from stdin, and answers each with a line.

    Args:
        rows: by name, those of other processes too.
        process: the rows that will be asked for, for what can be done before.
    """
    _prepare(setting, [row for row in rows.values() if row.process == process])
    bench = Bench(setting)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = bench.measure(rows[request["row"]], request["idle"])
        except Exception as error:  # the next row may do
            traceback.print_exc()
            result = {"row": request["row"], "error": f"{type(error).__name__}: {error}"}
        print(f"result {json.dumps(result)}", flush=True)


def _prepare(setting: Setting, rows: list[Row]) -> None:
    """Takes seconds that would pass beside an idle card: imports, and what plans are made from."""
    if any(row.kind == "diffusers" for row in rows):
        with suppress(ImportError):  # the row will say so
            import diffusers  # noqa: F401
        return
    from transformers import T5EncoderModel  # noqa: F401

    if setting.tiny:
        return
    profile = find_checkpoint(str(setting.checkpoint)).profile
    own = profile.size, profile.num_frames, profile.conditional_frames[0], profile.num_steps
    wanted = {own}  # which an engine plans for as it is loaded
    for row in rows:
        size, frames = SHAPES[row.shape]
        if row.kind == "run":
            wanted |= {(Size(*size), WARM_FRAMES[row.shape], 1, 1)}
            wanted |= {(Size(*size), frames, 1, row.steps)}
    for measure in wanted:
        workload = Workload(profile, *measure, guided=True, fused=True)
        for found in activations(workload, tuple(SLOWDOWNS)).values():
            for one in found:
                _ = one.heap


class Bench:
    """Measures rows; those that follow one another on one engine."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._engine: cf.Video2World | None = None
        self._own: cards.Card | None = None
        """The card as the engine took it."""
        self._account = Account()
        self._warm: set[str] = set()
        self._diffusers: Any = None

    def measure(self, row: Row, idle: int) -> dict[str, Any]:
        """
        Args:
            idle: bytes of the card that are taken now; of the first row, by others.
        """
        start = time.perf_counter()
        kinds = {"run": self._run, "diffusers": self._group_offload}
        kinds |= {"sleep": self._sleep, "flat": self._flat}
        tidy()
        self._account.begin(idle)
        with watched(self._account) as watch:
            result = kinds[row.kind](row, watch)
        plain: dict[str, Any] = {
            "row": row.name,
            "kind": row.kind,
            "model": row.model,
            "shape": row.shape,
        }
        plain |= {"asked": row.memory, "bus": row.bus, "measure_s": time.perf_counter() - start}
        plain["machine"] = machine(torch.device(self._setting.device))
        plain["host_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
        return plain | watch.as_dict() | result

    def _loaded(self, row: Row) -> tuple[cf.Video2World, float]:
        start = time.perf_counter()
        if self._engine is None:
            self._engine = cf.Video2World.from_pretrained(
                self._setting.checkpoint,
                device=self._setting.device,
                memory=self._memory(row),
                prompt_cache=False,
                guardrail=cf.NoGuardrail(reason="a measurement with random weights"),
            )
            self._own = self._engine._parts.residence._card
        return self._engine, time.perf_counter() - start

    def _memory(self, row: Row) -> Any:
        """The host's share is stated: a machine whose memory grows as it is used has little of it
        free when it is asked."""
        if self._setting.tiny or row.memory in ("auto", "resident"):
            return row.memory
        return cf.Budget(parse_amount(row.memory), HOST)

    def _run(self, row: Row, watch: Watch) -> dict[str, Any]:
        engine, loaded = self._loaded(row)
        residence = engine._parts.residence
        start = time.perf_counter()
        watch.prefix = "first "
        if row.memory not in ("auto", "resident"):
            residence._budget = replace(residence._budget, device=parse_amount(row.memory))
        if row.shape not in self._warm:
            # T5 is loaded, kernels are compiled, cuDNN chooses for these pictures.
            generate(engine, row, watch, num_frames=WARM_FRAMES[row.shape], num_steps=1)
            self._warm.add(row.shape)
        context = self._suit(residence, row, watch)
        short = short_stages(engine, row, watch)
        warmed = time.perf_counter() - start
        tidy()
        watch.prefix = ""
        clip = generate(engine, row, watch)
        short["decode"] = decodes(engine, row, watch, clip.latents.tensor)
        report, plan = clip.report, engine.memory_plan
        per_step = [seconds / report.forwards_per_step for seconds in report.step_seconds]
        # The first of several steps also makes what is made once a run.
        counted = per_step[1:] if len(per_step) > 2 else per_step
        return {
            "load_s": loaded,
            "warm_s": warmed,
            "steps": row.steps,
            "forwards": len(counted) * report.forwards_per_step,
            "forward_s": sum(counted) / len(counted),
            "step_forward_s": per_step,
            "stages_s": {stage.name: stage.seconds for stage in report.stages},
            "short_stages": short,
            "latents_sha256": report.latents_sha256,
            "memory": report.memory,
            "planned_context_bytes": context,
            "predicted_forward_s": plan and plan.stage("denoise").pass_seconds,
            "predicted_peaks": {} if plan is None else {s.name: s.peak_bytes for s in plan.stages},
            "backends": dict(report.backends),
            "notes": list(report.notes),
        } | self._compared(row, clip)

    def _suit(self, residence: Residence, row: Row, watch: Watch) -> int | None:
        """The engine plans for the context that it turned out to have, and for the bus of the row;
        where the engine is to find its own way, for neither."""
        if self._own is None or row.memory == "auto":
            return None
        card = self._own
        if watch.context and not self._setting.listed_context:
            card = replace(card, context_bytes=watch.context + SPARE_CONTEXT)
        own = card.bus_bytes_per_second
        if row.bus:
            card = replace(card, bus_bytes_per_second=int(row.bus * 1e9))
        residence._card = card
        residence._known.clear()
        if (moving := residence.executor) is not None:
            engines: Any = moving._engines
            if isinstance(engines, SlowCopies):
                engines = engines.own
            moving._engines = SlowCopies(engines, own / (row.bus * 1e9)) if row.bus else engines
        return card.context_bytes

    def _compared(self, row: Row, clip: cf.Clip) -> dict[str, Any]:
        """Latents and pictures beside those of the resident row, which leaves them for others."""
        path = self._setting.outcomes / f"{row.model}_{row.shape}_{row.steps}.pt"
        found = clip.latents.tensor.cpu(), clip.frames.to("pt").cpu()
        if row.memory == "resident":
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(found, path)
        if not path.exists():
            return {}
        latents, frames = torch.load(path, weights_only=True)
        apart = (found[0] - latents).double().norm() / latents.double().norm()
        pixels = (found[1].int() - frames.int()).abs()
        return {
            "same_latents": torch.equal(found[0], latents),
            "same_pixels": torch.equal(found[1], frames),
            "latents_apart": float(apart),
            "pixels_apart": float(pixels.float().mean()),
        }

    def _group_offload(self, row: Row, watch: Watch) -> dict[str, Any]:
        """Forwards of the same transformer, block by block through diffusers' group offload."""
        device = torch.device(self._setting.device)
        start = time.perf_counter()
        first = self._diffusers is None
        if first:
            self._diffusers = offloaded(row.model.upper(), device)
        built = time.perf_counter() - start
        given = inputs(*SHAPES[row.shape], device)
        seconds = []
        with torch.no_grad():
            for _ in range(4 if first else 2):
                wait()
                start = time.perf_counter()
                self._diffusers(**given)
                wait()
                seconds.append(time.perf_counter() - start)
        counted = seconds[1:] if first else seconds
        return {
            "load_s": built,
            "forwards": len(counted),
            "forward_s": sum(counted) / len(counted),
            "each_s": seconds,
            "transformer_alone": True,
        }

    def _sleep(self, row: Row, watch: Watch) -> dict[str, Any]:
        if not self._setting.tiny:
            torch.zeros(1, device="cuda")
        fresh = taken_of_card() or 0
        engine, loaded = self._loaded(row)
        small: dict[str, Any] = {"prompt": cf.NO_TEXT, "negative_prompt": cf.NO_TEXT}
        if not self._setting.tiny:
            small |= {"size": (64, 64), "num_frames": 5}
        before = generate(engine, row, watch, **small).report.latents_sha256
        naps = []
        for _ in range(3):  # the first sleep makes the pinned copies
            start = time.perf_counter()
            engine.sleep()
            gc.collect()
            slept, left = time.perf_counter() - start, taken_of_card() or 0
            start = time.perf_counter()
            engine.wake()
            wait()
            woken = time.perf_counter() - start
            naps.append({"sleep_s": slept, "wake_s": woken, "taken_asleep": left})
        after = generate(engine, row, watch, **small).report.latents_sha256
        # What a process keeps that had an engine and deleted it: the context with its kernels.
        del engine
        self._engine = None
        tidy()
        without = taken_of_card() or 0
        for nap in naps:
            nap["beyond_context_bytes"] = nap["taken_asleep"] - without
            nap["beyond_fresh_context_bytes"] = nap["taken_asleep"] - fresh
        return {"load_s": loaded, "naps": naps, "same_latents": before == after}

    def _flat(self, row: Row, watch: Watch) -> dict[str, Any]:
        engine, loaded = self._loaded(row)
        start, seen = time.perf_counter(), []
        count = 20 if self._setting.tiny else 200
        small = {"prompt": cf.NO_TEXT, "negative_prompt": cf.NO_TEXT, "guidance": 0.0}
        for number in range(count):
            generate(engine, row, watch, **small, size=(64, 64), num_frames=5)
            if number in (count // 10, count // 2, count - 1):
                gc.collect()
                moving = engine._parts.residence.executor
                pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
                seen.append(
                    {
                        "generation": number,
                        "taken_bytes": taken_of_card(),
                        "allocated_bytes": 0
                        if self._setting.tiny
                        else torch.cuda.memory_allocated(),
                        "pinned_bytes": 0 if moving is None else moving.pinned_bytes,
                        "resident_bytes": pages * resource.getpagesize(),
                    }
                )
        plan, took = engine.memory_plan, time.perf_counter() - start
        streamed = plan and plan.stage("denoise").streamed
        return {"load_s": loaded, "seen": seen, "seconds_each": took / count, "streamed": streamed}


class SlowCopies:
    """Engines whose copies take so many times as long: each is made again and again, the last time
    in part.

    Idling in their place would count cycles of a clock that falls with the card's power.
    """

    def __init__(self, own: Engines, times: float) -> None:
        self.own = own
        self._times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        for part in repeats(source, self._times):
            self.own.copy(target[: len(part)], part)


def repeats(source: torch.Tensor, times: float) -> Iterator[torch.Tensor]:
    """``source`` as often as ``times`` says, the last time only as much of it as is left."""
    left = int(len(source) * times)
    while left > 0:
        yield source[:left]
        left -= len(source)
