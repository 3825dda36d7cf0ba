"""An hour of simulated work in a simulator's process that holds four worlds, and what is left.

A stand-in for a simulator moves discs about, draws them on the device into one buffer that it
keeps, and hands that to worlds chunk after chunk. On the way everything happens that happens in an
hour: environments end and are reset by mask, a state is forked and searched from, snapshots are
taken and restored, further worlds come and go, futures disagree, steps are submitted, and user code
raises in the middle of a chunk. After each exception the worlds must stand where they stood and go
on with the same bytes as if nothing had been. On a GPU the simulator has a CUDA context of its own
beside torch's, as engines of physics have, and works in it between and within the chunks. Memory
that grows, torch's, the card's or the host's, or a descriptor, thread or child process that stays
behind, is a failure. The last line of the output is one JSON object; its "megabytes" are the
process's own memory from the start to the end, so that the shape of a leak can be seen.

    python -m tools.soak_world --seconds 3600 --limit 60
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

import torch
from tools.make_random_checkpoint import make_checkpoint
from tools.soak import Sample, sample

import cosmos_fast as cf
from cosmos_fast.world import CostModel, Snapshot, WorldStep

WORLDS: Final = 4
SIZE: Final = (32, 48)
MEGABYTES_AN_HOUR: Final = 20.0
WARM_UP: Final = 0.2
"""Share of the steps in which allocators and caches may still grow."""
TOLD: Final = 20
"""Values of the process's own memory in the result, from the first to the last."""
SAMPLED: Final = 5
"""Steps from one look at the process to the next."""


Held = tuple[int, int]
"""Bytes of the device: what torch has handed out, and what is taken of the card by anyone."""


class UserError(Exception):
    """What the simulator's author has got wrong."""


class Table:
    """Discs on tables, drawn on the device; its buffer is written over at every step."""

    def __init__(self, device: torch.device, dim: int) -> None:
        self.device, self.dim = device, dim
        self.at_N2 = torch.full((WORLDS, 2), 0.5, device=device)
        self.frames = torch.zeros((WORLDS, *SIZE, 3), dtype=torch.uint8, device=device)
        rows, columns = (torch.linspace(0, 1, side, device=device) for side in SIZE)
        self._grid_HW2 = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        self._generator = torch.Generator(device).manual_seed(0)

    def act(self, chunk: int) -> torch.Tensor:
        """Random actions (N, chunk, dim), and the discs moved by them."""
        given = torch.rand(WORLDS, chunk, self.dim, device=self.device, generator=self._generator)
        given = (given - 0.5) / 10
        self.at_N2.add_(given[:, :, :2].sum(dim=1)).clamp_(0, 1)
        return given

    def draw(self) -> torch.Tensor:
        apart = (self._grid_HW2 - self.at_N2[:, None, None]).square().sum(dim=-1)
        self.frames.copy_((apart < 0.02)[..., None] * 200)
        return self.frames


class OwnContext:
    """A CUDA context that is not torch's, with memory in it, through the driver alone."""

    SIZE: Final = 64 << 20

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        device, self._context, self._at = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(torch.cuda.current_device()))
        self._call("cuCtxCreate_v2", ctypes.byref(self._context), ctypes.c_uint(0), device)
        self._call("cuMemAlloc_v2", ctypes.byref(self._at), ctypes.c_size_t(self.SIZE))
        self._pop()

    def work(self, number: int) -> None:
        """Fills its memory with a number's last byte, and reads some of it back."""
        value, told = number % 256, (ctypes.c_ubyte * 16)()
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            size = ctypes.c_size_t(self.SIZE)
            self._call("cuMemsetD8_v2", self._at, ctypes.c_ubyte(value), size)
            self._call("cuMemcpyDtoH_v2", told, self._at, ctypes.c_size_t(len(told)))
        finally:
            self._pop()
        assert list(told) == [value] * len(told), "the simulator's own memory is not what it was"

    def close(self) -> None:
        self._call("cuCtxDestroy_v2", self._context)

    def _pop(self) -> None:
        self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *given: object) -> None:
        code = getattr(self._driver, name)(*given)
        if code:
            raise RuntimeError(f"{name} failed with CUresult {code}")


