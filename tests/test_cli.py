"""The command line as a whole: what people type, what it answers, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from attacks.checkpoints.fake_hub import FakeHub
from cosmos_fast import __version__
from cosmos_fast.cli import main
from cosmos_fast.cli.future_commands import FUTURE_COMMANDS
from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS
from cosmos_fast.weights import find_checkpoint, load_dit
from random_world import RANDOM_PROFILE, make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

PROMPT = "Rain falls on an empty harbour while a small ferry leaves the quay."
NEGATIVE = "Blurred and shaking."


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        sys.stdout.flush()
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as the original's download leaves it, with small random models."""
    root = tmp_path_factory.mktemp("checkpoints")
    profile = replace(RANDOM_PROFILE, toy=False)
    for size in ("2B", "14B"):
        make_random_world(root / f"Cosmos-Predict2-{size}-Video2World", profile)
    return root


@pytest.fixture
def place(tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which every path of the original's commands exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(released)
    for name in ("assets/video2world/input0.jpg", "assets/diffusion/video2world_input0.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
        Image.fromarray(picture).save(path)
    return tmp_path


EXAMPLE_1 = f"""
    --checkpoint_dir checkpoints
    --input_image_or_video_path assets/video2world/input0.jpg
    --num_input_frames 1
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --offload_prompt_upsampler
    --disable_prompt_upsampler
    --disable_guardrail
    --prompt "{PROMPT}"
    --negative_prompt "{NEGATIVE}"
    --height 432 --width 768 --num_video_frames 81
    --num_steps 35
    --video_save_name video2world_2b
"""
EXAMPLE_1B = f"""
    --checkpoint_dir checkpoints
    --prompt_upsampler_dir Qwen/Qwen2.5-VL-7B-Instruct
    --input_image_or_video_path assets/video2world/input0.jpg
    --num_input_frames 1
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --offload_prompt_upsampler
    --disable_guardrail
    --prompt "A harbour in the rain."
    --negative_prompt "{NEGATIVE}"
    --height 432 --width 768 --num_video_frames 81
    --num_steps 35
    --video_save_name video2world_2b_prompt_upsampled
"""
HIDDEN_2 = """
    --checkpoint_dir checkpoints
    --diffusion_transformer_dir Cosmos-Predict2-14B-Video2World
    --input_image_or_video_path assets/diffusion/video2world_input0.jpg
    --num_input_frames 1
    --offload_tokenizer
    --offload_diffusion_transformer
    --offload_text_encoder_model
    --offload_prompt_upsampler
    --offload_guardrail_models
    --video_save_name diffusion-video2world-14b
"""
HIDDEN_3 = """
    --num_gpus 8
    --checkpoint_dir checkpoints
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --input_image_or_video_path assets/diffusion/video2world_input0.jpg
    --num_input_frames 1
    --offload_prompt_upsampler
    --video_save_name diffusion-video2world-2b
"""
HIDDEN_4 = """
    --checkpoint_dir checkpoints
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --batch_input_path assets/diffusion/batch_inputs/video2world_ps.jsonl
    --num_input_frames 9
    --offload_prompt_upsampler
    --video_save_folder diffusion-video2world-2b-batch
"""
HIDDEN_5 = """
    --checkpoint_dir checkpoints
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --batch_input_path assets/diffusion/batch_inputs/video2world_wo_ps.jsonl
    --num_input_frames 9
    --disable_prompt_upsampler
    --video_save_folder diffusion-video2world-2b-batch-wo-ps
"""


def words(command: str) -> list[str]:
    import shlex

    return ["video2world", *shlex.split(command)]


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
    ("command", "parts"),
    [
        (EXAMPLE_1B, ["prompt upsampler"]),
        (HIDDEN_2, ["prompt upsampler"]),
        (HIDDEN_3, ["prompt upsampler"]),
        (HIDDEN_4, ["prompt upsampler"]),
    ],
    ids=["example 1b", "hidden 2", "hidden 3", "hidden 4"],
)
def test_examples_whose_parts_do_not_exist_yet_name_them(
    run: Run, place: Path, command: str, parts: list[str]
) -> None:
    code, out, err = run(*words(command))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("does not exist yet") == len(parts)
    for part in parts:
        assert f"needs the {part}, which does not exist yet" in err


def test_hidden_5_reads_its_list(run: Run, place: Path) -> None:
    jobs = place / "assets/diffusion/batch_inputs/video2world_wo_ps.jsonl"
    jobs.parent.mkdir(parents=True)
    picture = "assets/diffusion/video2world_input0.jpg"
    jobs.write_text(json.dumps({"prompt": PROMPT, "visual_input": picture}) + "\n")
    code, out, err = run(*words(HIDDEN_5), "--dry_run", "--json")
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
        ("--input_image_or_video_path nowhere.jpg", "'nowhere.jpg' is not there"),
        ("--input_image_or_video_path assets", "'assets' is not a file"),
        ("--input_image_or_video_path empty.png", "'empty.png' is empty"),
        ("--diffusion_transformer_dir other", "'checkpoints/other' is not there; fetch it with"),
        ("--vae none.pth", "vae: 'none.pth' is not there"),
        ("--num_input_frames 9", "is one picture; 9 frames need a video"),
        ("--video_save_folder empty.png", "'empty.png' is not a folder"),
        (
            "--video_save_folder . --video_save_name own --input_image_or_video_path own.mp4",
            "'own.mp4' would replace the input",
        ),
        ("--video_save_folder . --video_save_name folder", "'folder.mp4' is a folder"),
    ],
)
def test_dry_run_checks_every_path(run: Run, place: Path, extra: str, problem: str) -> None:
    (place / "empty.png").touch()
    (place / "own.mp4").write_bytes(b"video")
    (place / "folder.mp4").mkdir()
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


