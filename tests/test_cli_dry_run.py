"""What a command says that it would do, before it does anything, and what it refuses then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from commands import ran
from documented import (
    EXAMPLE_1,
    EXAMPLE_1B,
    HIDDEN_2,
    HIDDEN_3,
    HIDDEN_4,
    HIDDEN_5,
    NEGATIVE,
    PROMPT,
    furnish,
    make_released,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

LATER_RUN = [
    "video2world", "--input_path", "assets/video2world/input0.jpg", "--prompt", "p", "--device",
    "cpu", "--model", "nvidia/Cosmos-Predict2-2B-Video2World",
]  # fmt: skip
PARTS = ("model nvidia/", "text encoder T5", "guardrail Cosmos-", "prompt upsampler nvidia/")
OFF = "--disable_guardrail --disable_prompt_refiner"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return ran(capfd, arguments)

    return call


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_released(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def place(tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which every path of the original's commands exists."""
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path, released)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "size", "name"),
    [
        (EXAMPLE_1, "2B", "video2world_2b"),
        (
            EXAMPLE_1.replace("2B", "14B").replace("_2b", "_14b"),
            "14B",
            "video2world_14b",
        ),
    ],
    ids=["example 1", "example 2"],
)
def test_visible_examples_resolve(
    run: Run, place: Path, command: str, size: str, name: str
) -> None:
    code, out, err = run(*words(command), "--dry-run", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    found = document["settings"]
    assert document["problems"] == []
    assert found["generation"] == "original"
    assert found["source"] == f"Cosmos-Predict2-{size}-Video2World"
    assert found["output"] == f"outputs/{name}.mp4"
    assert (found["height"], found["width"], found["num_frames"]) == (432, 768, 81)
    assert (found["num_steps"], found["seed"], found["fps"]) == (35, 1, 24.0)
    assert (found["prompt"], found["negative_prompt"]) == (PROMPT, NEGATIVE)
    assert (found["upsampler"], found["guardrail"]) == ("off", "off")
    assert found["notes"] == [
        "--offload_prompt_upsampler has no effect: the prompt upsampler is off"
    ]


@pytest.mark.parametrize(
    "command",
    [EXAMPLE_1B, HIDDEN_2, HIDDEN_3, HIDDEN_4],
    ids=["1b", "hidden 2", "hidden 3", "hidden 4"],
)
def test_an_upsampler_that_is_not_there_is_told_with_its_cures(
    run: Run, place: Path, command: str
) -> None:
    code, out, err = run(*words(command))
    assert (code, out) == (2, "")
    assert "error: prompt upsampler 'Qwen/Qwen2.5-VL-7B-Instruct': no config.json in " in err
    assert "cosmos-fast download --prompt_upsampler --model_sizes " in err
    assert " --checkpoint_dir checkpoints, or write the prompt in full" in err
    assert "and add --disable_prompt_upsampler" in err


def test_a_guardrail_that_is_not_there_blocks_a_dry_run(run: Run, place: Path) -> None:
    code, _, err = run(*words(EXAMPLE_1.replace("--disable_guardrail", "")), "--dry-run")
    assert code == 3
    assert "error: guardrail: not there: nvidia/Cosmos-Guardrail1 below checkpoints" in err
    assert "meta-llama/Llama-Guard-3-8B below checkpoints" in err
    assert "cosmos-fast download --guardrail" in err
    assert "--disable_guardrail" in err


def test_hidden_5_reads_its_list(run: Run, place: Path) -> None:
    jobs = place / "assets/diffusion/batch_inputs/video2world_wo_ps.jsonl"
    jobs.parent.mkdir(parents=True)
    picture = "assets/diffusion/video2world_input0.jpg"
    jobs.write_text(json.dumps({"prompt": PROMPT, "visual_input": picture}) + "\n")
    code, _, err = run(*words(HIDDEN_5), "--dry_run", "--json")
    assert code == 3
    assert "error: guardrail: not there" in err
    code, out, err = run(*words(HIDDEN_5), "--disable_guardrail", "--dry_run", "--json")
    assert (code, err) == (0, "1 jobs, 0 of them wrong\n")
    found = json.loads(out)["settings"]
    assert found["batch_folder"] == "diffusion-video2world-2b-batch-wo-ps"
    assert found["num_conditional_frames"] == 9


def test_underscores_and_dashes_are_alike(run: Run, place: Path) -> None:
    first = run(*words(EXAMPLE_1), "--dry_run", "--json")
    dashed = [w.replace("_", "-") if w.startswith("--") else w for w in words(EXAMPLE_1)]
    second = run(*dashed, "--dry-run", "--json")
    assert first == second
    assert first[0] == 0


def test_an_underscore_in_a_value_stays(run: Run, place: Path) -> None:
    code, out, _ = run(*words(EXAMPLE_1), "--dry-run", "--json", "--prompt", "--a_b")
    assert code == 0
    assert json.loads(out)["settings"]["prompt"] == "--a_b"


def test_dry_run_lists_values_and_where_they_come_from(run: Run, place: Path) -> None:
    code, out, err = run(*words(EXAMPLE_1), "--dry-run")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["height"] == ["command", "line", "432"]
    assert rows["seed"] == ["original", "default", "1"]
    assert rows["guidance"] == ["profile", "1.0"]
    starts = {line.index(" ".join(rows[line.split()[0]][2:])) for line in out.splitlines()
              if line.startswith(("height", "prompt", "negative_prompt", "input"))}  # fmt: skip
    assert len(starts) == 1, "values stand below one another, however long they are"
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        (
            "--input_image_or_video_path emty.png",
            "--input_image_or_video_path: 'emty.png' is not there; did you mean 'empty.png'?",
        ),
        ("--input_image_or_video_path no/a.jpg", "there is no folder 'no'"),
        ("--input_image_or_video_path assets", "'assets' is not a file but a folder; name"),
        ("--input_image_or_video_path /dev/zero", "'/dev/zero' is not a file but a device; name"),
        ("--input_image_or_video_path pipe", "'pipe' is not a file but a pipe; name"),
        ("--input_image_or_video_path empty.png", "'empty.png' is empty"),
        ("--input_image_or_video_path text.png", "'text.png' is no picture or video: it is text"),
        ("--diffusion_transformer_dir other", "'checkpoints/other' is not there; fetch it with"),
        ("--vae none.pth", "--vae: 'none.pth' is not there"),
        ("--num_input_frames 9", "is one picture; 9 frames need a video"),
        ("--video_save_folder empty.png", "'empty.png' is not a folder"),
        (
            "--video_save_folder /proc/nope",
            "--video_save_folder: nothing may be written to '/proc'",
        ),
        ("--device cuda:99", "--device cuda:99: torch sees "),
        (
            "--video_save_folder . --video_save_name own --input_image_or_video_path own.mp4",
            "'own.mp4' would replace the input",
        ),
        ("--video_save_folder . --video_save_name folder", "'folder.mp4' is a folder"),
    ],
)
def test_dry_run_checks_every_path(run: Run, place: Path, extra: str, problem: str) -> None:
    (place / "empty.png").touch()
    (place / "own.mp4").write_bytes(Path("assets/video2world/input0.jpg").read_bytes())
    (place / "folder.mp4").mkdir()
    (place / "text.png").write_text("no picture at all\n")
    os.mkfifo(place / "pipe")
    for mode in ([], ["--dry-run"]):
        code, _, err = run(*words(EXAMPLE_1 + extra), *mode)
        assert code == 2
        assert err.startswith("error: ")
        assert problem in err
        assert err.count("\n") == 1
    code, out, _ = run(*words(EXAMPLE_1 + extra), "--dry-run", "--json")
    [listed] = json.loads(out)["problems"]
    assert problem in listed


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_dry_run_refuses_a_read_only_folder(run: Run, place: Path) -> None:
    (place / "sealed").mkdir(mode=0o500)
    code, _, err = run(*words(EXAMPLE_1 + "--video_save_folder sealed/deep"), "--dry-run")
    assert code == 2
    assert "nothing may be written to 'sealed'" in err


