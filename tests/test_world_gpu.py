"""Worlds on a GPU: no wait and no host copy inside a step, flat memory, batches that agree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import cosmos_fast as cf
from action_world import CHUNK, DIM, PROFILE, pictures
from cosmos_fast.world import Camera
from random_world import make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> cf.Video2World:
    folder = make_random_world(tmp_path_factory.mktemp("world"), PROFILE)
    return cf.Video2World.from_pretrained(folder, device="cuda")


def on_device(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.rand(count, CHUNK, DIM, device="cuda", generator=generator) * 2 - 1


def started(engine: cf.Video2World, count: int, **options: Any) -> cf.World:
    world = cf.World(engine, count, **options)
    world.reset(torch.from_numpy(pictures(count)).cuda(), seed=range(count))
    return world


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
def test_a_step_neither_waits_for_the_device_nor_copies_to_the_host(engine: cf.Video2World) -> None:
    world = started(engine, 2)
    world.step(on_device(2))
    given = on_device(2)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        world.step(given)
    names = [event.name for event in trace.events()]
    assert "aten::conv3d" in names, "the trace holds the step"
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "DtoH")
    # The profiler itself waits for the device once, when it ends.
    found = [name for name in names if any(word in name for word in waits)]
    assert [name for name in found if name != "cudaDeviceSynchronize"] == []
    assert [name for name in names if "HtoD" in name] == []


def test_worlds_on_streams_of_their_own_do_not_meet_in_a_graph(engine: cf.Video2World) -> None:
    """Nobody waits between the steps, and all of them are replayed from the same places."""
    worlds = [started(engine, 1), started(engine, 1)]
    given = [on_device(1, seed) for seed in range(6)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    expected = [world.fork(0, 1).step(given[0]).latents.tensor.clone() for world in worlds]
    torch.cuda.synchronize()
    for actions in given:
        found = []
        for world, stream in zip(worlds, streams, strict=True):
            with torch.cuda.stream(stream):
                world.fork(0, 1).step(actions)
                found.append(world.fork(0, 1).step(given[0]).latents.tensor.clone())
    torch.cuda.synchronize()
    assert all(map(torch.equal, found, expected))


def test_memory_is_flat_over_a_thousand_steps(engine: cf.Video2World) -> None:
    world = started(engine, 2, num_steps=1)
    for number in range(1000):
        world.step(on_device(2, number))
        if number == 20:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 1 << 20


def test_a_world_among_seven_others_is_the_same_up_to_rounding(
    engine: cf.Video2World, measured: Callable[[str], None]
) -> None:
    many = started(engine, 8).step(on_device(8))
    alone = cf.World(engine, 1)
    alone.reset(torch.from_numpy(pictures(8)[5:6]).cuda(), seed=5)
    one = alone.step(on_device(8)[5:6])
    ours, theirs = one.latents.tensor[0], many.latents.tensor[5]
    error = float((ours - theirs).norm() / theirs.norm())
    measured(f"relative difference of the latents {error:.2e}")
    assert error < 1.6e-2


def test_actions_out_of_range_on_the_device_are_marked_not_waited_for(
    engine: cf.Video2World,
) -> None:
    world = started(engine, 2)
    given = on_device(2)
    given[1, 3, 0] = float("nan")
    step = world.step(given)
    assert step.valid.cpu().tolist() == [[True] * CHUNK, [False] * CHUNK]
    assert np.asarray(step.frames).shape[0] == 2


def test_frames_by_camera_stay_on_the_device(tmp_path: Path) -> None:
    cameras = (Camera("front", 0, 0, 32, 32), Camera("wrist", 16, 32, 16, 16))
    folder = make_random_world(tmp_path, replace(PROFILE, cameras=cameras))
    world = cf.World(cf.Video2World.from_pretrained(folder, device="cuda"), 2)
    given = {
        one.name: torch.full((2, *one.size, 3), 90, dtype=torch.uint8, device="cuda")
        for one in cameras
    }
    world.reset(given)
    step = world.step(on_device(2))
    assert step.frames is not None
    apart = step.frames.by_camera()
    assert {name: part.device.type for name, part in apart.items()} == dict.fromkeys(given, "cuda")
    assert apart["wrist"].shape == (2, CHUNK, 16, 16, 3)
    assert torch.from_dlpack(apart["wrist"]).data_ptr() == apart["wrist"].data.data_ptr()
