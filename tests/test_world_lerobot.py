"""LeRobot datasets: what is written is read back, by us and by pandas, and damage is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest

import cosmos_fast as cf
from action_world import ACTIONS, CHUNK, DIM, HEIGHT, WIDTH, action_engine, pictures
from cosmos_fast.world import rollout_actions
from cosmos_fast.world.lerobot import Dataset, DatasetWriter, save_dataset

if TYPE_CHECKING:
    from pathlib import Path

TOP, WRIST = "observation.images.top", "observation.images.wrist"
LENGTHS = (5, 9, 3, 7)
TASKS = ("push", "pull", "push", "lift")
SIZES = {TOP: cf.Size(HEIGHT, WIDTH), WRIST: cf.Size(48, 32)}


def shade(camera: str, episode: int, frame: int) -> int:
    """The grey of one frame: no two neighbours are alike."""
    return 20 + 50 * episode + 5 * frame + (3 if camera == WRIST else 0)


def clip(camera: str, episode: int) -> np.ndarray:
    made = np.empty((LENGTHS[episode], *SIZES[camera], 3), np.uint8)
    for frame in range(len(made)):
        made[frame] = shade(camera, episode, frame)
    return made


def done(episode: int) -> np.ndarray:
    rows = np.random.default_rng(episode).normal(3, 2, (LENGTHS[episode], DIM))
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("datasets") / "pushes"
    with DatasetWriter(path, ACTIONS, SIZES, robot_type="disc", crf=1, frames_a_file=12) as writer:
        for episode, task in enumerate(TASKS):
            frames = {camera: clip(camera, episode) for camera in SIZES}
            writer.add(
                frames, done(episode), task,
                synthetic=episode != 1, provenance={"seed": episode},
            )  # fmt: skip
    return path


def test_episodes_are_read_back_with_their_actions(folder: Path) -> None:
    dataset = Dataset(folder)
    assert (len(dataset), dataset.fps, dataset.cameras) == (4, ACTIONS.fps, (TOP, WRIST))
    for index in range(4):
        one = dataset.episode(index)
        assert (one.length, one.task) == (LENGTHS[index], TASKS[index])
        assert (one.synthetic, one.provenance) == (index != 1, {"seed": index})
        np.testing.assert_array_equal(dataset.actions(index), done(index))


@pytest.mark.parametrize("camera", [TOP, WRIST])
def test_every_frame_is_found_in_a_file_of_several_episodes(folder: Path, camera: str) -> None:
    files = sorted((folder / "videos" / camera).glob("*/*.mp4"))
    assert [file.name for file in files] == ["file-000.mp4", "file-001.mp4"]
    dataset = Dataset(folder)
    for episode in range(4):
        frames = np.asarray(dataset.frames(episode, camera, num_frames=LENGTHS[episode]))
        assert frames.shape[1:3] == SIZES[camera]
        wanted = [shade(camera, episode, frame) for frame in range(LENGTHS[episode])]
        np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), wanted, atol=1.5)
    last = np.asarray(dataset.frames(1, camera.rpartition(".")[2], start=8, size=(16, 16)))
    assert last.shape == (1, 16, 16, 3)
    assert last.mean() == pytest.approx(shade(camera, 1, 8), abs=1.5)


def test_statistics_become_an_action_spec(folder: Path) -> None:
    rows = np.concatenate([done(index) for index in range(4)]).astype(np.float64)
    spec = Dataset(folder).action_spec(CHUNK, units=("m/s", "m/s"))
    assert (spec.names, spec.units, spec.fps) == (("x", "y"), ("m/s", "m/s"), ACTIONS.fps)
    assert spec.mean == pytest.approx(rows.mean(axis=0))
    assert spec.std == pytest.approx(rows.std(axis=0))
    found = Dataset(folder).statistics()
    np.testing.assert_allclose(found["min"], rows.min(axis=0))
    np.testing.assert_allclose(found["max"], rows.max(axis=0))
    assert found["count"] == [24]


def test_statistics_of_pictures_are_of_channels_from_0_to_1(folder: Path) -> None:
    held = json.loads((folder / "meta/stats.json").read_text())[TOP]
    shades = [shade(TOP, e, f) / 255 for e in range(4) for f in range(LENGTHS[e])]
    mean = np.array(held["mean"])
    assert mean.shape == (3, 1, 1)
    np.testing.assert_allclose(mean.ravel(), np.mean(shades))
    np.testing.assert_allclose(np.array(held["std"]).ravel(), np.std(shades))
    assert set(held) == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


def test_the_files_are_as_the_format_has_them(folder: Path) -> None:
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 8, "disc")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, 24, 3)
    assert info["splits"] == {"train": "0:4"}
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("data/*/*"))
    assert files == ["data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet"]
    rows = pyarrow.concat_tables([pq.read_table(folder / name) for name in files])
    assert rows.schema.field("action").type == pyarrow.list_(pyarrow.float32(), DIM)
    assert rows["index"].to_pylist() == list(range(24))
    assert rows["episode_index"].to_pylist() == [e for e in range(4) for _ in range(LENGTHS[e])]
    assert rows["timestamp"].to_pylist()[5:8] == [0, 0.125, 0.25]
    assert pq.ParquetFile(folder / files[0]).num_row_groups == 2
    episodes = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [one["dataset_from_index"] for one in episodes] == [0, 5, 14, 17]
    assert [one[f"videos/{TOP}/file_index"] for one in episodes] == [0, 0, 1, 1]
    assert [one[f"videos/{TOP}/from_timestamp"] for one in episodes] == [0, 0.625, 0, 0.375]
    assert np.shape(episodes[0][f"stats/{WRIST}/std"]) == (3, 1, 1)
    tasks = pq.read_table(folder / "meta/tasks.parquet").to_pandas()
    assert list(tasks.index) == ["push", "pull", "lift"]
    assert list(tasks.task_index) == [0, 1, 2]
    assert "synthetic" in (folder / "README.md").read_text()


def test_a_dataset_written_through_pandas_is_read(tmp_path: Path) -> None:
    """As recorders write it: columns in any order, pictures in the rows, one value an action."""
    pandas = pytest.importorskip("pandas")
    for name in ("meta/episodes/chunk-000", "data/chunk-000"):
        (tmp_path / name).mkdir(parents=True)
    png = tmp_path / "picture.png"
    cf.media.write_png(png, pictures(1)[0])
    picture = {"bytes": png.read_bytes(), "path": "frame-000000.png"}
    features = {
        "observation.images.eye": {"dtype": "image", "shape": [3, HEIGHT, WIDTH],
                                   "names": ["channels", "height", "width"]},
        "action": {"dtype": "float32", "shape": [1], "names": {"motors": ["grip"]}},
    }  # fmt: skip
    info = {"codebase_version": "v3.0", "fps": 30, "features": features, "video_path": None}
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    statistics = {"action": {"mean": [0.5], "std": [0.0]}}
    (tmp_path / "meta/stats.json").write_text(json.dumps(statistics))
    rows = {"episode_index": [3, 3], "frame_index": [1, 0], "action": [0.25, 0.75],
            "observation.images.eye": [picture, picture]}  # fmt: skip
    pandas.DataFrame(rows).to_parquet(tmp_path / "data/chunk-000/file-000.parquet")
    episode = {"length": [2], "episode_index": [3], "tasks": [["grip"]], "data/file_index": [0],
               "data/chunk_index": [0]}  # fmt: skip
    pandas.DataFrame(episode).to_parquet(tmp_path / "meta/episodes/chunk-000/file-000.parquet")
    dataset = Dataset(tmp_path)
    np.testing.assert_array_equal(dataset.actions(3), [[0.75], [0.25]])
    np.testing.assert_array_equal(np.asarray(dataset.frames(3))[0], pictures(1)[0])
    spec = dataset.action_spec(4)
    assert (spec.names, spec.mean, spec.std) == (("grip",), (0.5,), (1.0,))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> cf.Video2World:
    return action_engine(tmp_path_factory.mktemp("world"))


def test_rollouts_become_a_dataset_that_says_it_is_synthetic(
    engine: cf.Video2World, tmp_path: Path
) -> None:
    rows = [done(0), done(1)]
    made = [rollout_actions(engine, pictures(2)[n], rows[n], seed=n) for n in range(2)]
    path = save_dataset(tmp_path / "made", made, tasks="push", sources=[{"from": 0}, {"from": 1}])
    dataset = Dataset(path)
    assert len(dataset) == 2
    for number, rollout in enumerate(made):
        one = dataset.episode(number)
        assert one.synthetic
        assert one.provenance["rollout"]["seed"] == number
        assert one.provenance["source"] == {"from": number}
        assert one.provenance["model"]["name"] == "random actions"
        np.testing.assert_array_equal(dataset.actions(number), rows[number])
        frames = np.asarray(dataset.frames(number, num_frames=one.length)).astype(int)
        whole = rollout.frames.to("np").astype(int)
        apart = np.abs(frames[:, None] - whole[None]).mean(axis=(2, 3, 4))
        assert apart.argmin(axis=1).tolist() == list(range(one.length))


def test_rollouts_that_do_not_fit_are_refused(engine: cf.Video2World, tmp_path: Path) -> None:
    seams = rollout_actions(engine, pictures(1)[0], np.zeros((CHUNK, DIM)), reference=True)
    with pytest.raises(cf.InputError, match="reference's seams"):
        save_dataset(tmp_path / "made", [seams], tasks="push")
    with pytest.raises(cf.InputError, match="1 rollouts, 2 tasks, 1 sources"):
        save_dataset(tmp_path / "made", [seams], tasks=["push", "pull"])
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_an_episode_is_refused_and_nothing_appears(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "made", ACTIONS, {TOP: SIZES[TOP]})
    fits = {TOP: clip(TOP, 0)}
    for frames, actions, word in (
        ({}, done(0), "no camera"),
        ({WRIST: clip(WRIST, 0)}, done(0), "where this dataset has"),
        ({TOP: clip(TOP, 1)}, done(0), "a frame before each action"),
        (fits, done(0)[:, :1], r"\(T, 2\) is needed"),
        (fits, done(0) * np.nan, "not finite"),
    ):
        with pytest.raises(cf.InputError, match=word):
            writer.add(frames, actions, "push")
    with pytest.raises(cf.InputError, match="cannot be written as JSON"):
        writer.add(fits, done(0), "push", provenance={"engine": object()})
    with pytest.raises(cf.InputError, match="no episode was added"):
        writer.finish()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(cf.MediaError, match="an empty folder or nothing"):
        DatasetWriter(tmp_path / "full", ACTIONS, {TOP: SIZES[TOP]})


def fail_after_an_episode(writer: DatasetWriter) -> None:
    writer.add({TOP: clip(TOP, 0)}, done(0), "push")
    raise ZeroDivisionError


def test_an_exception_or_a_kill_leaves_no_dataset(tmp_path: Path) -> None:
    failing = DatasetWriter(tmp_path / "made", ACTIONS, {TOP: SIZES[TOP]})
    with pytest.raises(ZeroDivisionError), failing:
        fail_after_an_episode(failing)
    assert list(tmp_path.iterdir()) == []
    script = f"""
        import os, signal
        from test_world_lerobot import *
        writer = DatasetWriter({str(tmp_path / "made")!r}, ACTIONS, {{TOP: SIZES[TOP]}})
        writer.add({{TOP: clip(TOP, 0)}}, done(0), "push")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])  # noqa: PTH120
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "made").exists()


