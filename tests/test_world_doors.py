"""What a world's doors take and give: engines on their way in, frames on their way out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import cosmos_fast as cf
from action_world import CHUNK, action_engine, actions, pictures
from cosmos_fast.types import Camera
from cosmos_fast.world import CostModel, advance, rollout_actions, rollout_policy

if TYPE_CHECKING:
    from collections.abc import Callable

OPENED: dict[str, Callable[[Any], object]] = {
    "World": cf.World,
    "advance": lambda engine: advance(engine, ()),
    "rollout_actions": lambda engine: rollout_actions(engine, pictures(1)[0], actions(1)[0]),
    "rollout_policy": lambda engine: rollout_policy(engine, pictures(1)[0], lambda _: None, 1),
    "CostModel": lambda engine: CostModel(engine, lambda step, _: step.latents.tensor),
}


@pytest.mark.parametrize("engine", ["pusherworld", Path("a/folder"), None, 3, cf.Video2World])
@pytest.mark.parametrize("open_", OPENED.values(), ids=OPENED)
def test_what_is_no_engine_is_refused_with_the_way_to_make_one(
    open_: Callable[[Any], object], engine: Any
) -> None:
    with pytest.raises(cf.InputError) as caught:
        open_(engine)
    message = str(caught.value)
    assert f"engine = {engine!r}: a Video2World is needed" in message
    source = repr(str(engine)) if isinstance(engine, str | Path) else "'pusherworld'"
    assert message.endswith(f"Video2World.from_pretrained({source})")


def test_an_environment_needs_an_engine_too() -> None:
    gym = pytest.importorskip("cosmos_fast.world.gym")
    with pytest.raises(cf.InputError, match="a Video2World is needed"):
        gym.WorldEnv("pusherworld", np.zeros((1, 32, 48, 3), np.uint8))


@pytest.fixture
def batch() -> cf.BatchFrames:
    """Of three worlds, all of whose bytes differ; one camera of two."""
    pixels = torch.arange(3 * 2 * 4 * 2 * 3, dtype=torch.uint8).reshape(3, 2, 4, 2, 3)
    return cf.BatchFrames(pixels, 8.0, (Camera("front", 0, 0, 2, 2),))


@pytest.mark.parametrize("world", [0, 2, -1, -3, np.int64(1), torch.tensor(1)], ids=repr)
def test_a_batch_is_indexed_by_world_without_a_copy(batch: cf.BatchFrames, world: Any) -> None:
    one = batch[world]
    assert isinstance(one, cf.Frames)
    assert one.fps == batch.fps
    assert torch.equal(one.to("pt"), batch.data[int(world)])
    assert one.to("pt").data_ptr() == batch.data[int(world)].data_ptr(), "a view"


@pytest.mark.parametrize("cut", [slice(1, None), slice(-2, 3), slice(None, None, 2), slice(3, 9)])
def test_a_slice_of_a_batch_is_a_batch_of_its_worlds(batch: cf.BatchFrames, cut: slice) -> None:
    some = batch[cut]
    assert len(some) == len(range(3)[cut])
    assert torch.equal(some.data, batch.data[cut])
    assert some.data.untyped_storage().data_ptr() == batch.data.untyped_storage().data_ptr()
    assert (some.fps, some.cameras) == (batch.fps, batch.cameras)


def test_the_worlds_of_a_batch_come_one_after_another(batch: cf.BatchFrames) -> None:
    worlds = list(batch)
    assert len(worlds) == len(batch) == 3
    assert [np.asarray(one).tobytes() for one in worlds] == [
        batch.of(world).to("np").tobytes() for world in range(3)
    ]


def test_a_world_of_several_futures_is_a_batch_of_them(batch: cf.BatchFrames) -> None:
    futures = cf.BatchFrames(batch.data.reshape(1, 3, *batch.shape[1:]), 8.0, batch.cameras)
    samples = futures[0]
    assert isinstance(samples, cf.BatchFrames)
    assert samples.cameras == batch.cameras
    assert torch.equal(samples.data, batch.data)
    last = samples[-1]
    assert isinstance(last, cf.Frames)
    assert torch.equal(last.to("pt"), futures.of(0, 2).to("pt"))


@pytest.mark.parametrize("world", [3, -4, 10**30])
def test_a_world_that_a_batch_has_not_is_an_index_error(batch: cf.BatchFrames, world: int) -> None:
    with pytest.raises(IndexError, match=f"world {world}: 3 are there"):
        batch[world]


@pytest.mark.parametrize(
    "index", ["0", 1.0, None, (0, 1), np.arange(3), slice(None, None, -1)], ids=str
)
def test_what_names_no_world_of_a_batch_is_refused(batch: cf.BatchFrames, index: Any) -> None:
    with pytest.raises(cf.InputError, match=r"a slice, is needed|ascending"):
        batch[index]


def test_a_world_reset_on_the_frames_that_another_showed_goes_on_as_that_one(
    tmp_path: Path,
) -> None:
    """Bit for bit: nothing of a state is hidden from whoever sees the frames. The reference's noise
    counts actions, so that the other's seed is that of the moment."""
    engine = action_engine(tmp_path)
    with cf.World(engine, 2, noise="reference") as world:
        world.reset(pictures(2), seed=5)
        shown = world.step(actions(2)).frames
        wanted = world.step(actions(2, seed=1))
    assert shown is not None
    with cf.World(engine, 2, noise="reference") as other:
        other.reset(np.asarray(shown), seed=5 + CHUNK)
        made = other.step(actions(2, seed=1))
    assert torch.equal(made.latents.tensor, wanted.latents.tensor)
    np.testing.assert_array_equal(np.asarray(made.frames), np.asarray(wanted.frames))
