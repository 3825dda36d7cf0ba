"""Batches, long videos and the best of several as commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bad_jobs import job
from commands import ran
from cosmos_fast.config import VAEConfig
from cosmos_fast.jobs.ledger import verified
from cosmos_fast.media import write_png
from random_world import RANDOM_PROFILE, make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

SMALL = ["--height", "32", "--width", "48", "--num_video_frames", "5", "--num_steps", "1"]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return ran(capfd, [*arguments, *SMALL])

    return call


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    profile = replace(
        RANDOM_PROFILE,
        dit=replace(RANDOM_PROFILE.dit, num_layers=1, num_heads=1),
        vae=VAEConfig(base_dim=4),
    )
    folder = tmp_path_factory.mktemp("checkpoints")
    make_random_world(folder / "Cosmos-Predict2-2B-Video2World", profile)
    return folder


@pytest.fixture
def place(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(world)
    write_png("start.png", np.full((32, 48, 3), 90, np.uint8))
    return tmp_path


def model(place: Path) -> list[str]:
    return ["--model", "checkpoints/Cosmos-Predict2-2B-Video2World"]


def write_jobs(*lines: bytes) -> None:
    Path("jobs.jsonl").write_bytes(b"\n".join(lines))


def test_the_original_command_makes_its_list(run: Run, place: Path) -> None:
    write_jobs(job(prompt="prompt1"), job(prompt="prompt2", seed=9))
    code, out, err = run(
        "video2world", "--checkpoint_dir", "checkpoints", "--diffusion_transformer_dir",
        "Cosmos-Predict2-2B-Video2World", "--batch_input_path", "jobs.jsonl",
        "--num_input_frames", "1", "--disable_prompt_upsampler", "--video_save_folder", "made",
    )  # fmt: skip
    assert code == 0, err
    assert out == "made/jobs.jsonl.summary.json\n"
    assert Path("made/1.txt").read_text() == "prompt2"
    manifests = [json.loads(Path(f"made/{n}.json").read_bytes()) for n in range(2)]
    assert [one["arguments"]["seed"] for one in manifests] == [1, 9]
    assert manifests[0]["arguments"]["fit"] == "stretch"
    assert manifests[0]["video"]["crf"] == 25


def test_the_later_command_makes_its_list(run: Run, place: Path) -> None:
    entries = [
        {"input_video": "start.png", "prompt": "a", "output_video": "made/a.mp4"},
        {"input_video": "start.png", "prompt": "b"},
    ]
    Path("jobs.json").write_text(json.dumps(entries))
    code, out, err = run("video2world", *model(place), "--batch_input_json", "jobs.json", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["status"], told["summary"]["made"]) == ("ok", 2)
    assert Path("made/a.txt").read_text().startswith("[Prompt]\na\n")
    assert Path("output_1.mp4").exists()


def test_a_list_with_faults_ends_with_exit_code_4_and_resumes(run: Run, place: Path) -> None:
    write_jobs(job(prompt="a"), job(visual_input="gone.png"), job(prompt="b"))
    command = ["batch", "--jobs", "jobs.jsonl", *model(place)]
    code, out, err = run(*command)
    assert code == 4, err
    assert out == "outputs/jobs.jsonl.summary.json\n"
    assert "line 2: InputError: visual_input = " in err
    assert "2 made, 1 failed" in err
    code, _, err = run(*command)
    assert code == 2
    assert "resume it" in err
    write_png("gone.png", np.full((32, 48, 3), 90, np.uint8))
    code, _, err = run(*command, "--resume")
    assert code == 0, err
    assert "1 made, 2 kept" in err


def test_a_dry_run_tells_every_bad_line(run: Run, place: Path) -> None:
    write_jobs(job(), job(seed="1"), b"?", job(seed=-1), job(num_frames=6))
    code, _, err = run("batch", "--jobs", "jobs.jsonl", *model(place), "--dry_run")
    assert code == 2
    assert "5 jobs, 4 of them wrong" in err
    assert "error: jobs.jsonl:4: seed = -1" in err
    assert "error: jobs.jsonl:5: 6 frames cannot be made" in err
    assert "error: jobs.jsonl:2: seed = '1'" in err
    assert "error: jobs.jsonl:3: not valid JSON" in err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["batch"], "give --jobs"),
        (["batch", "--jobs", "gone.jsonl"], "cannot be read"),
        (["batch", "--jobs", "jobs.jsonl", "--input_root", "gone"], "--input_root"),
        (["batch", "--jobs", "jobs.jsonl", "--num_gpus", "2", "--device", "cuda:1"], "one GPU"),
        (["batch", "--jobs", "jobs.jsonl", "--out", "start.png"], "--out: 'start.png' is not a"),
        (["video2world", "--batch_input_json", "a", "--input_path", "b"], "contradict"),
        (["video2world", "--batch_input_path", "a", "--input_path", "b"], "contradict"),
        (["video2world", "--batch_input_path", "a", "--save_path", "b.mp4"], "contradict"),
        (["best-of-n", "--input_path", "start.png", "--prompt", "a"], "--prompt_refiner"),
        (["best-of-n", "--critic", "gone:a"], "MODULE:NAME"),
        (["rollout", "--prompt", "a"], "no input"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_a_usage_error(
    run: Run, place: Path, arguments: list[str], words: str
) -> None:
    write_jobs(job())
    code, _, err = run(*arguments, *model(place))
    assert code == 2, err
    assert words in err


def test_a_long_video_is_made_both_ways(run: Run, place: Path) -> None:
    code, out, err = run(
        "rollout", *model(place), "--input_path", "start.png", "--prompt", "a", "--num_chunks", "2",
        "--handover", "both", "--save_path", "made/long.mp4",
    )  # fmt: skip
    assert code == 0, err
    assert out == "made/long.mp4\nmade/long_file_route.mp4\n"
    assert err.count("seam PSNR") == 2
    manifest = json.loads(Path("made/long.json").read_bytes())
    assert manifest["video"]["frames"] == 9


CRITIC = """
from cosmos_fast.jobs import Judgement, judgement_of

