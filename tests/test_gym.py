"""Worlds as Gymnasium environments, held against the library's own checker and vector class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image

import cosmos_fast as cf
from action_world import CHUNK, DIM, HEIGHT, WIDTH, action_engine, actions, pictures
from cosmos_fast.world.gym import WorldEnv, WorldVectorEnv

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
STARTS = pictures(4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> cf.Video2World:
    return action_engine(tmp_path_factory.mktemp("world"))


def brightness(before: np.ndarray, action: np.ndarray, after: np.ndarray) -> Any:
    return after.mean(axis=(1, 2, 3)) / 255


def dims(before: np.ndarray, action: np.ndarray, after: np.ndarray) -> Any:
    return action[:, 0], action[:, 0] > 0.5


def test_the_librarys_checker_passes(engine: cf.Video2World) -> None:
    gymnasium.register(
        "CosmosFastTest-v0",
        entry_point=lambda **options: WorldEnv(engine, STARTS, num_steps=1, **options),
    )
    try:
        env = gymnasium.make("CosmosFastTest-v0", render_mode="rgb_array")
        check_env(env.unwrapped)
        env.close()
    finally:
        gymnasium.registry.pop("CosmosFastTest-v0")


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_it_behaves_as_the_librarys_vector_of_single_environments(
    engine: cf.Video2World, mode: AutoresetMode
) -> None:
    options: dict[str, Any] = {
        "horizon": 3,
        "reward": dims,
        "execute": 2,
        "num_steps": 1,
        "hold": 1,
    }
    ours = WorldVectorEnv(engine, STARTS, 2, autoreset_mode=mode, **options)
    theirs = SyncVectorEnv([lambda: WorldEnv(engine, STARTS, **options)] * 2, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    compare(ours.reset(seed=3), theirs.reset(seed=3))
    rng = np.random.default_rng(0)
    for _ in range(6):
        given = rng.uniform(-1, 0.7, (2, DIM)).astype(np.float32)
        one, other = ours.step(given), theirs.step(given)
        compare(one, other)
        done = one[2] | one[3]
        if mode == AutoresetMode.DISABLED and done.any():
            compare(ours.reset(options={"reset_mask": done}),
                    theirs.reset(options={"reset_mask": done}))  # fmt: skip
    ours.close()
    theirs.close()


def compare(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    same_info(ours[-1], theirs[-1])


def same_info(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, dict):
            same_info(ours[key], value)
        elif key == "final_obs":
            assert [o is None for o in ours[key]] == [v is None for v in value]
            for one, other in zip(ours[key], value, strict=True):
                np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_array_equal(ours[key], value)


def test_a_chunk_ends_where_world_step_ends_with_the_same_actions(engine: cf.Video2World) -> None:
    env = WorldVectorEnv(engine, STARTS, 2, hold=1)
    frames, _ = env.reset(seed=1)
    world = cf.World(engine, 2)
    world.reset(frames, seed=[state.seed for state in env._world.states])
    given = actions(2)
    for at in range(CHUNK):
        seen = env.step(given[:, at])[0]
    step = world.step(given)
    assert step.frames is not None
    np.testing.assert_array_equal(seen, np.asarray(step.frames)[:, -1])
    assert env.model_calls == 2 * CHUNK


@pytest.mark.parametrize(("hold", "looks"), [(None, [0]), (3, [0, 3, 6]), (1, list(range(CHUNK)))])
def test_within_a_chunk_actions_are_held_and_told_of(
    engine: cf.Video2World, caplog: pytest.LogCaptureFixture, hold: int | None, looks: list[int]
) -> None:
    env = WorldVectorEnv(engine, STARTS, 1, hold=hold, num_steps=1)
    _, told = env.reset(seed=1)
    assert "action" not in told
    given = actions(1)
    followed, seen = [], []
    for at in range(CHUNK):
        frames, *_, info = env.step(given[:, at])
        followed.append(info["action"][0])
        seen.append(frames[0])
    assert env.model_calls == len(looks)
    held = [max(look for look in looks if look <= at) for at in range(CHUNK)]
    np.testing.assert_array_equal(np.stack(followed), given[0, held])
    passed = [record.getMessage() for record in caplog.records]
    assert len(passed) == (0 if hold == 1 else 1)
    assert all("an action was passed over" in each for each in passed)
    # The last frame is that of the whole chunk with the actions that were looked at.
    world = cf.World(engine, 1, num_steps=1)
    start, _ = WorldVectorEnv(engine, STARTS, 1).reset(seed=1)
    world.reset(start, seed=[env._world.states[0].seed])
    step = world.step(given[:, held])
    assert step.frames is not None
    np.testing.assert_array_equal(seen[-1], np.asarray(step.frames)[0, -1])
    env.step(given[:, 0])
    assert env.model_calls == len(looks) + 1, "the next chunk looks again"


def test_an_announcement_is_heard_in_the_middle_of_a_chunk(engine: cf.Video2World) -> None:
    env = WorldVectorEnv(engine, STARTS, 1, num_steps=1)
    env.reset(seed=1)
    given = actions(1)
    env.step(given[:, 0])
    env.announce(given[:, 1:])
    told = [env.step(given[:, at])[-1]["action"][0] for at in range(1, CHUNK)]
    np.testing.assert_array_equal(np.stack(told), given[0, 1:])
    assert env.model_calls == 2
    # What is announced and not done is forgotten.
    env.announce(given)
    env.step(given[:, 3])
    np.testing.assert_array_equal(env.step(given[:, 1])[-1]["action"][0], given[0, 3])


def test_announced_or_held_actions_cost_one_prediction(engine: cf.Video2World) -> None:
    env = WorldVectorEnv(engine, STARTS, 1)
    env.reset(seed=1)
    given = actions(1)
    env.announce(given)
    seen = [env.step(given[:, at])[0][0] for at in range(CHUNK)]
    assert env.model_calls == 1
    world = cf.World(engine, 1)
    again = WorldVectorEnv(engine, STARTS, 1)
    start, _ = again.reset(seed=1)
    world.reset(start, seed=[again._world.states[0].seed])
    step = world.step(given)
    assert step.frames is not None
    np.testing.assert_array_equal(np.stack(seen), np.asarray(step.frames)[0])
    for _ in range(CHUNK):
        env.step(given[:, 0])
    assert env.model_calls == 2


def test_episodes_are_truncated_rewarded_and_drawn(engine: cf.Video2World) -> None:
    env = WorldVectorEnv(
        engine,
        STARTS,
        2,
        horizon=2,
        reward=brightness,
        num_steps=1,
        render_mode="rgb_array",
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    env.reset(seed=0)
    held = np.zeros((2, DIM), np.float32)
    first = env.step(held)
    assert not first[3].any()
    np.testing.assert_allclose(first[1], first[0].mean(axis=(1, 2, 3)) / 255)
    second = env.step(held)
    assert second[3].all()
    assert not second[2].any()
    assert second[4]["_final_obs"].all()
    assert second[4]["reward_source"][0] == "brightness"
    assert any(np.array_equal(second[0][0], start) for start in STARTS), "a new start"
    drawn = env.render()
    assert drawn is not None
    assert drawn[0].shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(np.stack(drawn), second[0])


@pytest.mark.parametrize("seed", [np.int64(3), (3, 4), np.array([3, 4])], ids=repr)
def test_seeds_come_as_numpy_has_them(engine: cf.Video2World, seed: Any) -> None:
    env = WorldVectorEnv(engine, STARTS, 2, num_steps=1)
    drawn = []
    for given in (3, seed):
        env.reset(seed=given)
        drawn.append([state.seed for state in env._world.states])
    assert drawn[0] == drawn[1]
    with pytest.raises(cf.InputError, match="1 seeds for 2"):
        env.reset(seed=[3])


def test_a_step_that_fails_leaves_the_episodes_as_they_were(engine: cf.Video2World) -> None:
    env, other = (
        WorldVectorEnv(engine, STARTS, 2, horizon=10, reward=dims, hold=1, num_steps=1)
        for _ in range(2)
    )
    env.reset(seed=1)
    other.reset(seed=1)
    given = actions(2, seed=4) * 0.2
    given[1, 1, 0] = 0.6  # the second episode ends there, and begins anew in the next step
    for at in range(5):
        wrong = given[:, at].copy()
        wrong[0] = np.nan
        if at:
            env.announce(given[:, at : at + 2])
            other.announce(given[:, at : at + 2])
        with pytest.raises(cf.InputError, match="nan"):
            env.step(wrong)
        compare(env.step(given[:, at]), other.step(given[:, at]))
    env.close()
    with pytest.raises(cf.InputError, match="closed"):
        env.step(given[:, 0])


def test_a_prediction_that_fails_is_made_again(engine: cf.Video2World) -> None:
    env = WorldVectorEnv(engine, STARTS, 1, hold=1, num_steps=1)
    env.reset(seed=1)
    given = actions(1)
    env.step(given[:, 0])

    def step_meanwhile(*_: Any) -> None:
        with pytest.raises(cf.InputError, match="has the engine already"):
            env.step(given[:, 1])

    world = cf.World(engine, 1, num_steps=1)
    world.reset(STARTS[:1])
    world.step(given, on_frames=step_meanwhile)
    calls = env.model_calls
    _, _, _, _, info = env.step(given[:, 1])
    assert env.model_calls == calls + 1
    np.testing.assert_array_equal(info["action"][0], given[0, 1])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda e: WorldVectorEnv(e, STARTS.astype(float)), "uint8"),
        (lambda e: WorldVectorEnv(e, STARTS, execute=9), "1 to 8"),
        (lambda e: WorldVectorEnv(e, STARTS, hold=0), "hold = 0"),
        (lambda e: WorldVectorEnv(e, STARTS, horizon=1.5), "horizon = 1.5"),  # type: ignore[arg-type]
        (lambda e: WorldVectorEnv(e, STARTS, noise="loud"), "noise = 'loud'"),  # type: ignore[arg-type]
        (lambda e: WorldVectorEnv(e, STARTS, num_steps=0), "num_steps = 0"),
        (lambda e: WorldVectorEnv(e, STARTS, autoreset_mode="soon"), "NEXT_STEP"),  # type: ignore[arg-type]
        (lambda e: WorldVectorEnv(e, STARTS).step("left"), "numbers are needed"),
        (lambda e: WorldVectorEnv(e, STARTS, render_mode="human"), "rgb_array"),
        (lambda e: WorldVectorEnv(e, STARTS).step(np.zeros((1, DIM))), "call reset"),
        (lambda e: WorldVectorEnv(e, STARTS, 2).step(np.zeros((1, DIM))), "shape"),
    ],
    ids=[
        "starts",
        "execute",
        "hold",
        "horizon",
        "noise",
        "steps",
        "mode",
        "text",
        "render",
        "no reset",
        "shape",
    ],
)
def test_wrong_use_is_refused(
    engine: cf.Video2World, call: Callable[[cf.Video2World], Any], word: str
) -> None:
    with pytest.raises(cf.InputError, match=word):
        call(engine)


def random_agent(steps: int, **options: Any) -> tuple[np.ndarray, WorldVectorEnv]:
    """Frames (steps, 1, 96, 96, 3) that a random agent sees in the pusher world."""
    with Image.open(ROOT / "examples" / "worlds" / "start.png") as start:
        starts = np.asarray(start.convert("RGB"))[None]
    env = WorldVectorEnv(
        cf.Video2World.from_pretrained("pusherworld", device="cpu"),
        starts,
        horizon=60,
        reward=brightness,
        num_steps=2,
        **options,
    )
    env.action_space.seed(0)
    env.reset(seed=0)
    seen, ends = [], 0
    for _ in range(steps):
        observation, rewards, _, truncated, _ = env.step(env.action_space.sample())
        assert np.isfinite(rewards).all()
        ends += int(truncated.sum())
        seen.append(observation)
    env.close()
    # A step of which nothing is predicted starts the next episode.
    assert ends == (steps + 1) // 61
    return np.stack(seen), env


@pytest.fixture
def seen_where(monkeypatch: pytest.MonkeyPatch) -> Callable[[np.ndarray], np.ndarray]:
    monkeypatch.syspath_prepend(ROOT)
    from tools.pusherworld.tracker import track

    return lambda frames: track(frames, "disc")


def test_a_random_agent_takes_a_thousand_steps(
    seen_where: Callable[[np.ndarray], np.ndarray],
) -> None:
    frames, env = random_agent(1000)
    assert frames.shape == (1000, 1, 96, 96, 3)
    # 16 episodes of 60 steps, 5 chunks each, and 24 steps more.
    assert env.model_calls == 16 * 5 + 2
    way = seen_where(frames)
    assert np.isfinite(way).all(), "the disc is in every frame"
    assert 0.2 < np.linalg.norm(np.diff(way, axis=0), axis=-1).mean() < 10


def test_a_random_agent_is_followed_at_every_step(
    seen_where: Callable[[np.ndarray], np.ndarray],
) -> None:
    frames, env = random_agent(13, hold=1)
    assert env.model_calls == 13
    way = seen_where(frames)
    assert np.isfinite(way).all()
    assert 0.2 < np.linalg.norm(np.diff(way, axis=0), axis=-1).mean() < 10


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_random_agent_is_followed_for_a_thousand_steps(request: pytest.FixtureRequest) -> None:
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("make soak runs it")
    frames, env = random_agent(1000, hold=1)
    assert frames.shape == (1000, 1, 96, 96, 3)
    assert env.model_calls == 1000 - 16
