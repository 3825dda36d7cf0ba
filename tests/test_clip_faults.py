"""Video, sidecar and manifest appear together or not at all, whatever is in the way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cosmos_fast.clip import ClipWriter
from cosmos_fast.errors import MediaError
from cosmos_fast.types import Frames, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = Size(64, 64)
FILES = ["a.json", "a.mp4", "a.txt"]


def clip_writer(path: Path, frames: int) -> ClipWriter:
    """A clip of noise, finished and not yet published."""
    pixels = np.random.default_rng(frames).integers(0, 256, (frames, *SIZE, 3), dtype=np.uint8)
    writer = ClipWriter(path, SIZE, 16, {"name": "noise"})
    writer.__enter__()
    writer.write(Frames(pixels, 16))
    writer.finish()
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in sorted(folder.iterdir())}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes file systems of some KiB."""
    mounted: list[Path] = []

    def make(kibibytes: int) -> Path:
        folder = tmp_path / f"disk of {kibibytes}"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a file system")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def attempted(path: Path, frames: int) -> str | None:
    """What a clip with a long sidecar and manifest was refused with, if it was."""
    try:
        with clip_writer(path, frames) as writer:
            writer.publish_plain({"frames": frames, "filler": "x" * 20_000}, "word" * 5000)
    except MediaError as error:
        return str(error)
    return None


def test_a_disk_that_is_full_at_any_point_keeps_what_was_there(
    disk: Callable[[int], Path],
) -> None:
    outcomes = []
    for kibibytes in range(48, 192, 8):
        folder = disk(kibibytes)
        with clip_writer(folder / "a.mp4", 2) as first:
            first.publish_plain({"take": 1}, "the first")
        before = contents(folder)
        assert list(before) == FILES
        told = attempted(folder / "a.mp4", 4)
        after = contents(folder)
        if told is None:
            assert list(after) == FILES
            assert all(after[name] != before[name] for name in FILES)
        else:
            assert f"{folder}/a." in told
            assert "space" in told
            assert after == before
        outcomes.append(told is None)
    assert outcomes == sorted(outcomes)  # refused until there is room
    assert set(outcomes) == {False, True}


def test_a_full_disk_leaves_nothing_beside_a_video_that_is_not_there(
    disk: Callable[[int], Path],
) -> None:
    outcomes = []
    for kibibytes in range(4, 124, 8):
        folder = disk(kibibytes)
        told = attempted(folder / "a.mp4", 2)
        assert list(contents(folder)) == (FILES if told is None else [])
        assert told is None or f"{folder}/a." in told
        outcomes.append(told is None)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_a_name_that_cannot_be_taken_undoes_the_others(tmp_path: Path) -> None:
    with clip_writer(tmp_path / "a.mp4", 2) as first:
        first.publish_plain({"take": 1}, "the first")
    (tmp_path / "a.mp4").unlink()
    before = contents(tmp_path)
    with clip_writer(tmp_path / "a.mp4", 4) as second:
        (tmp_path / "a.mp4").mkdir()  # somebody else was faster
        with pytest.raises(MediaError, match=r"a\.mp4"):
            second.publish_plain({"take": 2}, "the second")
    (tmp_path / "a.mp4").rmdir()
    assert contents(tmp_path) == before


def test_a_new_clip_whose_name_is_taken_leaves_nothing(tmp_path: Path) -> None:
    with clip_writer(tmp_path / "a.mp4", 2) as writer:
        (tmp_path / "a.mp4").mkdir()
        with pytest.raises(MediaError, match=r"a\.mp4"):
            writer.publish_plain({"take": 1}, "the first")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_a_folder_that_vanished_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    with clip_writer(folder / "a.mp4", 2) as writer:
        folder.rename(tmp_path / "elsewhere")
        folder.touch()  # in the place of the folder
        with pytest.raises(MediaError, match=r"gone/a\.(txt|json)"):
            writer.publish_plain({}, "words")
    assert list((tmp_path / "elsewhere").iterdir()) == []
