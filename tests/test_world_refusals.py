"""Worlds refuse what makes no sense and are as they were; submitted and cancelled steps."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import cosmos_fast as cf
from action_world import CHUNK, DIM, action_engine, actions, pictures
from cosmos_fast.world import advance
from world_steps import pixels, started

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> cf.Video2World:
    return action_engine(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (np.zeros((1, CHUNK, DIM)), r"\(2, 8, 2\) is needed"),
        (np.zeros((2, CHUNK, 3)), r"\(2, 8, 2\) is needed"),
        (np.zeros((2, CHUNK + 1, DIM)), "1 to 8 are possible"),
        (np.zeros((2, 0, DIM)), "1 to 8 are possible"),
        (np.full((2, CHUNK, DIM), np.nan), r"actions\[0, 0, 0\] = nan m/s \(x\)"),
        (np.full((2, CHUNK, DIM), 19.0), r"actions\[0, 0, 1\] = 19 m/s \(y\)"),
        (np.zeros((2, CHUNK, DIM), bool), "numbers are needed"),
        ("left", "is no array"),
        (None, "none are given"),
    ],
    ids=["worlds", "values", "long", "empty", "nan", "far", "bool", "text", "none"],
)
def test_actions_that_make_no_sense_leave_the_world_as_it_was(
    engine: cf.Video2World, given: Any, word: str
) -> None:
    world = started(engine, 2)
    before = world.states
    with pytest.raises(cf.InputError, match=word):
        world.step(given)
    assert world.states == before
    assert world.report().steps == 0


@pytest.mark.parametrize(
    ("frames", "options", "word"),
    [
        (pictures(1), {}, r"\(2, H, W, 3\)"),
        (pictures(2).astype(np.float32), {}, "frames of float32"),
        (pictures(2)[:, :30], {}, "multiple of 16"),
        (pictures(2), {"seed": -1}, "seed = -1"),
        (pictures(2), {"seed": [1]}, "2 of them"),
        (pictures(2), {"seed": [0, 1.5]}, "seed = 1.5"),
        (pictures(2), {"seed": [0, True]}, "seed = True"),
        (pictures(2), {"seed": torch.tensor([0.0, 1.0])}, "seed = 0.0"),
        (pictures(2), {"seed": ["a", "b"]}, "seed = 'a'"),
        (pictures(2), {"seed": "ab"}, "2 of them"),
        (pictures(2), {"prompts": 5}, "one for all or 2 of them"),
        (pictures(2), {"prompts": ["a"]}, "1 prompts for 2"),
        (pictures(2), {"prompts": [1, 2]}, "prompt of type int"),
        (pictures(2), {"mask": [1, 0]}, "bool"),
        (pictures(2), {"mask": [True, False]}, "first reset starts all"),
        ("picture.png", {}, "is no array"),
    ],
)
def test_frames_that_make_no_sense_are_refused(
    engine: cf.Video2World, frames: Any, options: dict[str, Any], word: str
) -> None:
    world = cf.World(engine, 2)
    with pytest.raises(cf.InputError, match=word):
        world.reset(frames, **options)


def test_one_world_is_not_reset_to_another_form_than_the_others(engine: cf.Video2World) -> None:
    world = started(engine, 2)
    before = world.states
    with pytest.raises(cf.InputError, match=r"world 1.*32x48.*one form"):
        world.reset(pictures(2)[:, :, :32], mask=[True, False])
    assert world.states == before
    world.reset(pictures(2)[:, :, :32])
    assert world.states[1].size == (32, 32)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"batch": 0}, "batch = 0"),
        ({"num_steps": 2.0}, "num_steps = 2.0"),
        ({"guidance": "much"}, "guidance = 'much'"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"noise": "loud"}, "noise = 'loud'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    engine: cf.Video2World, options: dict[str, Any], word: str
) -> None:
    world = started(engine, 1)
    with pytest.raises(cf.InputError, match=word):
        world.step(actions(1), **options)
    if options.keys() & {"batch", "num_steps", "noise"}:
        with pytest.raises(cf.InputError, match=word):
            cf.World(engine, 1, **options)
    with pytest.raises(cf.InputError, match="2, one a copy"):
        world.fork(0, 2, seeds=7)  # type: ignore[arg-type]
    made = world.step(actions(1), samples=2)
    assert made.frames is not None
    with pytest.raises(cf.InputError, match="one a world"):
        made.frames.of(0, 1)
    assert len(world.fork(np.int64(0), np.int64(2), seeds=np.arange(2)).states) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["step", "reset", "restore"])
def test_a_world_is_not_changed_in_its_own_callback(engine: cf.Video2World, call: str) -> None:
    world = started(engine, 1)
    snapshot = world.snapshot()
    calls = {
        "step": lambda: world.step(actions(1)),
        "reset": lambda: world.reset(pictures(1)),
        "restore": lambda: world.restore(snapshot),
    }

    def inside(*_: Any) -> None:
        with pytest.raises(cf.InputError, match="in the middle of a step"):
            calls[call]()

    work = threading.Thread(
        target=lambda: world.step(actions(1), on_frames=inside), daemon=True
    )  # one that never ends is left behind
    work.start()
    work.join(60)
    assert not work.is_alive()
    assert world.states[0].chunks == 1
    calls[call]()


def test_a_reset_by_mask_keeps_what_a_submitted_step_makes_of_the_others(
    engine: cf.Video2World,
) -> None:
    world, begun, go_on = started(engine, 2), threading.Event(), threading.Event()

    def halt(*_: Any) -> None:
        begun.set()
        go_on.wait(60)

    future = world.submit(actions(2), on_frames=halt)
    assert begun.wait(60)
    reset = threading.Thread(target=lambda: world.reset(pictures(2), mask=[True, False]))
    reset.start()
    reset.join(0.2)
    go_on.set()
    made = future.result()
    reset.join(60)
    assert world.states[0].chunks == 0
    assert world.states[1] is made.state[1]


def test_closed_worlds_and_those_never_reset_say_so(engine: cf.Video2World) -> None:
    world = cf.World(engine, 1)
    with pytest.raises(cf.InputError, match="call reset"):
        world.step(actions(1))
    with world:
        world.reset(pictures(1))
    calls = (
        lambda: world.step(actions(1)),
        lambda: world.reset(pictures(1)),
        lambda: world.fork(0, 1),
        lambda: world.submit(actions(1)),
        world.snapshot,
    )
    for call in calls:
        with pytest.raises(cf.InputError, match="closed"):
            call()
    world.close()
    with pytest.raises(cf.InputError, match="at least 1"):
        cf.World(engine, 0)


def test_cancelling_leaves_the_world_as_it_was(engine: cf.Video2World) -> None:
    world = started(engine, 1)
    before, cancel = world.states, threading.Event()
    cancel.set()
    with pytest.raises(cf.Cancelled):
        world.step(actions(1), cancel=cancel)
    assert world.states == before
    with pytest.raises(RuntimeError, match="mine"):
        world.step(actions(1), on_frames=lambda *_: (_ for _ in ()).throw(RuntimeError("mine")))
    assert world.states == before
    world.step(actions(1))


def test_submitted_steps_come_in_order_beside_other_worlds(engine: cf.Video2World) -> None:
    world, other = started(engine, 1), started(engine, 1)
    futures = [world.submit(actions(1, seed=k)) for k in range(3)]
    beside = [other.submit(actions(1, seed=k)) for k in range(3)]
    expected = started(engine, 1)
    for k in range(3):
        wanted = pixels(expected.step(actions(1, seed=k)))
        np.testing.assert_array_equal(pixels(futures[k].result()), wanted)
        np.testing.assert_array_equal(pixels(beside[k].result()), wanted)
    refused = world.submit(actions(2))
    with pytest.raises(cf.InputError, match="is needed"):
        refused.result()
    world.close()
    other.close()


def test_states_of_another_checkpoint_or_size_are_refused(
    engine: cf.Video2World, tmp_path: Path
) -> None:
    import dataclasses

    from cosmos_fast.world import WorldState

    state = started(engine, 1).states[0]
    foreign = dataclasses.replace(state, profile=dataclasses.replace(state.profile, name="another"))
    assert isinstance(foreign, WorldState)
    with pytest.raises(cf.InputError, match="belongs to another"):
        advance(engine, [foreign], actions(1))
    larger = cf.World(engine, 1)
    larger.reset(np.zeros((1, 48, 48, 3), np.uint8))
    with pytest.raises(cf.InputError, match="advance them in two calls"):
        advance(engine, [state, larger.states[0]], actions(2))
    with pytest.raises(cf.InputError, match="at least one WorldState"):
        advance(engine, [], actions(1))
