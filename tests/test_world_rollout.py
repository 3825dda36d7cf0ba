"""Rollouts with right seams, the reference's seams on demand, planners, and annotation files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import cosmos_fast as cf
from action_world import CHUNK, DIM, action_engine, pictures
from cosmos_fast.world import (
    CostModel,
    cross_entropy_search,
    read_annotation,
    rollout_actions,
    rollout_policy,
)

if TYPE_CHECKING:
    from pathlib import Path

START = pictures(1)[0]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> cf.Video2World:
    return action_engine(tmp_path_factory.mktemp("world"))


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, DIM)).astype(np.float32)


def stepped(engine: cf.Video2World, given: np.ndarray, noise: Any, seed: int) -> list[np.ndarray]:
    """The new frames of each chunk, from the world itself."""
    world = cf.World(engine, noise=noise)
    world.reset(START[None], seed=seed)
    made = []
    for first in range(0, len(given), CHUNK):
        chunk = given[None, first : first + CHUNK]
        made.append(np.asarray(world.step(chunk).frames)[0, : chunk.shape[1]])
    return made


def test_every_frame_comes_once_and_a_short_tail_is_cut(engine: cf.Video2World) -> None:
    given = rows(2 * CHUNK + 3)
    made = rollout_actions(engine, START, given, seed=4)
    frames = made.frames.to("np")
    assert len(frames) == len(given) + 1
    np.testing.assert_array_equal(frames[0], START)
    np.testing.assert_array_equal(frames[1:], np.concatenate(stepped(engine, given, "device", 4)))
    np.testing.assert_array_equal(made.actions, given)
    assert (made.state.chunks, made.report.steps, made.stopped) == (3, 3, False)


def test_reference_switch_repeats_and_loses_what_the_script_does(engine: cf.Video2World) -> None:
    given = rows(2 * CHUNK + 3)
    made = rollout_actions(engine, START, given, seed=77, reference=True).frames.to("np")
    first, second = stepped(engine, given[: 2 * CHUNK], "reference", 0)
    script = np.concatenate([[START], first, first[-1:], second[:-1]])
    np.testing.assert_array_equal(made, script)
    assert len(made) == 2 * CHUNK + 1
    with pytest.raises(cf.InputError, match="whole 8s"):
        rollout_actions(engine, START, rows(5), reference=True)


def test_a_policy_sees_the_newest_frame_and_acts_as_long_as_it_likes(
    engine: cf.Video2World,
) -> None:
    seen = []

    def policy(frame: np.ndarray) -> np.ndarray:
        seen.append(frame)
        return rows(3, seed=len(seen))

    made = rollout_policy(engine, START, policy, 7)
    frames = made.frames.to("np")
    assert len(frames) == 8
    for looked, at in zip(seen, (0, 3, 6), strict=True):
        np.testing.assert_array_equal(looked, frames[at])
    expected = np.concatenate([rows(3, seed=1), rows(3, seed=2), rows(3, seed=3)])[:7]
    np.testing.assert_array_equal(made.actions, expected)


@pytest.mark.parametrize(
    ("name", "word"),
    [("nowhere", "module:function"), ("no_such:f", "No module"), ("json:nothing", "no attribute"),
     ("json:__name__", "not a function")],
)  # fmt: skip
def test_a_policy_that_cannot_be_found_is_named(
    engine: cf.Video2World, name: str, word: str
) -> None:
    with pytest.raises(cf.InputError, match=word):
        rollout_policy(engine, START, name, 3)


def test_a_rollout_stops_where_the_samples_disagree(engine: cf.Video2World) -> None:
    given = rows(2 * CHUNK)
    whole = rollout_actions(engine, START, given, samples=2)
    assert whole.disagreement is not None
    assert whole.disagreement.shape == (2 * CHUNK,)
    limit = float(min(whole.disagreement[CHUNK - 1], whole.disagreement[-1])) / 2
    made = rollout_actions(engine, START, given, samples=2, stop_at=limit)
    assert made.stopped
    assert (
        made.stopped_at == made.record()["rollout"]["stopped_at"] == whole.disagreement[CHUNK - 1]
    )
    assert whole.stopped_at is None
    assert len(made.frames.to("np")) == 1
    assert (made.state.chunks, made.record()["rollout"]["chunks"]) == (0, 0)
    assert made.state.frames is not None
    np.testing.assert_array_equal(made.state.frames.to("np")[-1], made.frames.to("np")[-1])


def test_actions_out_of_range_are_told_before_the_first_chunk(engine: cf.Video2World) -> None:
    given, done = rows(2 * CHUNK + 3), []
    given[-1, 1] = np.nan
    with pytest.raises(cf.InputError, match=rf"actions\[0, {len(given) - 1}, 1\] = nan"):
        rollout_actions(engine, START, given, on_chunk=lambda *told: done.append(told))
    assert not done


def test_what_a_policy_does_to_its_picture_stays_with_it(engine: cf.Video2World) -> None:
    def policy(frame: np.ndarray) -> np.ndarray:
        frame[:] = 0
        return rows(3)

    start = START.copy()
    made = rollout_policy(engine, start, policy, 6)
    np.testing.assert_array_equal(start, START)
    np.testing.assert_array_equal(made.frames.to("np")[0], START)
    assert made.frames.to("np")[3].any()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"decode": False}, "made of frames"),
        ({"stop_at": 0.5}, "cannot disagree"),
        ({"stop_at": 0.0, "samples": 2}, "above 0"),
        ({"stop_at": float("nan"), "samples": 2}, "stop_at = nan"),
    ],
)
def test_a_rollout_that_cannot_be_is_refused(
    engine: cf.Video2World, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(cf.InputError, match=word):
        rollout_actions(engine, START, rows(3), **options)


@pytest.mark.parametrize(
    ("policy", "count", "word"),
    [
        (lambda _: 0.5, 3, r"the policy's actions of shape \(1,\)"),
        (lambda _: np.zeros((1, CHUNK, DIM)), 3, "the policy's actions of shape"),
        (lambda _: np.zeros((0, DIM)), 3, "0 actions in a chunk"),
        (lambda _: None, 3, "no array"),
        (5, 3, "module:function"),
        (lambda _: rows(1), "3", "num_actions = '3'"),
    ],
    ids=["number", "chunk of worlds", "nothing", "none", "no function", "count"],
)
def test_a_policy_that_makes_no_sense_is_named(
    engine: cf.Video2World, policy: Any, count: Any, word: str
) -> None:
    with pytest.raises(cf.InputError, match=word):
        rollout_policy(engine, START, policy, count)


def test_a_saved_rollout_has_its_manifest(engine: cf.Video2World, tmp_path: Path) -> None:
    made = rollout_actions(engine, START, rows(3))
    path = made.save(tmp_path / "out.mp4")
    record = json.loads((tmp_path / "out.json").read_text())
    assert path.stat().st_size > 0
    assert record["video"]["frames"] == 4
    assert record["generated"] is True
    np.testing.assert_allclose(record["rollout"]["actions"], made.actions)
    assert record["model"]["name"] == "random actions"


def test_annotations_are_read_as_the_reference_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "0.json"
    action = np.random.default_rng(0).uniform(-1, 1, (5, 8))
    content = {"action": action.tolist(), "continuous_gripper_state": [0, 1, 0.5, 0, 1, 0.25]}
    path.write_text(json.dumps(content))
    found = read_annotation(path)
    np.testing.assert_array_equal(found[:, :6], action[:, :6])
    np.testing.assert_array_equal(found[:, 6], [1, 0.5, 0, 1, 0.25])

    from cosmos_fast.weights.action_files import RELEASED_ACTIONS
    from cosmos_fast.world.actions import in_network_scale

    scaled = in_network_scale(RELEASED_ACTIONS, torch.from_numpy(found)).numpy()
    reference = np.concatenate((action[:, :6] * 20, found[:, 6:]), axis=1).astype(np.float32)
    np.testing.assert_array_equal(scaled, reference)
    for fault in ({"action": 3}, {"continuous_gripper_state": [1]}, {"action": [[1, 2]]}):
        path.write_text(json.dumps(content | fault))
        with pytest.raises(cf.InputError, match="are needed"):
            read_annotation(path)
    with pytest.raises(cf.InputError, match="nowhere"):
        read_annotation(tmp_path / "nowhere.json")


def brightness(step: cf.WorldStep, info: Any) -> torch.Tensor:
    return step.latents.tensor[:, :, -1].mean(dim=(1, 2, 3))


def test_costs_are_those_of_living_through_each_candidate(engine: cf.Video2World) -> None:
    world = cf.World(engine, 2)
    world.reset(pictures(2), seed=[1, 2])
    candidates = torch.from_numpy(
        np.random.default_rng(0).uniform(-1, 1, (2, 2, CHUNK + 4, DIM)).astype(np.float32)
    )
    model = CostModel(engine, brightness, decode=False, num_steps=1)
    costs = model.get_cost({"state": world.states}, candidates)
    assert costs.shape == (2, 2)
    for row in range(2):
        alone = cf.World(engine, noise="shared", num_steps=1)
        alone.reset(pictures(2)[row : row + 1], seed=row + 1)
        expected = sum(
            float(brightness(alone.step(candidates[row, 1][None, part]), None))
            for part in (slice(0, CHUNK), slice(CHUNK, None))
        )
        assert float(costs[row, 1]) == pytest.approx(expected, abs=1e-5)
    assert world.report().steps == 0
    with pytest.raises(cf.InputError, match=r"\(B, N, horizon, 2\)"):
        model.get_cost({"state": world.states}, candidates[0])
    with pytest.raises(cf.InputError, match="1 states for 2"):
        model.get_cost({"state": world.states[:1]}, candidates)


class Bowl:
    """A cost whose minimum is known."""

    dim = 2

    def get_cost(self, info: Any, candidates: torch.Tensor) -> torch.Tensor:
        return (candidates - torch.tensor([0.5, -0.25])).square().mean(dim=(2, 3))


def test_the_search_finds_a_known_minimum() -> None:
    found = cross_entropy_search(
        Bowl(),
        {"state": [None, None]},
        horizon=6,
        candidates=128,
        rounds=8,
        hold=3,
    )
    assert found.shape == (2, 6, 2)
    torch.testing.assert_close(found, torch.tensor([0.5, -0.25]).expand(2, 6, 2), rtol=0, atol=0.05)
