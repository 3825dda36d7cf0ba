"""Ctrl-C and SIGTERM at every stage: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosmos_fast.files import TEMPORARY_PREFIX
from leftovers import is_dying
from random_world import RANDOM_PROFILE, make_random_world

DEADLINE = 5.0
"""Seconds from the signal to the end of the process, promised to users."""

STAGES = ("load transformer", "denoise", "decode", "write")

FILES = {"clip.mp4", "clip.txt", "clip.json"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and a picture: every stage is there, none takes long."""
    folder = tmp_path_factory.mktemp("inputs")
    make_random_world(folder / "world", replace(RANDOM_PROFILE, num_steps=2))
    Image.fromarray(np.full((96, 160, 3), 60, dtype=np.uint8)).save(folder / "start.png")
    return folder


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cosmos_fast", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], stage: str) -> None:
    """Reads the plain progress lines until ``stage`` begins."""
    assert process.stderr is not None
    for line in process.stderr:
        if f" s  {stage}" in line:
            return
    raise AssertionError(f"{stage} never began; exit code {process.wait()}")


def members(session: int) -> list[str]:
    """Command lines of what still runs in a session; the dead have none."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and not is_dying(folder):
            try:
                if os.getsid(int(folder.name)) == session:
                    found.append((folder / "cmdline").read_text(errors="replace"))
            except (ProcessLookupError, FileNotFoundError, PermissionError):
                continue
    return [line for line in found if line]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_at_every_stage(tmp_path: Path, inputs: Path, stage: str) -> None:
    process = start(
        "video2world", "--model", str(inputs / "world"), "--input_path", str(inputs / "start.png"),
        "--prompt", "Fog.", "--save_path", str(tmp_path / "clip.mp4"),
    )  # fmt: skip
    wait_for(process, stage)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: ffmpeg is told as well
    sent = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - sent < DEADLINE
    assert err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    # The last stage may have ended in the same moment: then all is there, and never a part.
    assert names(tmp_path) in ((set(), FILES) if stage == "write" else (set(),))
    assert members(process.pid) == []


@pytest.mark.slow
def test_sigterm_during_the_demo(tmp_path: Path) -> None:
    process = start("demo", "--num_steps", "1", "--video_save_folder", str(tmp_path))
    wait_for(process, "decode")
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert names(tmp_path) == {"demo_start.png"}
    assert members(process.pid) == []


STUCK = """
import ctypes, sys, tempfile, os
from pathlib import Path
from cosmos_fast.cli.exits import ExitCode
from cosmos_fast.cli.interrupt import interruptible
from cosmos_fast.files import TEMPORARY_PREFIX

folder = Path(sys.argv[1])
(folder / f"{TEMPORARY_PREFIX}of-somebody-else").touch()
held = (folder / f"{TEMPORARY_PREFIX}ours").open("wb")
child = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")
with interruptible():
    print("stuck", flush=True)
    libc = ctypes.CDLL(None)
    while True:
        try:
            while True:
                libc.usleep(600_000)  # code that a signal cannot stop for long
        except BaseException:
            continue
"""


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_a_process_that_cannot_unwind_is_ended(tmp_path: Path, signals: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    for _ in range(signals):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    assert process.wait(60) == 130
    process.stdout.close()
    assert time.monotonic() - sent < DEADLINE
    assert members(process.pid) == []
    assert [path.name for path in tmp_path.iterdir()] == [f"{TEMPORARY_PREFIX}of-somebody-else"]


def test_handlers_are_put_back() -> None:
    from cosmos_fast.cli.interrupt import interruptible

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


LAST_WORDS = """
import os, signal, sys
import cosmos_fast.cli
from cosmos_fast.errors import RankLost

def fail(arguments):
    try:
        raise RankLost("rank 1 died")
    finally:
        if "finally" in arguments:
            os.kill(os.getpid(), signal.SIGTERM)

class Late:
    comes = True

    def write(self, text):
        if self.comes and when != "finally":
            self.comes = False  # a second one would ask for the end at once
            os.kill(os.getpid(), signal.SIGTERM)
        return sys.__stderr__.write(text)

    def flush(self):
        sys.__stderr__.flush()

cosmos_fast.cli._invoke = fail
when = sys.argv[1]
sys.stderr = Late()
sys.exit(cosmos_fast.cli.main())
"""


@pytest.mark.parametrize(
    ("when", "code", "said"),
    [
        pytest.param("finally", 143, "error: interrupted: rank 1 died\n", id="cleaning up"),
        pytest.param("words", 1, "error: rank 1 died\n", id="saying why"),
    ],
)
def test_why_a_command_fails_is_said_whole(when: str, code: int, said: str) -> None:
    """torchrun ends the ranks that are left while they fail for the one that died."""
    run = subprocess.run([sys.executable, "-c", LAST_WORDS, when], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (code, said)
