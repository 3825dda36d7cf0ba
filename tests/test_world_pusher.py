"""The pusher: MuJoCo and its picture, the tracker, episodes on disk, two steps of training, and the
evaluation: with MuJoCo's own frames in the world's place its measures must find no fault."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cosmos_fast as cf
from action_world import ACTIONS, PROFILE
from cosmos_fast.weights import find_checkpoint
from cosmos_fast.world import cross_entropy_search
from random_world import make_random_world

TINY = replace(
    PROFILE,
    size=cf.Size(96, 96),
    num_frames=13,
    fps=10.0,
    num_steps=1,
    dit=replace(PROFILE.dit, num_layers=1, action_inputs=24),
    actions=replace(ACTIONS, chunk=12, fps=10.0, scale=(1.0, 1.0)),
)
"""Random weights of the pusher's shape."""
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

for split, number in (("train", 2), ("validation", 2), ("held-out", 2)):
    episodes = simulate(split, 0, number, 13)
    again = simulate(split, 1, 1, 13)
    assert np.array_equal(episodes.frames[1], again.frames[0]), "the same whoever asks"
    write(Path(f"{split}_000000.npz"), episodes)
    np.save(f"{split}.npy", episodes.frames)
"""


WITHOUT = """
import sys
sys.modules["mujoco"] = sys.modules["cosmos_fast._core"] = None
"""

MEASURED = """
import json
import numpy as np
from tools.pusherworld import accuracy
from tools.pusherworld.episodes import simulate
from tools.pusherworld.futures import Futures, MujocoImagination
from tools.pusherworld.simulator import Pusher

class Frozen:
    def begin(self, moments):
        return [moment.picture for moment in moments]

    def advance(self, handles, actions, samples=1):
        frames = np.stack(handles)[:, None, None].repeat(12, axis=2)
        return Futures(frames, list(handles), np.zeros(len(handles)))

def told(futures):
    global count
    count += futures

count = 0
pusher = Pusher()
episodes = simulate("held-out", 0, 4)
chained, pushes = (make(episodes, states=True) for make in (accuracy.from_start, accuracy.pushes))
found = {"moved": pushes.still[:, -1].tolist()}
for name, who in (("perfect", MujocoImagination(pusher, told)), ("frozen", Frozen())):
    found[name] = accuracy.accuracy(*(accuracy.roll_out(who, each) for each in (chained, pushes)))