def damaged(folder: Path, target: Path) -> Path:
    """A copy whose files may be changed."""
    import shutil

    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("codebase_version", "v2.1", "v3.0 is read"),
        ("fps", 0, "a number above 0"),
        ("features", [], "an object is needed"),
        ("data_path", "../{file_index}.parquet", "leads out of the dataset"),
        ("data_path", "data/{chunk_index.__class__}", "is no name of files"),
        ("data_path", "data/{nonsense}", "unknown nonsense"),
    ],
    ids=["version", "fps", "features", "path outside", "attribute", "unknown number"],
)
def test_a_wrong_description_is_named(
    folder: Path, tmp_path: Path, key: str, value: Any, word: str
) -> None:
    path = damaged(folder, tmp_path / "copy")
    info = json.loads((path / "meta/info.json").read_text())
    (path / "meta/info.json").write_text(json.dumps(info | {key: value}))
    with pytest.raises(cf.InputError, match=word):
        Dataset(path).actions(0)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/tasks.parquet",
                                  "meta/episodes/chunk-000/file-000.parquet",
                                  "data/chunk-000/file-000.parquet"])  # fmt: skip
def test_a_damaged_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    path = damaged(folder, tmp_path / "copy")
    (path / name).write_bytes((path / name).read_bytes()[:100])
    with pytest.raises(cf.InputError, match=name.rpartition("/")[2]):
        Dataset(path).actions(0)


def test_what_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    dataset = Dataset(folder)
    for call, word in (
        (lambda: dataset.episode(4), "0 to 3"),
        (lambda: dataset.frames(0), "2 cameras, name one"),
        (lambda: dataset.frames(0, "front"), "camera = 'front'"),
        (lambda: dataset.frames(0, TOP, start=4, num_frames=2), "frames 4 to 5"),
        (lambda: dataset.actions(0, key="torque"), "column torque is missing|torque"),
        (lambda: dataset.action_spec(8, key="torque"), "no 'torque'"),
        (lambda: Dataset(tmp_path), "no LeRobot dataset"),
    ):
        with pytest.raises(cf.InputError, match=word):
            call()
