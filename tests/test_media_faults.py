"""Full disks, read-only and vanished folders, signals: a whole file or none, and nothing beside."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cosmos_fast.errors import MediaError
from cosmos_fast.media import VideoWriter, write_png
from cosmos_fast.media.publishing import PREFIX, Draft, FolderDraft, publish
from cosmos_fast.types import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = Size(64, 64)
NAMES = ["a.mp4", "a.mkv", "a.npy", "pictures/%05d.png"]


def noise(frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, *SIZE, 3), dtype=np.uint8)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208  bytes of the folder, no stat of the entries


def save(path: Path, frames: int = 60) -> None:
    with VideoWriter(path, size=SIZE, fps=16) as writer:
        for picture in noise(frames):
            writer.write(picture[None])


def in_fork(work: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """Runs ``work`` in a forked process; returns it and a descriptor from which its words come.

    ``work`` gets a function to say something with. A new interpreter would take seconds to import
    torch, for each of these tests.
    """
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hear)
        try:
            work(lambda words: (os.write(tell, f"{words}\n".encode()), None)[1])
        finally:
            os._exit(1)
    os.close(tell)
    return child, hear


def write_everything_under_a_limit(folder: Path, say: Callable[[str], None]) -> None:
    """A limit on the size of files stands for the disk: every write beyond it fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    wall = np.concatenate(list(noise(16)))
    for name in (*NAMES, "a.png"):
        try:
            save(folder / name) if name in NAMES else write_png(folder / name, wall)
            say(f"{name} written")
        except MediaError as error:
            say(f"{name} refused {str(error).startswith(f'{folder / name}: ')}")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_disk_that_fills_up_leaves_no_file(tmp_path: Path) -> None:
    child, hear = in_fork(lambda say: write_everything_under_a_limit(tmp_path, say))
    with open(hear, encoding="utf-8") as words:  # noqa: PTH123  a descriptor
        *files, pictures, png = words.read().splitlines()
    os.waitpid(child, 0)
    assert files == [f"{name} refused True" for name in NAMES[:3]]
    assert pictures == "pictures/%05d.png written"  # each of them is small
    assert png == "a.png refused True"
    assert names(tmp_path) == ["pictures"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=40", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_file_system_is_left_as_it_was(name: str, small_disk: Path) -> None:
    save(small_disk / "before.mp4", 2)
    with pytest.raises(MediaError, match=str(small_disk / name)):
        save(small_disk / name, 200)
    assert names(small_disk) == ["before.mp4"]
    save(small_disk / "after.mp4", 2)


@pytest.mark.parametrize("name", [*NAMES, "a.png"])
def test_a_folder_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    folder = Path("/proc/self") if os.geteuid() == 0 else tmp_path
    tmp_path.chmod(0o555)
    write = save if name in NAMES else lambda path: write_png(path, noise(1)[0])
    with pytest.raises(MediaError, match="cannot be written") as caught:
        write(folder / "new" / name)
    tmp_path.chmod(0o755)
    assert str(folder / "new") in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_vanishes_is_an_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / name
    writer = VideoWriter(path, size=SIZE, fps=16)
    writer.write(noise(5))
    shutil.rmtree(tmp_path / "folder")
    with pytest.raises(MediaError, match=str(path)):
        writer.close()
    assert names(tmp_path) == []


def test_a_folder_that_moves_takes_its_file_along(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    writer = VideoWriter(tmp_path / "old" / "a.mp4", size=SIZE, fps=16)
    writer.write(noise(5))
    (tmp_path / "old").rename(tmp_path / "new")
    writer.close()
    assert names(tmp_path) == ["new"]
    assert names(tmp_path / "new") == ["a.mp4"]


def write_for_ever(folder: Path, name: str, named: bool, say: Callable[[str], None]) -> None:
    drafts = [Draft(folder / "b.mp4", nameless=False)] if named else []
    with VideoWriter(folder / name, size=SIZE, fps=16) as writer:
        writer.write(noise(40))
        say(f"ready {len(drafts)}")
        while True:
            time.sleep(0.01)
            writer.write(noise(1))


def interrupted(folder: Path, number: int, name: str, *, named: bool = False) -> None:
    """A process that is writing gets a signal."""
    child, hear = in_fork(lambda say: write_for_ever(folder, name, named, say))
    assert os.read(hear, 20).startswith(b"ready")
    os.close(hear)
    os.kill(child, number)
    assert os.waitpid(child, 0)[1] != 0
    deadline = time.monotonic() + 10
    while encoders(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not encoders(folder)


def encoders(folder: Path) -> list[str]:
    """Processes that have a file below ``folder`` open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)  # noqa: PTH115  a Path would lose the end of a deleted name
        except OSError:
            continue
        if target.startswith(str(folder)) and "/self/" not in str(link):
            found.append(f"{link} {target}")
    return found


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_file_and_no_process(number: signal.Signals, tmp_path: Path) -> None:
    interrupted(tmp_path, number, "a.mp4")
    assert names(tmp_path) == []


def age(folder: Path, seconds: float) -> None:
    for name in names(folder):
        then = time.time() - seconds
        os.utime(folder / name, (then, then))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_killed_process_left_is_swept_at_the_next_start(tmp_path: Path) -> None:
    """A folder of pictures and files on old file systems have names while they are written."""
    interrupted(tmp_path, signal.SIGKILL, "pictures/%05d.png", named=True)
    left = names(tmp_path)
    assert len(left) == 2
    assert all(name.startswith(PREFIX) for name in left)
    (tmp_path / "mine").write_text("not a draft")
    save(tmp_path / "a.mp4", 2)
    assert names(tmp_path) == sorted([*left, "a.mp4", "mine"])  # too young: may be another's
    age(tmp_path, 3600)
    save(tmp_path / "a.mp4", 2)
    assert names(tmp_path) == ["a.mp4", "mine"]


def test_a_draft_of_another_machine_may_be_alive_for_a_day(tmp_path: Path) -> None:
    draft = tmp_path / f"{PREFIX}0ther0ne-1234"
    draft.write_bytes(b"")
    for hours, left in [(2, 1), (25, 0)]:
        age(tmp_path, hours * 3600)
        Draft(tmp_path / "a").discard()
        assert len(names(tmp_path)) == left


def test_what_is_being_written_is_not_swept_however_old(tmp_path: Path) -> None:
    file = Draft(tmp_path / "a.mp4", nameless=False)
    folder = FolderDraft(tmp_path / "pictures")
    age(tmp_path, 3600)
    save(tmp_path / "b.mp4", 2)
    assert len(names(tmp_path)) == 3
    file.write(b"whole")
    publish([file, folder])
    assert names(tmp_path) == ["a.mp4", "b.mp4", "pictures"]
    assert (tmp_path / "a.mp4").read_bytes() == b"whole"


def test_drafts_leave_no_descriptor(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    for _ in range(5):
        save(tmp_path / "a.mkv", 2)
        with pytest.raises(MediaError):
            save(tmp_path / "b.mkv", 0)
        Draft(tmp_path / "c", nameless=False).discard()
        FolderDraft(tmp_path / "d").discard()
    assert len(names(Path("/proc/self/fd"))) == before
    assert names(tmp_path) == ["a.mkv"]


def test_a_limit_on_open_files_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(names(Path("/proc/self/fd")))
    try:
        for spare in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
            try:
                save(tmp_path / "a.mp4", 3)
            except (MediaError, OSError):
                assert not (tmp_path / "a.mp4").exists()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(names(Path("/proc/self/fd"))) == used
    assert names(tmp_path) in ([], ["a.mp4"])
