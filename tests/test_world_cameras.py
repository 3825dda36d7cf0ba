"""Checkpoints of several cameras: put together on the way in, cut apart on the way out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import cosmos_fast as cf
from action_world import DIM, HEIGHT, PROFILE, WIDTH, actions
from cosmos_fast.cli import main
from cosmos_fast.weights.sidecar import read_sidecar, sidecar_json
from cosmos_fast.world import Camera, rollout_actions
from cosmos_fast.world.lerobot import Dataset, DatasetWriter, save_dataset
from random_world import make_random_world

if TYPE_CHECKING:
    from pathlib import Path

FRONT = Camera("front", 0, 0, HEIGHT, 32)
WRIST = Camera("wrist", 16, 32, 16, 16)
CAMERAS = (FRONT, WRIST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_world(tmp_path_factory.mktemp("two"), replace(PROFILE, cameras=CAMERAS))


@pytest.fixture(scope="module")
def engine(folder: Path) -> cf.Video2World:
    return cf.Video2World.from_pretrained(folder, device="cpu")


def views(worlds: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        one.name: rng.integers(0, 256, (worlds, *one.size, 3), dtype=np.uint8) for one in CAMERAS
    }


def whole(parts: dict[str, np.ndarray]) -> np.ndarray:
    made = np.zeros((len(parts["front"]), HEIGHT, WIDTH, 3), np.uint8)
    made[:, :, :32] = parts["front"]
    made[:, 16:, 32:] = parts["wrist"]
    return made


def test_frames_by_camera_are_those_of_one_picture(engine: cf.Video2World) -> None:
    given = views(2)
    steps = []
    for frames in (given, {k: torch.from_numpy(v) for k, v in given.items()}, whole(given)):
        world = cf.World(engine, 2)
        world.reset(frames, seed=3)
        steps.append(world.step(actions(2), samples=2).frames)
    pixels = [np.asarray(frames) for frames in steps]
    np.testing.assert_array_equal(pixels[0], pixels[2])
    np.testing.assert_array_equal(pixels[1], pixels[2])
    apart = steps[0].by_camera()
    assert list(apart) == ["front", "wrist"]
    np.testing.assert_array_equal(np.asarray(apart["front"]), pixels[0][:, :, :, :32])
    np.testing.assert_array_equal(np.asarray(apart["wrist"]), pixels[0][:, :, 16:, 32:])
    view = torch.from_dlpack(apart["wrist"])
    assert view.data_ptr() == apart["wrist"].data.data_ptr()


def test_futures_have_cameras_and_one_picture_has_none(
    engine: cf.Video2World, tmp_path: Path
) -> None:
    world = cf.World(engine)
    world.reset(views(1))
    futures = world.step(actions(1), samples=2).futures
    assert futures is not None
    assert futures.camera("wrist").shape == (1, 2, 8, 16, 16, 3)
    with pytest.raises(cf.InputError, match="'side': the checkpoint has front, wrist"):
        futures.camera("side")
    make_random_world(tmp_path, PROFILE)
    plain = cf.World(cf.Video2World.from_pretrained(tmp_path, device="cpu"))
    with pytest.raises(cf.InputError, match="makes one picture"):
        plain.reset(views(1))
    plain.reset(whole(views(1)))
    assert plain.step(actions(1)).frames.by_camera() == {}


@pytest.mark.parametrize(
    ("frames", "word"),
    [
        ({"front": views(1)["front"]}, "has front, wrist"),
        (views(1) | {"side": views(1)["wrist"]}, "has front, wrist"),
        (views(1) | {"wrist": views(1)["front"]}, r"uint8 \(1, 16, 16, 3\) on cpu is needed"),
        (views(1) | {"wrist": views(2)["wrist"]}, r"uint8 \(1, 16, 16, 3\)"),
        (views(1) | {"wrist": views(1)["wrist"] / 255}, "float64 of shape"),
        (np.zeros((1, 48, 64, 3), np.uint8), "the cameras of random actions lie in"),
    ],
    ids=["too few", "too many", "size", "worlds", "dtype", "whole of another size"],
)
def test_frames_that_do_not_fit_are_refused(engine: cf.Video2World, frames: Any, word: str) -> None:
    world = cf.World(engine)
    before = world.reset(views(1))
    with pytest.raises(cf.InputError, match=word):
        world.reset(frames)
    assert world.states is before


def test_cameras_are_told_beside_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    path = folder / "cosmos_fast.json"
    told = json.loads(path.read_text())
    assert told["cameras"] == {"front": [0, 0, HEIGHT, 32], "wrist": [16, 32, 16, 16]}
    assert read_sidecar(path).cameras == CAMERAS
    assert sidecar_json(replace(PROFILE, cameras=CAMERAS))["cameras"] == told["cameras"]
    wrongs: list[Any] = [[], {"front": [0, 0, 32]}, {"front": [0, 0, 32, 2.0]}]
    for cameras in wrongs:
        wrong = tmp_path / "cosmos_fast.json"
        wrong.write_text(json.dumps(told | {"cameras": cameras}))
        with pytest.raises(cf.CheckpointError, match=r"cameras = .*top, left, height, width"):
            read_sidecar(wrong)
    for box in ((0, 0, 33, 8), (0, -1, 8, 8), (0, 0, 0, 8)):
        with pytest.raises(cf.InputError, match="is not within frames"):
            replace(PROFILE, cameras=(Camera("front", *box),))
    with pytest.raises(cf.InputError, match="different names"):
        replace(PROFILE, cameras=(FRONT, FRONT))


def test_a_rollout_of_two_cameras_is_a_dataset_of_two(
    engine: cf.Video2World, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = {name: frames[0] for name, frames in views(1).items()}
    rows = actions(1)[0, :5]
    made = rollout_actions(engine, start, rows)
    np.testing.assert_array_equal(np.asarray(made.by_camera()["wrist"])[0], start["wrist"])
    dataset = Dataset(save_dataset(tmp_path / "made", [made], tasks="push"))
    assert dataset.cameras == ("observation.images.front", "observation.images.wrist")
    assert dataset.size("wrist") == (16, 16)
    # And back: the start of every camera is found in the dataset by its name.
    grey = {name: np.full((5, *one.size, 3), 90 + 60 * (one is WRIST), np.uint8)
            for name, one in (("observation.images.front", FRONT),
                              ("observation.images.wrist", WRIST))}  # fmt: skip
    sizes = {name: clip.shape[1:3] for name, clip in grey.items()}
    with DatasetWriter(tmp_path / "grey", engine.profile.actions, sizes) as writer:  # type: ignore[arg-type]
        writer.add(grey, np.zeros((5, DIM)), "wait", synthetic=False)
    out = tmp_path / "a.npy"
    code = main(["rollout", "--model", str(folder), "--actions", str(tmp_path / "grey"),
                 "--save_path", str(out)])  # fmt: skip
    assert code == 0, capfd.readouterr().err
    first = np.load(out)[0].astype(int)
    assert abs(first[:, :32].mean() - 90) < 3
    assert abs(first[16:, 32:].mean() - 150) < 3
    assert not first[:16, 32:].any()
    assert len(json.loads((tmp_path / "a.json").read_text())["source"]["cameras"]) == 2