found["futures"] = count
shaken = MujocoImagination(pusher, told, shake=[0, 0.3, 0.6, 1])
found["knows"] = accuracy.disagreement(shaken, [pushes])
shaken = MujocoImagination(pusher, told, shake=shaken.shake)
honest = shaken.advance
shaken.advance = lambda *given: honest(*given)._replace(disagreement=np.arange(4)[::-1])
found["reversed"] = accuracy.disagreement(shaken, [pushes])
print(json.dumps(found))
"""


def run(
    folder: Path, *words: str, code: int = 0, program: str = sys.executable, path: str = ""
) -> str:
    done = subprocess.run(
        [program, *words],
        cwd=folder,
        env=os.environ
        | {
            "MUJOCO_GL": "osmesa",
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
            "PYTHONPATH": os.pathsep.join(
                [*filter(None, [path]), str(ROOT / "python"), str(ROOT / "kernels"), str(ROOT)]
            ),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory, mujoco: None) -> Path:
    folder = tmp_path_factory.mktemp("episodes")
    run(folder, "-c", SIMULATED)
    return folder


def test_packed_episodes_are_read_back_whole(episodes: Path, tools: None) -> None:
    from tools.pusherworld.episodes import read_all

    found = read_all(episodes, "train")
    np.testing.assert_array_equal(found.frames, np.load(episodes / "train.npy"))
    assert found.frames.shape == (2, 14, 96, 96, 3)
    assert found.actions.shape == (2, 13, 2)
    assert np.abs(found.actions).max() <= 1
    assert (episodes / "train_000000.npz").stat().st_size < 20_000


def test_two_runs_without_simulator_or_core_make_a_checkpoint(
    episodes: Path, tmp_path: Path
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(WITHOUT)
    script = str(ROOT / "tools" / "pusherworld" / "on_gpu.sh")
    small = ["--smoke", "2", "--batch", "2", "--episodes", "1"]

    def train(*words: str) -> str:
        path = str(tmp_path / "bare")
        return run(tmp_path, script, *words, *small, program="bash", path=path)

    train("first", str(episodes), "one", "--vae", "1x32x2@1e-3:9,5x32x1@1e-3:9")
    assert "transformer resumed" in train("second", str(episodes), "two", "one")
    run(tmp_path, "-m", "tools.pusherworld.export", "two", "--to", "pusherworld")

    files = find_checkpoint(tmp_path / "pusherworld")
    assert files.profile.actions is not None
    assert (files.profile.actions.chunk, files.profile.actions.dim) == (12, 2)

    # Packed episodes are measured where there is no simulator either.
    (tmp_path / "bare" / "sitecustomize.py").write_text(WITHOUT.replace("cosmos_fast._core", "x"))
    evaluate = ["-m", "tools.pusherworld.evaluate", "--model", "pusherworld", "--out", "found"]
    evaluate += ["--data", str(episodes), "--only", "accuracy", "--chunks", "1"]
    run(tmp_path, *evaluate, code=1, path=str(tmp_path / "bare"))
    found = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    assert found["accuracy"]["episodes"] == 2


@pytest.fixture(scope="module")
def measures(tmp_path_factory: pytest.TempPathFactory, mujoco: None) -> dict[str, Any]:
    told = run(tmp_path_factory.mktemp("measures"), "-c", MEASURED)
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def test_mujocos_own_frames_have_no_block_error(measures: dict[str, Any]) -> None:
    found = measures["perfect"]
    for windows in ("from the start", "pushes"):
        assert all(figure == [0, 0, 0] for figure in found[windows]["world"].values())
    assert min(measures["moved"]) >= 4, "the block moves in every push"
    assert found["pushes"]["still"]["12"][0] == pytest.approx(
        np.median(measures["moved"]), abs=0.01
    )
    assert found["share_of_still"][0] == 0
    assert measures["futures"] == 4 * 5 + 4


def test_a_frozen_world_errs_as_a_still_picture_does(measures: dict[str, Any], tools: None) -> None:
    from tools.pusherworld.bars import bars
    from tools.pusherworld.measures import Figure

    found = measures["frozen"]
    for windows in ("from the start", "pushes"):
        assert found[windows]["world"] == found[windows]["still"]
    assert found["share_of_still"] == [1, 1, 1]
    for windows in ("from the start", "pushes"):
        world = found[windows]["world"]
        found[windows]["world"] = {frame: Figure(*figure) for frame, figure in world.items()}
    found["share_of_still"] = Figure(*found["share_of_still"])
    missed = [bar.name for bar in bars({"accuracy": found}) if not bar.met]
    assert missed == [
        "block error at frame 12, pushes, px",
        "block error after the last chunk over a still picture's",
    ]


def test_disagreement_is_held_against_the_error_of_its_own_world(measures: dict[str, Any]) -> None:
    assert measures["knows"]["spearman"][0] > 0.5
    assert measures["reversed"]["spearman"][0] < 0


def test_a_perfect_world_clears_every_bar(tmp_path: Path, mujoco: None) -> None:
    few = ["--only", "policies", "planning", "--policies", "4", "--policy-episodes", "5"]
    few += ["--chunks", "3", "--problems", "3", "--candidates", "16"]
    evaluate = ["-m", "tools.pusherworld.evaluate", "--model", "mujoco", "--out", "found", *few]
    found = json.loads(run(tmp_path, *evaluate).splitlines()[-1])
    assert found["missed"] == []
    assert len(set(found["policies"]["mujoco"])) > 2, "their skills differ"
    assert found["policies"]["same_outcome"] > 0.9
    assert found["policies"]["spearman"][0] > 0.9
    assert found["planning"]["mujoco"][0] > found["planning"]["random"][0]
    assert found["planning"]["share_of_mujoco"][0] == 1
    assert found["planning"]["futures_per_decision"] == 32


def test_an_untrained_world_is_measured_in_every_part_and_misses(
    tmp_path: Path, mujoco: None
) -> None:
    make_random_world(tmp_path / "model", TINY)
    few = ["--episodes", "1", "--chunks", "1", "--policies", "2", "--policy-episodes", "1"]
    few += ["--problems", "1", "--candidates", "2", "--rounds", "1", "--batch", "4"]
    evaluate = ["-m", "tools.pusherworld.evaluate", "--model", "model", "--out", "found", *few]
    found = json.loads(run(tmp_path, *evaluate, code=1).splitlines()[-1])
    assert "block error at frame 12, pushes, px" in found["missed"]
    assert found == json.loads((tmp_path / "found" / "evaluation.json").read_text())
    page = (tmp_path / "found" / "evaluation.md").read_text()
    for told in ("**missed**", "| policy | success in MuJoCo |", "(arithmetic, not measured)"):
        assert told in page
    with Image.open(tmp_path / "found" / "sheet.png") as sheet:
        assert sheet.size == (480, 2 * 98 + 6 + 192)


class Parabola:
    """Costs with one valley a problem."""

    dim = 2

    def get_cost(self, info: Any, candidates: torch.Tensor, /) -> torch.Tensor:
        far = candidates - torch.tensor(info["state"])[:, None, None, None]
        return far.square().sum(dim=(2, 3))


def test_a_plan_with_its_own_seed_does_not_depend_on_the_others() -> None:
    options: dict[str, Any] = {"horizon": 12, "hold": 4, "rounds": 8}
    both = cross_entropy_search(Parabola(), {"state": [0.3, -0.5]}, seed=[4, 9], **options)
    alone = cross_entropy_search(Parabola(), {"state": [-0.5]}, seed=[9], **options)
    assert torch.equal(both[1], alone[0])
    torch.testing.assert_close(alone, torch.full((1, 12, 2), -0.5), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": [1]}, "1 seeds for 2 problems"),
        ({"candidates": 7}, "candidates = 7: at least 8"),
        ({"elites": 1}, "elites = 1: at least 2"),
        ({"rounds": 0}, "rounds = 0: at least 1"),
        ({"low": 1.0, "high": -1.0}, "below the second"),
        ({"info": {}}, "the states to plan from"),
        ({"info": {"state": [0.0, math.nan]}}, "problem 1 costs NaN"),
    ],
    ids=["seeds", "fewer candidates than elites", "one elite", "no round", "limits", "no state",
         "no cost"],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    given = {"info": {"state": [0.0, 0.0]}, "horizon": 12, **wrong}
    with pytest.raises(cf.InputError, match=said):
        cross_entropy_search(Parabola(), given.pop("info"), **given)


def test_statistics_of_paired_scores(tools: None) -> None:
    from tools.pusherworld import measures

    theirs = np.array([0.1, 0.4, 0.4, 0.9])
    assert measures.ranks(theirs).tolist() == [1, 2.5, 2.5, 4]
    assert measures.spearman(theirs**3, theirs) == pytest.approx(1)
    assert measures.spearman(-theirs, theirs) == pytest.approx(-1)
    # By hand: 1 - 6 (1 + 1) / (4 (16 - 1)).
    swapped = np.array([2.0, 1.0, 3.0, 4.0])
    assert measures.spearman(swapped, np.arange(4.0)) == pytest.approx(0.8)
    assert measures.pearson(np.ones(4), theirs) == 0
    # The first two change places: each is 0.3 from the one it is wrong about.
    wrong = measures.rank_violation(np.array([0.5, 0.1, 0.6, 0.7]), np.array([0.1, 0.4, 0.6, 0.9]))
    assert wrong == pytest.approx(0.15)
    figure = measures.bootstrap(lambda each: float(each.mean()), np.arange(100.0))
    assert figure.value == 49.5
    # The deviation of the mean is 28.9 / 10.
    assert figure.low == pytest.approx(49.5 - 1.96 * 2.89, abs=0.8)
    assert figure.high == pytest.approx(49.5 + 1.96 * 2.89, abs=0.8)
    assert measures.ratio(np.zeros(3), np.zeros(3)) == 0
    assert measures.ratio(np.ones(3), np.zeros(3)) == float("inf")


def test_a_decision_at_released_size_is_counted(tools: None) -> None:
    from tools.pusherworld.released_cost import decision_cost, measured_speed

    table = "| median step, two forwards | 940 ms, 559 TFLOP/s | 936 ms, 500 TFLOP/s |"
    assert measured_speed(table) == 500
    with pytest.raises(ValueError, match="no row"):
        measured_speed("| median step | 940 ms |")
    found = decision_cost(64, speed=500)
    assert found["35_steps"]["forwards"] == 64 * 36
    seconds = 64 * 36 * found["tflop_a_forward"] / 500
    assert found["35_steps"]["seconds"] == pytest.approx(seconds, rel=1e-3)
    assert decision_cost(64)["measured_tflop_per_second"] > 0, "BENCHMARKS.md has the row"
