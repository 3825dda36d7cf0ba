"""Every example runs as it stands, here on a model small enough to wait for."""

from __future__ import annotations

import runpy
import signal
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from cosmos_fast.cli import main
from cosmos_fast.config import VAEConfig
from random_world import RANDOM_PROFILE, make_random_world

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

SAYS = {
    "picture_to_video.py": ["step 3 of 3: ", "picture_to_video.mp4", "peak host memory"],
    "simulator_frames.py": ["predicted.shape = (9, 96, 160, 3)"],
    "stream_frames.py": [" s: 1 frames of 96x160", " s: 4 frames of 96x160"],
    "many_seeds.py": ["future_0.mp4 0 ", "future_1.mp4 1 "],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dit = replace(RANDOM_PROFILE.dit, num_layers=1, num_heads=1)
    profile = replace(RANDOM_PROFILE, dit=dit, vae=VAEConfig(base_dim=4), num_frames=9, num_steps=2)
    return make_random_world(tmp_path_factory.mktemp("world"), profile)


@pytest.mark.parametrize("name", SAYS)
def test_example_runs(
    tmp_path: Path,
    world: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, str(world)])
    handler = signal.getsignal(signal.SIGINT)
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        signal.signal(signal.SIGINT, handler)
    told = capsys.readouterr().out
    for line in SAYS[name]:
        assert line in told


def test_every_example_is_listed_and_tried() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    there = {path.name for path in EXAMPLES.iterdir()} - {"README.md", "worlds"}
    assert there == {*SAYS, "video2world.toml", "ray_batch.py"}  # that one: test_jobs_ray.py
    assert [name for name in there if f"`{name}`" not in listed] == []


def test_the_config_file_resolves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "start.png"
    PIL.Image.new("RGB", (160, 96)).save(picture)
    config = EXAMPLES / "video2world.toml"
    command = ["video2world", "--config", str(config), "--input_path", str(picture), "--dry-run"]
    assert main(command) == 0
    listing = capsys.readouterr().out
    for name, value in tomllib.loads(config.read_text()).items():
        field = {"model": "source", "save_path": "output"}.get(name, name)
        [line] = [line for line in listing.splitlines() if line.split()[0] == field]
        assert str(value) in line
        assert line.split()[1:3] == ["config", "file"]