@pytest.mark.parametrize("flag", [flag.name for flag in VIDEO2WORLD_FLAGS if flag.kind])
def test_a_flag_without_its_value_is_a_usage_error(run: Run, flag: str) -> None:
    code, out, err = run("video2world", f"--{flag}")
    assert (code, out) == (2, "")
    assert f"--{flag}" in err
    assert "requires an argument" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["video2world", "--seed", "x"], "--seed: 'x' is not a whole number from 0 to 4294967295"),
        (["video2world", "--num-steps=0"], "--num_steps: '0' is not a whole number of at least 1"),
        (
            ["video2world", "--fit", "crop"],
            "--fit: 'crop' is not one of its choices; expected cover or stretch",
        ),
        (["video2world"], "no input: give a picture or a video with --input_path"),
        (["video2world", "--nonsense", "1"], "No such option: --nonsense"),
        (["video2world", "a.png"], "the picture comes after --input_path and the words after"),
        (["video3world"], "No such command 'video3world'. Did you mean video2world? See"),
        (["doctor", "a"], "unexpected extra argument(s) (a). See cosmos-fast doctor --help."),
        (
            [
                "video2world",
                "--model",
                "ballworld",
                "--prompt",
                "p",
                "--input_path",
                "http://a/b.png",
            ],
            "addresses are not read: fetch the file",
        ),
        (["doctor", "--nonsense"], "No such option: --nonsense"),
        (["video2world", "--config", "none.toml"], "'none.toml' cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments, "--json")
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    document = json.loads(out)
    assert (document["status"], document["exit_code"]) == ("usage", 2)
    assert message in document["error"]["message"]


@pytest.mark.parametrize("name", FUTURE_COMMANDS)
def test_a_command_that_does_not_exist_yet_names_its_part(run: Run, name: str) -> None:
    for spelling in (name, name.replace("-", "_")):
        code, out, err = run(spelling, "--num_chunks", "6", "--guidance=3", "x")
        assert (code, out) == (2, "")
        assert err == (
            f"error: {name} needs the {FUTURE_COMMANDS[name]}, which does not exist yet; "
            "video2world makes one video\n"
        )


@pytest.mark.parametrize("command", ["video2world", "demo", "download", "convert", "doctor"])
def test_help_of_every_command(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"cosmos-fast {command}" in out
    assert "--json" in out


def test_help_of_video2world_names_every_flag(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    _, out, _ = run("video2world", "--help")
    for flag in VIDEO2WORLD_FLAGS:
        assert f"--{flag.name} " in out


def process(
    *arguments: str, at: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cosmos_fast", *arguments],
        cwd=at,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_module_is_the_program() -> None:
    done = process("video2world", "--help")
    assert done.returncode == 0
    assert "cosmos-fast video2world" in done.stdout


def test_the_command_line_adds_nothing_heavy_to_the_package() -> None:
    """``--help`` and completion, which runs at every press of a key, need none of it."""
    probe = """
import sys
import cosmos_fast
before = set(sys.modules)
from cosmos_fast.cli import main
main(["video2world", "--help"])
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    added = {name.partition(".")[0] for name in done.stderr.split()}
    assert "typer" in added
    assert not {"torch", "transformers", "triton", "huggingface_hub", "safetensors"} & added


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"cosmos-fast {__version__}\n", "")


def test_a_misspelt_model_is_told_beside_a_missing_part(run: Run, place: Path) -> None:
    picture = "assets/video2world/input0.jpg"
    _, _, err = run("video2world", "--model", "balworld", "--input_path", picture, "--prompt", "p")
    assert "prompt upsampler" in err
    assert "model: 'balworld' is not there; a hub id reads owner/name" in err


def test_help_is_a_command_too(run: Run) -> None:
    assert run("help") == run("--help")
    assert run("help", "demo") == run("demo", "--help")


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


def test_no_command_shows_the_help(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "video2world" in out


def test_shell_completion_offers_flags_and_choices() -> None:
    done = process(
        _COSMOS_FAST_COMPLETE="complete_bash",
        COMP_WORDS="cosmos-fast video2world --aspect",
        COMP_CWORD="2",
    )
    assert "--aspect_ratio" in done.stdout
    done = process(
        _COSMOS_FAST_COMPLETE="complete_bash",
        COMP_WORDS="cosmos-fast video2world --fit ",
        COMP_CWORD="3",
    )
    assert done.stdout.split() == ["cover", "stretch"]


def test_a_closed_stdout_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "cosmos_fast", "doctor", "--offline", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("destination", "flags", "made"),
    [
        ("there", ["--to", "nvidia"], "model.pt"),
        ("there", [], "transformer/diffusion_pytorch_model.safetensors"),
        ("one.safetensors", [], "../one.safetensors"),
        ("one.pt", ["--plain-names"], "../one.pt"),
    ],
)
def test_convert_writes_what_loads_with_the_same_weights(
    run: Run, place: Path, destination: str, flags: list[str], made: str
) -> None:
    source = place / "checkpoints" / "Cosmos-Predict2-2B-Video2World"
    code, out, err = run("convert", str(source), destination, *flags, "--json")
    assert code == 0, err
    assert json.loads(out)["destination"] == destination
    assert (place / destination / made).resolve().is_file()
    before, after = find_checkpoint(source), find_checkpoint(destination, vae=source / "vae")
    assert after.profile == before.profile
    old = load_dit(before, "cpu", torch.float32)
    new = load_dit(after, "cpu", torch.float32)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


DOWNLOADS = [
    ("--model_sizes 2B 14B --model_types Video2World --checkpoint_dir there", ["2B", "14B"]),
    ("--model-sizes 2B --model-types video2world --fps 16 --resolution 720", ["2B"]),
]
"""The original document's command, and the later tool's."""


@pytest.mark.parametrize(("line", "sizes"), DOWNLOADS, ids=["original", "later"])
def test_download_of_both_generations(tmp_path: Path, line: str, sizes: list[str]) -> None:
    names = ["model-720p-16fps.pt", "model-480p-16fps.pt", "tokenizer/tokenizer.pth"]
    contents = {name: name.encode() * 50 for name in names}
    repositories = {f"nvidia/Cosmos-Predict2-{s}-Video2World": contents for s in ("2B", "14B")}
    with FakeHub(repositories) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        arguments = ["download", *line.split(), "--leave_text_encoder"]
        listed = process(*arguments, "--dry-run", at=tmp_path, **environment)
        assert listed.returncode == 0, listed.stderr
        folder = tmp_path / ("there" if "there" in line else "checkpoints")
        assert not folder.exists()
        done = process(*arguments, "--json", at=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    paths = sorted(file["path"] for file in document["files"])
    assert paths == sorted(
        f"{folder.name}/nvidia/Cosmos-Predict2-{size}-Video2World/{name}"
        for size in sizes
        for name in (names[0], names[2])
    )
    for path in paths:
        assert path in listed.stdout
        assert (tmp_path / path).read_bytes() == contents[path.split("Video2World/")[1]]


def test_download_says_what_the_hub_refused(tmp_path: Path) -> None:
    repository = "nvidia/Cosmos-Predict2-2B-Video2World"
    with FakeHub({repository: {}}, status={repository: 403}) as hub:
        done = process(
            "download", "--model_sizes", "2B", at=tmp_path,
            HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home"),
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: nvidia/Cosmos-Predict2-2B-Video2World: the hub answers 403")
    assert "Accept the terms at https://" in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model_sizes 7B", "--model_sizes: '7B' is not one of its choices; expected 0.6B, 2B or"),
        ("--model_types Text2Image", "text2image: not supported"),
        ("--natten", "natten: sparse-attention checkpoints are not supported"),
        ("--fps 4", "--fps: '4' is not one of its choices; expected 10 or 16"),
    ],
)
def test_download_refuses(run: Run, line: str, message: str) -> None:
    code, out, err = run("download", *line.split())
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_convert_refuses_what_is_there(run: Run, place: Path) -> None:
    source = place / "checkpoints" / "Cosmos-Predict2-2B-Video2World"
    code, out, err = run("convert", str(source), "assets")
    assert (code, out) == (2, "")
    assert "destination = assets exists" in err
    code, _, err = run("convert", "none/at all", "there")
    assert code == 1
    assert "none/at all: no checkpoint there" in err
