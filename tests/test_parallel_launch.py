"""``--num_gpus`` and torchrun: real processes, real signals, one video."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
import torch
from PIL import Image

from cosmos_fast.cli import main
from dying_rank_process import EXIT_CODE
from random_world import make_random_world
from test_cli_interrupt import FILES, members, names, start, wait_for
from test_parallel_engine import PROFILE

DEADLINE: Final = 10.0
"""Seconds from the end of one rank, or a signal, to the end of all, promised to users."""

TORCHRUN: Final = ("-m", "torch.distributed.run", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_random_world(folder / "world", PROFILE)
    Image.new("RGB", (48, 32), (60, 90, 30)).save(folder / "start.png")
    return folder


@pytest.fixture(autouse=True)
def _one_prompt_cache(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text encoder is loaded once in this module."""
    monkeypatch.setenv("COSMOS_FAST_CACHE", str(inputs / "cache"))


def command(inputs: Path, output: Path, *more: str, device: str = "cpu") -> list[str]:
    return [
        "video2world",
        *("--model", str(inputs / "world"), "--input_path", str(inputs / "start.png")),
        *("--prompt", "a ball", "--save_path", str(output / "clip.mp4"), "--device", device),
        *more,
    ]


def started_by_torchrun(*arguments: str) -> subprocess.Popen[str]:
    """Two ranks; what they print to stderr can be read."""
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, "-m", "cosmos_fast", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def eventually_alone(session: int) -> None:
    """Waits for the last process of a session to end."""
    end = time.monotonic() + DEADLINE
    while left := members(session):
        assert time.monotonic() < end, left
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["-m", "cosmos_fast"], id="by itself"),
        pytest.param([*TORCHRUN, "-m", "cosmos_fast"], id="torchrun"),
    ],
)
def test_two_ranks_write_one_video(launcher: list[str], inputs: Path, tmp_path: Path) -> None:
    alone = TORCHRUN[1] not in launcher
    more = ["--num_gpus", "2"] if alone else []
    run = subprocess.run(
        [
            sys.executable,
            *launcher,
            *command(inputs, tmp_path, "--num_steps", "2", "--json", *more),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    printed = json.loads(line)
    assert names(tmp_path) == FILES
    assert printed["report"]["parallel"]["ranks"] == 2
    assert printed["report"]["parallel"]["guidance_branches"] == 2
    assert run.stderr.count("wrote ") == 3
    assert "Traceback" not in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_killed_rank_ends_the_command(device: str, inputs: Path, tmp_path: Path) -> None:
    """On cards, the others wait inside NCCL's kernels."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    more = ("--num_gpus", "2", "--num_steps", "900")
    process = start(*command(inputs, tmp_path, *more, device=device))
    try:
        wait_for(process, "denoise")
        (rank,) = (pid for pid in children(process.pid) if "spawn_main" in line_of(pid))
        began = time.monotonic()
        os.kill(rank, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < DEADLINE
        assert process.returncode == 1
        assert "error: rank 1 died; rank 1 was ended by SIGKILL" in errors
        assert names(tmp_path) == set()
        eventually_alone(process.pid)
    finally:
        process.kill()


def test_a_rank_that_ends_before_they_meet_ends_the_command() -> None:
    """Also where it can be waited for only after its pipes have closed."""
    script = Path(__file__).with_name("dying_rank_process.py")
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=50, check=False
    )
    assert found.returncode == 1, found.stderr
    assert f"error: rank 1 ended with exit code {EXIT_CODE}" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_of_torchrun_is_named(killed: int, inputs: Path, tmp_path: Path) -> None:
    """Whoever is first, the ranks' own watch or torchrun, which ends those that are left."""
    process = started_by_torchrun(*command(inputs, tmp_path, "--num_steps", "900"))
    try:
        wait_for(process, "denoise")
        (rank,) = (
            pid for pid in children(process.pid) if f"LOCAL_RANK={killed}" in environment_of(pid)
        )
        began = time.monotonic()
        os.kill(rank, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < DEADLINE
        assert re.search(rf"^error: (interrupted: )?rank {killed} died", errors, re.MULTILINE), (
            errors
        )
        assert names(tmp_path) == set()
        eventually_alone(process.pid)
    finally:
        process.kill()


@pytest.mark.slow
def test_torchrun_that_is_told_to_end_blames_no_rank(inputs: Path, tmp_path: Path) -> None:
    process = started_by_torchrun(*command(inputs, tmp_path, "--num_steps", "900"))
    try:
        wait_for(process, "denoise")
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert re.findall("^error: .*", errors, re.MULTILINE) == ["error: interrupted"]
        assert names(tmp_path) == set()
        eventually_alone(process.pid)
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "killed"])
def test_no_rank_outlives_the_command(how: str, inputs: Path, tmp_path: Path) -> None:
    process = start(*command(inputs, tmp_path, "--num_gpus", "2", "--num_steps", "900"))
    try:
        wait_for(process, "denoise")
        began = time.monotonic()
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.kill()
        _, errors = process.communicate(timeout=60)
        eventually_alone(process.pid)
        assert time.monotonic() - began < DEADLINE
        if how == "Ctrl-C":
            assert process.returncode == 130
            assert names(tmp_path) == set()
            assert errors.count("error:") == 1
    finally:
        process.kill()


def test_more_gpus_than_there_are_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = command(inputs, tmp_path, "--num_gpus", "64")
    given[given.index("--device") + 1] = "auto"
    assert main(given) == 2
    assert "--num_gpus 64: torch sees" in capsys.readouterr().err


def test_the_numbers_of_torchrun_and_the_command_must_agree(
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert main(command(inputs, tmp_path, "--num_gpus", "3")) == 2
    assert "--num_gpus 3: torchrun started 2 processes" in capsys.readouterr().err
    monkeypatch.delenv("MASTER_PORT")
    assert main(command(inputs, tmp_path)) == 2
    assert "'MASTER_PORT' is missing" in capsys.readouterr().err


def children(pid: int) -> list[int]:
    return [
        int(child)
        for listing in Path(f"/proc/{pid}/task").glob("*/children")
        for child in listing.read_text().split()
    ]


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text("utf-8", errors="replace").split("\0")


def line_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")


@pytest.mark.parametrize(
    ("more", "cure"),
    [
        pytest.param(["batch", "--jobs", "jobs.jsonl"], "--num_gpus N", id="batch"),
        pytest.param(
            ["video2world", "--batch_input_json", "jobs.jsonl"], "--num_gpus N", id="list"
        ),
    ],
)
def test_torchrun_is_refused_where_ranks_would_repeat_the_work(
    more: list[str],
    cure: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = json.dumps({"visual_input": str(inputs / "start.png"), "prompt": "a ball"})
    Path("jobs.jsonl").write_text(line)
    seat = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in {**seat, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert main([*more, "--model", str(inputs / "world"), "--prompt", "a ball"]) == 2
    assert cure in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.jsonl"]