def judge(frames, *, trials, seed):
    return Judgement(len(frames) / 10)

def mumble(frames, *, trials, seed):
    return judgement_of(["Hm."] * trials)
"""


def test_the_best_of_two_is_told(run: Run, place: Path) -> None:
    Path("my_critic_of_tests.py").write_text(CRITIC)
    common = ["best-of-n", "--save_path", "made", "--critic", "my_critic_of_tests:judge"]
    code, out, err = run(
        *common, *model(place), "--input_path", "start.png", "--prompt", "a", "--seed", "3"
    )
    assert code == 0, err
    assert out == "made/start_seed3.mp4\nmade/start_seed4.mp4\n"
    assert Path("made/start_seed4_score050.json").exists()
    code, out, err = run(*common, "--skip_generation", "--json")
    assert code == 0, err
    assert json.loads(out)["best"] == "made/start_seed3.mp4"
    assert "can be read" not in err
    code, _, err = run(*common[:-1], "my_critic_of_tests:mumble", "--skip_generation")
    assert code == 0, err
    assert err.count("warning: none of the critic's answers can be read") == 2


def test_best_of_n_looks_before_it_works(run: Run, place: Path) -> None:
    """At its folder before it loads, at every video before it asks; a dry run makes nothing."""
    Path("my_critic_of_tests.py").write_text(CRITIC)
    Path("file").write_text("no folder")
    start = ["best-of-n", "--critic", "my_critic_of_tests:judge"]
    order = [*start, *model(place), "--input_path", "start.png", "--prompt", "a"]
    for more in ([], ["--dry_run"]):
        code, _, err = run(*order, "--save_path", "file", *more)
        assert code == 2, err
        assert "--save_path: 'file' is not a folder" in err
        assert "find checkpoint" not in err
    code, out, err = run(*order, "--save_path", "made", "--dry_run")
    assert code == 0, err
    assert "made/start_seed0.mp4" in out
    code, _, err = run(*order, "--save_path", "made", "--num_generations", "1")
    assert code == 0, err
    before = sorted(Path("made").iterdir())
    again = [*start, "--save_path", "made", "--skip_generation"]
    code, out, err = run(*again, "--dry_run")
    assert (code, out) == (0, "made/start_seed0.mp4\n"), err
    Path("made/zz.mp4").write_bytes(b"of another program")
    for more in ([], ["--dry_run"]):
        code, _, err = run(*again, *more)
        assert code == 2, err
        assert "made/zz.mp4: there is no manifest" in err
        assert "%" not in err, "nothing was judged"
    Path("made/zz.mp4").unlink()
    assert sorted(Path("made").iterdir()) == before


@pytest.mark.slow
def test_two_workers_share_a_list(place: Path) -> None:
    write_jobs(*(job(prompt=f"job {n}") for n in range(4)), job(seed=-1))
    command = [sys.executable, "-m", "cosmos_fast", "batch", "--jobs", "jobs.jsonl", *model(place)]
    found = subprocess.run(
        [*command, *SMALL, "--num_gpus", "2", "--device", "cpu", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 4, found.stderr
    summary = json.loads(found.stdout)["summary"]
    assert (summary["made"], summary["failed"], summary["left"]) == (4, 1, 0)
    assert {path.name for path in Path("outputs").iterdir()} == {
        *(f"{n}{end}" for n in range(4) for end in (".mp4", ".txt", ".json")),
        "jobs.jsonl.journal", "jobs.jsonl.summary.json",
    }  # fmt: skip


def start(place: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cosmos_fast", "batch", "--jobs", "jobs.jsonl"]
    small: list[Any] = ["--model", "ballworld", "--num_video_frames", "5", "--num_steps", "2"]
    return subprocess.Popen(
        [*command, *small, *more], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


@pytest.mark.slow
def test_the_ball_world_is_killed_at_three_points_and_finishes(place: Path) -> None:
    """While the first job is read, in the middle of a denoising, and while one is written."""
    write_png("start.png", np.full((96, 160, 3), 60, np.uint8))
    write_jobs(*(job(prompt=f"A red ball is at rest under gravity. {n}") for n in range(4)))
    for point, more in (("s  encode", ()), ("1/4 made", ("--resume",)), ("step 3", ("--resume",))):
        process = start(place, *more)
        assert process.stderr is not None
        for line in process.stderr:
            if point in line:
                break
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
    last = start(place, "--resume")
    _, told = last.communicate(timeout=300)
    assert last.returncode == 0, told
    assert "kept" in told
    assert {path.name for path in Path("outputs").iterdir()} == {
        *(f"{n}{end}" for n in range(4) for end in (".mp4", ".txt", ".json")),
        "jobs.jsonl.journal", "jobs.jsonl.summary.json",
    }  # fmt: skip
    for video in Path("outputs").glob("*.mp4"):
        key = json.loads(video.with_suffix(".json").read_bytes())["job"]["key"]
        assert verified(video, key) is not None