class Hour:
    """The work of the process, step by step."""

    def __init__(self, engine: cf.Video2World, folder: Path) -> None:
        spec = engine.profile.actions
        assert spec is not None
        self.engine, self.spec = engine, spec
        self.table = Table(engine.device, spec.dim)
        self.context = OwnContext() if engine.device.type == "cuda" else None
        self.world = cf.World(engine, WORLDS, num_steps=1)
        self.world.reset(self.table.draw(), seed=1)
        self.happened: Counter[str] = Counter()
        self._file = folder / "states.safetensors"
        self._kept: Snapshot | None = None

    def step(self, number: int) -> None:
        given = self.table.act(self.spec.chunk)
        self._simulate(number)
        if number % 10 == 3:
            self._fail(given, number)
        if number % 7 == 0:
            self.world.submit(given).result()
        else:
            self.world.step(given, samples=2 if number % 9 == 0 else 1)
        if number % 11 == 0:
            ended = torch.arange(WORLDS) == number % WORLDS
            self.world.reset(self.table.draw(), seed=number, mask=ended)
            self.happened["resets by mask"] += 1
        if number % 25 == 0:
            self._search()
        if number % 30 == 0:
            self._restore()
        if number % 40 == 0:
            with cf.World(self.engine, 2) as another:
                another.reset(self.table.draw()[:2])
                another.submit(given[:2], num_steps=1).result()
            self.happened["further worlds"] += 1

    def _simulate(self, number: int) -> None:
        if self.context is not None:
            self.context.work(number)
            self.happened["works in a context of its own"] += 1

    def _fail(self, given: torch.Tensor, number: int) -> None:
        """User code raises in the middle of a chunk: nothing of it may be seen afterwards."""

        def broken(group: object, first: int, frames: torch.Tensor) -> None:
            self._simulate(number + 1)
            raise UserError(f"frame {first}")

        before = self.world.states
        wanted = self.world.fork(0, 1).step(given[:1]).latents.tensor
        for fault, options in ((UserError, {"on_frames": broken}), (cf.InputError, {"samples": 0})):
            try:
                self.world.step(given, **options)
            except fault:
                self.happened[fault.__name__] += 1
            else:
                raise AssertionError(f"{fault.__name__} did not come through")
        assert self.world.states is before, "an exception moved the worlds"
        again = self.world.fork(0, 1).step(given[:1]).latents.tensor
        assert torch.equal(wanted, again), "an exception changed the future"

    def _search(self) -> None:
        def cost(step: WorldStep, _: object) -> torch.Tensor:
            return step.latents.tensor.square().mean(dim=(1, 2, 3, 4))

        model = CostModel(self.engine, cost, decode=False, num_steps=1)
        shape = (1, 4, self.spec.chunk, self.spec.dim)
        found = model.get_cost({"state": self.world.states[:1]}, torch.zeros(shape))
        assert found.isfinite().all()
        self.happened["searches"] += 1

    def _restore(self) -> None:
        if self._kept is not None:
            self.world.restore(self._kept)
            self.world.restore(self._file)
        self._kept = self.world.snapshot(self._file)
        self.happened["snapshots"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3600.0, help="simulated, per world")
    parser.add_argument("--limit", type=float, help="most seconds that it may take; default: none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    start, samples, on_device = time.monotonic(), list[Sample](), list[Held]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_checkpoint(
            folder / "model", "tiny", layout="diffusers", text_encoder=False, actions=True
        )
        engine = cf.Video2World.from_pretrained(model, device=asked.device)
        hour = Hour(engine, folder)
        steps = math.ceil(asked.seconds * hour.spec.fps / hour.spec.chunk)
        for number in range(1, steps + 1):
            hour.step(number)
            if number % SAMPLED == 0:
                samples.append(sample())
                on_device.append(held(engine.device))
            if number % 100 == 0:
                print(f"{number}/{steps} {samples[-1]} {dict(hour.happened)}", file=sys.stderr)
            if asked.limit is not None and time.monotonic() - start > asked.limit:
                break
        report = hour.world.report()
        hour.world.close()
        if hour.context is not None:
            hour.context.close()
    told = verdict(samples, on_device, number)
    told |= {
        "simulated_seconds": round(number * hour.spec.chunk / hour.spec.fps, 1),
        "asked_seconds": asked.seconds, "worlds": WORLDS, "steps": number,
        "happened": dict(hour.happened), "latency_p50": round(report.latency_p50, 4),
        "latency_p99": round(report.latency_p99, 4), "device": str(engine.device),
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    print(json.dumps(told))
    return int(not told["ok"])


def held(device: torch.device) -> Held:
    """What is taken of a GPU."""
    if device.type != "cuda":
        return 0, 0
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return torch.cuda.memory_allocated(device), total - free


def verdict(samples: list[Sample], on_device: list[Held], steps: int) -> dict[str, object]:
    """What has grown from after the warm-up to the end."""
    first = int(len(samples) * WARM_UP)
    settled, taken = samples[first:], on_device[first:]
    if len(settled) < 3:
        raise SystemExit("too short a run to tell: ask for more --seconds")
    own = [one.megabytes for one in settled]
    slope = statistics.linear_regression(range(len(own)), own)[0] * steps / SAMPLED
    grown = {
        name: getattr(settled[-1], name) - getattr(settled[0], name)
        for name in ("descriptors", "threads", "children")
    }
    torchs, cards = (round((taken[-1][k] - taken[0][k]) / 1e6, 3) for k in (0, 1))
    # A short run's slope is the allocator's noise; it is judged over an hour, or by its own growth.
    ok = min(slope, own[-1] - own[0]) <= MEGABYTES_AN_HOUR and torchs <= 1.0
    ok = ok and cards <= MEGABYTES_AN_HOUR and not any(more > 0 for more in grown.values())
    return {
        "ok": ok, "megabytes_over_the_run": round(slope, 2),
        "device_megabytes": torchs, "card_megabytes": cards, **grown,
        "megabytes": [round(samples[at].megabytes, 2) for at in spread(len(samples))],
    }  # fmt: skip


def spread(count: int) -> list[int]:
    """At most ``TOLD`` of ``range(count)``, evenly, the first and the last among them."""
    told = min(count, TOLD)
    return [round(at * (count - 1) / max(told - 1, 1)) for at in range(told)]


if __name__ == "__main__":
    sys.exit(main())
