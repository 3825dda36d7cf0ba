"""Programs in the place of ffmpeg that do what a broken one might: an error in time, no trace."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cosmos_fast._core import ProcessLimits, capture
from cosmos_fast.errors import InputError, MediaError
from cosmos_fast.media import MediaLimits, VideoWriter, read_frames, write_png
from cosmos_fast.media.reading import reading
from cosmos_fast.types import Size
from leftovers import is_dying

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = Size(4, 6)
PICTURE = r"printf 'P6\n6 4\n255\n'; head -c 72 /dev/zero"
PATIENCE = 0.6
"""Seconds that a fake may take in these tests."""

READING = {
    "hangs": "sleep 600",
    "hangs and ignores SIGTERM": "trap '' TERM; sleep 600; sleep 600",
    "talks without end": "while :; do echo something went wrong >&2; done",
    "fails with a message": "echo 'moov atom not found' >&2; exit 1",
    "fails without a message": "exit 3",
    "ends well without a picture": "exit 0",
    "crashes": "kill -SEGV $$",
    "is killed inside a picture": r"printf 'P6\n6 4\n255\nabc'; kill -KILL $$",
    "fails after a whole picture": f"{PICTURE}; exit 1",
    "ends inside a picture": r"printf 'P6\n6 4\n255\nabc'",
    "ends inside a header": r"printf 'P6\n6 4'",
    "hangs inside a picture": r"printf 'P6\n6 4\n255\nabc'; sleep 600",
    "prints something else": "echo hello; sleep 600",
    "prints a header without end": "printf P6; tr '\\0' '1' < /dev/zero",
    "announces a huge picture": r"printf 'P6\n60000 60000\n255\n'; sleep 600",
    "announces too many pixels": r"printf 'P6\n8192 8192\n255\n'; sleep 600",
    "changes the size": rf"{PICTURE}; printf 'P6\n4 6\n255\n'; head -c 72 /dev/zero",
    "prints pictures without end": f"while :; do {PICTURE}; done",
    "prints a byte at a time": r"printf 'P6\n6 4\n255\n'; while :; do printf x; sleep 0.1; done",
    "closes its output and hangs": f"{PICTURE}; exec >&-; sleep 600",
    "closes everything and hangs": "exec >&- 2>&-; sleep 600",
    "leaves an endless child with the pipe": "(setsid sh -c 'timeout 5 cat /dev/zero' &) ; exit 0",
}

WRITING = {
    "never reads": "sleep 600",
    "never reads and ignores SIGTERM": "trap '' TERM; sleep 600; sleep 600",
    "ends well at once": "exit 0",
    "ends well half way": "head -c 300 > /dev/null",
    "reads all and writes nothing": "cat > /dev/null",
    "reads all and writes nonsense": "cat",
    "reads all and hangs": "cat > /dev/null; sleep 600",
    "reads a byte at a time": "while :; do head -c 1 > /dev/null; sleep 0.1; done",
    "finds no space": "head -c 100 > /dev/null; echo 'No space left on device' >&2; exit 228",
    "crashes at the end": "cat > /dev/null; kill -SEGV $$",
    "is killed half way": "head -c 300 > /dev/null; kill -KILL $$",
    "closes its input and hangs": "exec <&-; sleep 600",
}


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], Path]:
    def make(script: str) -> Path:
        program = tmp_path / "ffmpeg"
        program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        program.chmod(0o755)
        return program

    return make


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No child, no zombie, no descriptor, no thread of ours survives a test."""
    before, children_before = descriptors(), children()
    yield
    # Not "no child at all": what an earlier test of the same process keeps for life, such as
    # multiprocessing's resource tracker, is not ours to judge.
    assert children() <= children_before
    assert descriptors() == before
    assert not own_threads()


def descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue  # the one that lists
    return found


def children() -> set[int]:
    """This process's children, zombies included."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, NotADirectoryError):
            # "pid (name) state parent ...", and the name may hold anything.
            if entry.name.isdigit() and (
                int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
            ):
                found.add(int(entry.name))
    return found


def own_threads() -> list[str]:
    """The core's threads that serve one file; those that pack frames stay for the next."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = (task / "comm").read_text().strip()
            if not is_dying(task):
                found.append(name)
    return [name for name in found if name.startswith("cosmos-") and "pack" not in name]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    write_png(path, np.zeros((4, 6, 3), dtype=np.uint8))
    return path


def read(photo: Path, ffmpeg: Path, **limits: float) -> np.ndarray:
    frames = read_frames(
        photo,
        size=SIZE,
        num_frames=1,
        ffmpeg=ffmpeg,
        limits=MediaLimits(**{"seconds": PATIENCE, **limits}),  # type: ignore[arg-type]
    )
    return np.asarray(frames)


@pytest.mark.parametrize("behaviour", READING)
def test_reading_is_an_error_in_time(
    behaviour: str, photo: Path, fake: Callable[[str], Path]
) -> None:
    start = time.monotonic()
    with pytest.raises(MediaError, match=str(photo)):
        read(photo, fake(READING[behaviour]))
    assert time.monotonic() - start < PATIENCE + 1.5


