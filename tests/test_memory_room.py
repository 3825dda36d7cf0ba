"""What a call has taken of a device, though torch counts since the process began."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import cosmos_fast as cf
from cosmos_fast.memory.room import Gauge
from random_world import make_random_world
from test_memory_engine import ON_DEVICE, PROFILE, run

GIB = 1 << 30
DEVICE = torch.device("cuda", 0)


@dataclass
class Allocator:
    """torch's counters of a device that is not there."""

    held: int = 0
    most: int = 0

    def hold(self, amount: int) -> None:
        self.held, self.most = amount, max(self.most, amount)


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    counted = Allocator()
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: counted.held)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: counted.most)
    return counted


def test_what_an_earlier_engine_took_is_not_this_calls(allocator: Allocator) -> None:
    allocator.hold(6 * GIB)
    allocator.hold(0)
    gauge = Gauge(DEVICE)
    gauge.start()
    for stage in (2, 4, 3):
        allocator.hold(stage * GIB)
        gauge.look()
        allocator.hold(GIB)
    assert gauge.peak() == 4 * GIB
    gauge.start()
    assert gauge.peak() == GIB  # what is held all the while


def test_a_new_maximum_counts_though_nobody_looked(allocator: Allocator) -> None:
    allocator.hold(3 * GIB)
    gauge = Gauge(DEVICE)
    gauge.start()
    allocator.hold(5 * GIB)
    allocator.hold(GIB)
    gauge.look()
    assert gauge.peak() == 5 * GIB


def test_a_host_program_may_reset_torchs_statistics(allocator: Allocator) -> None:
    allocator.hold(6 * GIB)
    gauge = Gauge(DEVICE)
    gauge.start()
    allocator.hold(2 * GIB)
    gauge.look()
    allocator.most = allocator.held = GIB
    assert gauge.peak() == 2 * GIB


@pytest.mark.gpu
def test_on_a_device_a_small_plan_after_a_large_one_took_what_it_took(tmp_path: Path) -> None:
    world = make_random_world(tmp_path, PROFILE)
    options: dict[str, Any] = {"device": "cuda", "precision": "bf16", "prompt_cache": False}
    large = cf.Video2World.from_pretrained(world, memory="resident", **options)
    run(large)
    del large
    hog = torch.empty(4 * GIB, dtype=torch.uint8, device="cuda")
    del hog  # torch keeps its segment
    gc.collect()
    others, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()
    engine = cf.Video2World.from_pretrained(world, memory=ON_DEVICE, **options)
    for _ in range(2):
        memory = run(engine).report.memory
        assert memory is not None
        # What others hold lies in segments of up to 20 MiB.
        assert 0 < memory["measured_peak_bytes"] - others <= ON_DEVICE + (20 << 20) < most
    assert torch.cuda.max_memory_reserved() == most
