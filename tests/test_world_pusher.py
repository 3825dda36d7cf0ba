"""The pusher: MuJoCo and its picture, the tracker, episodes on disk, and two steps of training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

SIMULATED = """
import numpy as np
from pathlib import Path
from tools.pusherworld.episodes import simulate, write
from tools.pusherworld.policies import Push, at_goal
from tools.pusherworld.simulator import Pusher, Start, to_pixels
from tools.pusherworld.tracker import track

pusher = Pusher()
rng = np.random.default_rng(0)
for _ in range(4):
    disc, block = rng.uniform(-0.7, -0.1, 2), rng.uniform(0.2, 0.7, 2)
    pusher.reset(Start(disc, np.array([*block, rng.uniform(-1, 1)])))
    frame = pusher.frame()
    assert np.abs(track(frame) - to_pixels(block)).max() < 0.6
    assert np.abs(track(frame, "disc") - to_pixels(disc)).max() < 0.6

kept = pusher.state()
policy = Push(np.array([-0.4, 0.0]), 1.0, rng)
for _ in range(80):
    pusher.step(policy(pusher.disc, pusher.block))
assert at_goal(pusher.block, policy.goal), pusher.block
pusher.set_state(kept)
assert np.array_equal(pusher.frame(), frame), "set_state brings the picture back"
pusher.close()

for split, number in (("train", 2), ("validation", 2)):
    episodes = simulate(split, 0, number, 13)
    again = simulate(split, 1, 1, 13)
    assert np.array_equal(episodes.frames[1], again.frames[0]), "the same whoever asks"
    write(Path(f"{split}_000000.npz"), episodes)
    np.save(f"{split}.npy", episodes.frames)
"""


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ
        | {
            "MUJOCO_GL": "osmesa",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT / 'python'}{os.pathsep}{ROOT / 'kernels'}{os.pathsep}{ROOT}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory, mujoco: None) -> Path:
    folder = tmp_path_factory.mktemp("episodes")
    run(folder, "-c", SIMULATED)
    return folder


def test_packed_episodes_are_read_back_whole(episodes: Path) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from tools.pusherworld.episodes import read_all
    finally:
        sys.path.remove(str(ROOT))
    found = read_all(episodes, "train")
    np.testing.assert_array_equal(found.frames, np.load(episodes / "train.npy"))
    assert found.frames.shape == (2, 14, 96, 96, 3)
    assert found.actions.shape == (2, 13, 2)
    assert np.abs(found.actions).max() <= 1
    assert (episodes / "train_000000.npz").stat().st_size < 20_000


def test_two_steps_of_training_resume_and_export_a_checkpoint(
    episodes: Path, tmp_path: Path
) -> None:
    plan = ["-m", "tools.pusherworld.train", "--data", str(episodes), "--smoke", "2"]
    small = ["--batch", "2", "--episodes", "1"]
    run(tmp_path, *plan, *small, "--out", "one", "--vae", "1x32x2@1e-3:9,5x32x1@1e-3:9")
    told = run(tmp_path, *plan, *small, "--out", "two", "--resume", "one")
    assert "transformer resumed" in told
    run(tmp_path, "-m", "tools.pusherworld.export", "two", "--to", "pusherworld")

    import cosmos_fast as cf

    engine = cf.Video2World.from_pretrained(tmp_path / "pusherworld", device="cpu")
    assert engine.profile.actions is not None
    assert (engine.profile.actions.chunk, engine.profile.actions.dim) == (12, 2)
    world = cf.World(engine, num_steps=1)
    world.reset(np.load(episodes / "validation.npy")[:1, 0])
    assert np.asarray(world.step(np.zeros((1, 12, 2))).frames).shape == (1, 12, 96, 96, 3)