@pytest.mark.parametrize("behaviour", WRITING)
def test_writing_is_an_error_in_time_and_leaves_nothing(
    behaviour: str, fake: Callable[[str], Path], tmp_path: Path
) -> None:
    target = tmp_path / "out" / "video.mp4"
    start = time.monotonic()
    with pytest.raises(MediaError, match=str(target)):
        write(target, fake(WRITING[behaviour]))
    assert time.monotonic() - start < 2 * PATIENCE + 2.5
    assert not list(target.parent.iterdir())


def write(target: Path, ffmpeg: Path) -> None:
    with VideoWriter(target, size=SIZE, fps=16, ffmpeg=ffmpeg, seconds=PATIENCE) as writer:
        # More than the queue and the socket hold together, so that a full ring is met too.
        for _ in range(200):
            writer.write(np.zeros((200, *SIZE, 3), dtype=np.uint8))


def test_a_chatty_program_is_heard_to_the_end(photo: Path, fake: Callable[[str], Path]) -> None:
    chatter = "head -c 1048576 /dev/zero | tr '\\0' x >&2; "
    assert not read(photo, fake(chatter + PICTURE)).any()
    with pytest.raises(MediaError, match="the last word") as caught:
        read(photo, fake(f"{chatter} echo 'the last word' >&2; exit 1"))
    assert len(str(caught.value)) < 1000


def test_a_child_that_keeps_the_pipe_is_neither_waited_for_nor_left(
    photo: Path, fake: Callable[[str], Path]
) -> None:
    start = time.monotonic()
    read(photo, fake(f"sleep 612.5 & {PICTURE}"), seconds=30)
    assert time.monotonic() - start < 5
    assert not any("612.5" in line for line in command_lines())


def command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = entry.read_text()
            if not is_dying(entry.parent):
                found.append(line)
    return found


def test_a_program_gets_nothing_that_it_does_not_need(
    photo: Path, fake: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    leaky = os.open(photo, os.O_RDONLY)
    os.set_inheritable(leaky, True)
    program = fake(
        "env; echo group $(cut -d' ' -f1,5 /proc/$$/stat); pwd; ulimit -c; ulimit -v; ulimit -t\n"
        "for fd in /proc/$$/fd/*; do echo fd $(readlink $fd); done"
    )
    limits = ProcessLimits(seconds=10, memory_bytes=1 << 30, cpu_seconds=77)
    lines = capture([str(program)], limits=limits, most_bytes=10_000).decode().splitlines()
    os.close(leaky)
    variables = {line.split("=")[0] for line in lines if "=" in line}
    assert variables <= {"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}
    group = next(line.split()[1:] for line in lines if line.startswith("group"))
    assert group[0] == group[1] != str(os.getpgrp())
    assert str(photo) not in {line.removeprefix("fd ") for line in lines}
    assert lines[lines.index("/") :][1:4] == ["0", str((1 << 30) // 1024), "77"]


def test_the_file_size_limit_holds(
    photo: Path, fake: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(MediaError):
        read(photo, fake(f"trap '' XFSZ; echo x > {tmp_path}/planted || exit 1; {PICTURE}"))
    assert (tmp_path / "planted").stat().st_size == 0


def test_processor_time_is_limited(photo: Path, fake: Callable[[str], Path]) -> None:
    with pytest.raises(MediaError, match="processor time"):
        read(photo, fake("while :; do :; done"), cpu_seconds=1, seconds=20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: None, "no executable file", id="missing"),
        pytest.param(lambda path: path.mkdir(), "no executable file", id="a folder"),
        pytest.param(lambda path: path.write_text("x"), "no executable file", id="not executable"),
        pytest.param(
            lambda path: (path.write_text("#!/nowhere\n"), path.chmod(0o755)),
            "could not be started",
            id="no interpreter",
        ),
        pytest.param(
            lambda path: (path.write_bytes(b"\x7fELF"), path.chmod(0o755)),
            "failed",
            id="not a program",
        ),
    ],
)
def test_what_cannot_be_run_is_named(
    make: Callable[[Path], None], message: str, photo: Path, tmp_path: Path
) -> None:
    program = tmp_path / "ffmpeg"
    make(program)
    with pytest.raises(MediaError, match=message) as caught:
        read(photo, program)
    assert str(program) in str(caught.value)


def test_runs_leave_no_process_descriptor_or_thread(
    photo: Path, fake: Callable[[str], Path], measured: Callable[[str], None]
) -> None:
    runs = int(os.environ.get("COSMOS_FAST_SOAK_RUNS", "40"))
    good, bad = fake(PICTURE), fake(PICTURE).with_name("bad")
    bad.write_text("#!/bin/sh\nexit 1\n", "utf-8")
    bad.chmod(stat.S_IRWXU)
    read(photo, good)
    before, threads = descriptors(), threading.active_count()
    for _ in range(runs // 2):
        read(photo, good)
        with pytest.raises(MediaError):
            read(photo, bad)
    assert descriptors() == before
    assert threading.active_count() == threads
    measured(f"{runs // 2 * 2} runs, {len(before)} descriptors before and after")


def test_a_picture_that_nobody_waits_for_leaves_nothing(
    photo: Path, fake: Callable[[str], Path]
) -> None:
    before, others = descriptors(), children()
    program = fake("exec sleep 100")
    with reading(photo, size=Size(16, 16), num_frames=1, ffmpeg=program) as wait:
        assert callable(wait)
        assert len(children() - others) == 1
    assert children() == others
    assert descriptors() == before
    with pytest.raises(InputError, match="finished or stopped"):
        wait()
