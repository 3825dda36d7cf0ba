"""Every example about worlds runs as it stands, here on random weights of the pusher's shape."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import cosmos_fast as cf
from action_world import PROFILE
from random_world import make_random_world

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "worlds"
SAYS = {
    "device_frames.py": ([], "chunk 1: (2, 12, 96, 96, 3) on cpu, valid True"),
    "ros_images.py": ([], "12 messages of 96x96, the last at 1.200000000 s"),
    "side_by_side.py": (["4"], "frame   4: block "),
    "plan_in_world.py": (["1", "3"], "decision 0: "),
    "score_policy.py": (["2", "1", "1"], "policy 1: succeeds "),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = replace(PROFILE.actions, chunk=12, fps=10.0, scale=(1.0, 1.0))  # type: ignore[type-var]
    assert isinstance(spec, cf.ActionSpec)
    profile = replace(
        PROFILE,
        size=cf.Size(96, 96),
        num_frames=13,
        fps=10.0,
        num_steps=1,
        dit=replace(PROFILE.dit, num_layers=1, action_inputs=24),
        actions=spec,
    )
    return make_random_world(tmp_path_factory.mktemp("world"), profile)


@pytest.mark.parametrize("name", SAYS)
def test_example_runs(name: str, model: Path, tmp_path: Path, mujoco: None) -> None:
    words, said = SAYS[name]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), str(model), *words],
        cwd=tmp_path,
        env=os.environ
        | {
            "MUJOCO_GL": "osmesa",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT / 'python'}{os.pathsep}{ROOT}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    if name == "side_by_side.py":
        assert (tmp_path / "side_by_side.mp4").stat().st_size > 0


def test_every_example_is_listed_and_tried() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    there = {path.name for path in EXAMPLES.glob("*.py")}
    assert there == set(SAYS)
    assert [name for name in there if f"`{name}`" not in listed] == []