def test_a_misspelt_model_is_told_beside_a_missing_part(run: Run, place: Path) -> None:
    picture = "assets/video2world/input0.jpg"
    given = ["--model", "balworld", "--input_path", picture, "--prompt", "p", "--natten"]
    _, _, err = run("video2world", *given)
    assert "sparse-attention part" in err
    assert "model: 'balworld' is not there; a hub id reads owner/name" in err


def test_a_long_value_goes_on_below_itself_on_a_terminal(place: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    words_of_it = " ".join(f"word{number}" for number in range(40))
    command = [*words(EXAMPLE_1), "--prompt", words_of_it, "--dry-run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cosmos_fast", *command],
        stdout=terminal,
        env={**os.environ, "COLUMNS": "90"},
    )
    os.close(terminal)
    told = b""
    while True:
        try:
            told += os.read(controller, 4096)
        except OSError:  # the other end of a pseudo-terminal is closed
            break
    os.close(controller)
    assert process.wait(60) == 0
    lines = told.decode().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("prompt "))
    column = lines[first].index("word0")
    rest = [line for line in lines[first + 1 :] if line.startswith(" ")]
    assert len(rest) >= 3
    assert all(line.index("word") == column for line in rest[:3])
    assert max(map(len, lines)) <= 90


def test_a_dry_run_says_what_would_be_fetched(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
    (place / "checkpoints").unlink()
    code, out, err = run(*LATER_RUN, "--dry_run")
    assert (code, err) == (0, "")
    notes = [line.split(None, 1)[1] for line in out.splitlines() if line.startswith("note ")]
    assert len(notes) == 4
    for note, part in zip(notes, PARTS, strict=True):
        assert note.startswith(part)
        assert note.endswith(" is not on this machine; it would be fetched")
    off = ["--disable_guardrail", "--disable_prompt_refiner", "--dry_run", "--json"]
    code, out, _ = run(*LATER_RUN, *off)
    assert (code, len(json.loads(out)["settings"]["notes"])) == (0, 2)
    code, out, err = run(*LATER_RUN, "--local_files_only", "--dry_run", "--json")
    assert code == 2
    told = json.loads(out)["problems"]
    for problem, part in zip(told, PARTS, strict=True):
        assert problem.startswith(part)
        assert "--local_files_only forbids fetching it" in problem
    assert run(*LATER_RUN, "--local_files_only")[0] == 2


def test_a_missing_text_encoder_is_told_in_flags_before_loading(run: Run, place: Path) -> None:
    import shutil

    shutil.copytree("checkpoints/Cosmos-Predict2-2B-Video2World", "alone/Cosmos-Predict2-2B")
    shutil.rmtree("alone/Cosmos-Predict2-2B/text_encoder")
    (place / "checkpoints").unlink()
    given = ["--input_path", "assets/video2world/input0.jpg", "--prompt", "p", "--device", "cpu"]
    off = ["--disable_guardrail", "--disable_prompt_refiner"]
    for mode in ([], ["--dry_run"]):
        code, _, err = run(
            "video2world", "--model", "alone/Cosmos-Predict2-2B", *given, *off, *mode
        )
        assert code == 2
        assert "error: --text_encoder: none is given, and beside 'alone/Cosmos-Predict2-2B'" in err
        assert "name its folder, or fetch it with cosmos-fast download" in err
        assert "TextEmbedding" not in err


def test_a_video_never_takes_what_stands_beside_another(run: Run, place: Path) -> None:
    (place / "a.mkv").touch()
    (place / "a.json").write_text(json.dumps({"video": {"file": "a.mkv"}}))
    command = [*LATER_RUN[:-1], "checkpoints/Cosmos-Predict2-2B-Video2World", *words(OFF)[1:]]
    code, _, err = run(*command, "--dry_run", "--save_path", "a.npy")
    assert code == 2
    assert "--save_path: 'a.npy' would replace the .txt and .json that stand beside 'a.mkv'" in err
    assert run(*command, "--dry_run", "--save_path", "a.mkv")[0] == 0
    (place / "a.mkv").unlink()
    assert run(*command, "--dry_run", "--save_path", "a.npy")[0] == 0
