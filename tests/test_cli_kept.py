"""``rollout --resume``: commands that are killed and interrupted, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from commands import ran
from cosmos_fast.cli.kept import Keeping
from cosmos_fast.config import VAEConfig
from cosmos_fast.jobs.kept import KeptClips
from cosmos_fast.media import write_png
from random_world import RANDOM_PROFILE, make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

GIVEN = [
    *("rollout", "--model", "world", "--input_path", "start.png", "--prompt", "A heron."),
    *("--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "40"),
    *("--num_chunks", "4", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    profile = replace(RANDOM_PROFILE, vae=VAEConfig(base_dim=4))
    return make_random_world(tmp_path_factory.mktemp("world"), profile)


@pytest.fixture
def place(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world").symlink_to(world)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    write_png("start.png", pixels)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Makes the long video in this process: exit code, stdout, stderr."""
    return lambda *arguments: ran(capfd, [*GIVEN, *arguments])


def begun(clip: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that has made ``clip``."""
    # A device is known by its threads, which change sums.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-m", "cosmos_fast", *GIVEN, *arguments],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **threads},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if f"clip {clip} is made" in line:
            return process
    raise AssertionError(f"clip {clip} was never made; exit code {process.wait()}")


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def told(out: str) -> list[dict[str, Any]]:
    videos: list[dict[str, Any]] = json.loads(out)["videos"]
    return videos


FILES = {"a.npy", "a.txt", "a.json"}


@pytest.mark.slow
def test_a_killed_command_goes_on_behind_the_last_clip(run: Run, place: Path) -> None:
    code, out, err = run("--save_path", "whole/a.npy", "--json")
    assert code == 0, err
    (whole,) = told(out)
    assert names("whole") == FILES
    process = begun("2 of 4", "--save_path", "out/a.npy")
    process.kill()
    process.communicate()
    (kept,) = Path("out").iterdir()
    assert kept.name.startswith(".cosmos-fast-clips-")
    clips = len(list(kept.glob("clip-*")))
    assert clips in (2, 3, 4), "it may have gone on until the signal came"
    stamps = {path: path.stat().st_mtime_ns for path in kept.glob("clip-*")}

    for change in (["--seed", "1"], ["--prompt", "A stork."], ["--num_steps", "41"]):
        code, _, err = run("--save_path", "out/a.npy", "--resume", *change)
        assert code == 2
        assert "or leave --resume out to begin again" in err
        assert "clips are kept: the same command" not in err
    code, _, err = run("--save_path", "out/a.npy", "--resume", "--dry_run")
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in kept.glob("clip-*")} == stamps

    code, out, err = run("--save_path", "out/a.npy", "--resume", "--json")
    assert code == 0, err
    (resumed,) = told(out)
    np.testing.assert_array_equal(np.load("out/a.npy"), np.load("whole/a.npy"))
    assert resumed["drift"] == whole["drift"]
    assert resumed["report"]["latents_sha256"] == whole["report"]["latents_sha256"]
    assert Path("out/a.txt").read_text() == Path("whole/a.txt").read_text()
    assert f"{clips} of 4 clips were kept from before" in resumed["report"]["notes"]
    assert f"clips that are kept: {clips}; going on" in err
    made = [number for number in range(1, 5) if f"clip {number} of 4 is made" in err]
    assert made == list(range(clips + 1, 5))
    assert names("out") == FILES


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_both_ways_go_on(run: Run, place: Path) -> None:
    both = ("--save_path", "out/a.npy", "--handover", "both")
    process = begun("4 of 4", *both)
    assert process.stderr is not None
    for line in process.stderr:
        if "clip 1 of 4 is made" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.splitlines()[-1]
    assert last.endswith(" of 8 clips are kept: the same command with --resume goes on"), err
    assert last.removeprefix("error: interrupted; ")[0] in "5678", err
    assert names("out") > FILES
    code, out, err = run(*both, "--resume", "--json")
    assert code == 0, err
    assert "note: 4 of 4 clips were kept from before" in err
    assert "clip 1 of 4 is made" not in err
    assert names("out") == FILES | {f"a_file_route{end}" for end in (".npy", ".txt", ".json")}
    first, second = told(out)
    assert first["report"]["arguments"]["handover"] == "memory"
    assert second["report"]["arguments"]["handover"] == "file"


def test_what_an_earlier_run_kept_is_replaced_or_in_use(run: Run, place: Path) -> None:
    """The folder is found by the video's name, and one command has it at a time."""
    short = ("--save_path", "a.npy", "--num_steps", "1")
    keeping = Keeping([Path("a.npy")], 4, resume=False)
    (folder,) = keeping._folders
    with KeptClips(folder):
        code, _, err = run(*short, "--resume")
        assert (code, "another process is making this long video" in err) == (2, True)
    folder.mkdir()
    (folder / "clip-00000.safetensors").write_bytes(b"?")
    (folder / "rollout.json").write_bytes(b"?")
    code, _, err = run(*short)
    assert code == 0, err
    assert "note: clips of an earlier run replaced: 1; --resume goes on" in err
    assert names(".") == FILES | {"world", "start.png"}


def test_nothing_is_left_where_nothing_was_made(run: Run, place: Path) -> None:
    torn = bytearray(Path("start.png").read_bytes())
    torn[100:200] = bytes(100)  # found out when it is decoded
    Path("start.png").write_bytes(torn)
    code, _, err = run("--save_path", "new/out/a.npy", "--num_steps", "1")
    assert (code, "are kept" in err) == (1, False)
    assert names(".") == {"world", "start.png"}


FORCED = """
import time
from cosmos_fast.cli.interrupt import interruptible, leaving
with leaving(lambda: "2 clips are kept"), interruptible():
    print("stuck", flush=True)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue
"""


@pytest.mark.slow
def test_a_process_that_is_ended_by_force_says_it_as_well() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORCED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    for _ in range(2):
        time.sleep(0.3)  # two that wait together are one
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "error: interrupted; 2 clips are kept\n")
