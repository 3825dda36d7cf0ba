"""Ctrl-C and SIGTERM at every stage: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosmos_fast.files import TEMPORARY_PREFIX

DEADLINE = 5.0
"""Seconds from the signal to the end of the process, promised to users."""

STAGES = ("load transformer", "text", "denoise", "step 1 ", "decode", "write")


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cosmos_fast",
            "demo",
            "--num_steps",
            "2",
            "--video_save_folder",
            str(folder),
        ],
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
        if folder.name.isdigit():
            try:
                if os.getsid(int(folder.name)) == session:
                    found.append((folder / "cmdline").read_text(errors="replace"))
            except (ProcessLookupError, FileNotFoundError, PermissionError):
                continue
    return [line for line in found if line]


def left_behind(folder: Path) -> list[str]:
    """Files of an unfinished video: under a temporary name, or under the final one."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.name.startswith(TEMPORARY_PREFIX) or path.stem == "demo"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_at_every_stage(tmp_path: Path, stage: str) -> None:
    process = start(tmp_path)
    wait_for(process, stage)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: ffmpeg is told as well
    sent = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - sent < DEADLINE
    assert err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert left_behind(tmp_path) == []
    assert members(process.pid) == []


@pytest.mark.slow
def test_sigterm_while_decoding(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for(process, "decode")
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert left_behind(tmp_path) == []
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
