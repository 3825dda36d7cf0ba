"""The command line as a whole: what people type, what it answers, and with which exit code."""

from __future__ import annotations

import itertools
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
from commands import ran
from cosmos_fast import __version__
from cosmos_fast.cli import FLAGS_OF
from cosmos_fast.cli.download import companions_of
from cosmos_fast.cli.future_commands import FUTURE_COMMANDS
from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS
from cosmos_fast.weights import find_checkpoint, load_dit
from random_world import RANDOM_PROFILE, make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., tuple[int, str, str]]

PROMPT = "Rain falls on an empty harbour while a small ferry leaves the quay."
NEGATIVE = "Blurred and shaking."


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return ran(capfd, arguments)

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
        (["video2world", "--promt", "1"], "No such option: --promt; did you mean --prompt?"),
        (["plan", "--card", "x"], "No such option: --card. See cosmos-fast plan --help."),
        (["video2world", "--save_path", "."], "--save_path: '.' is a folder; name the file in it"),
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


@pytest.mark.parametrize("command", FLAGS_OF)
def test_help_of_every_command_fits_a_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Whole names of all flags in 80 columns, and nothing else cut either."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"cosmos-fast {command}" in out
    assert [flag.name for flag in FLAGS_OF[command] if f"--{flag.name} " not in out] == []
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    prose = [line.strip() for line in out.partition("╭")[0].splitlines()[3:]]
    for line, following in itertools.pairwise(prose):
        if line and following and not line.startswith("Usage"):
            assert len(line) + len(following.split()[0]) > 70, (line, following)


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
from cosmos_fast.cli import FLAGS_OF, main
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
    given = ["--model", "balworld", "--input_path", picture, "--prompt", "p", "--natten"]
    _, _, err = run("video2world", *given)
    assert "sparse-attention part" in err
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


LATER_RUN = [
    "video2world", "--input_path", "assets/video2world/input0.jpg", "--prompt", "p", "--device",
    "cpu", "--model", "nvidia/Cosmos-Predict2-2B-Video2World",
]  # fmt: skip
PARTS = ("model nvidia/", "text encoder T5", "guardrail Cosmos-", "prompt upsampler nvidia/")


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


OFF = "--disable_guardrail --disable_prompt_refiner"
GUARD, LLAMA = "nvidia/Cosmos-Guardrail1", "meta-llama/Llama-Guard-3-8B"
QWEN, REASON1 = "Qwen/Qwen2.5-VL-7B-Instruct", "nvidia/Cosmos-Reason1-7B"
DOWNLOADS = [
    ("--model_sizes 2B 14B --model_types Video2World --checkpoint_dir there", ["2B", "14B"], QWEN),
    ("--model-sizes 2B --model-types video2world --fps 16 --resolution 720", ["2B"], REASON1),
]
"""The original document's command, and the later tool's."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with what the two commands fetch."""
    from huggingface_hub import constants

    names = ["model-720p-16fps.pt", "model-480p-16fps.pt", "tokenizer/tokenizer.pth"]
    contents = {name: name.encode() * 50 for name in names}
    repositories = {f"nvidia/Cosmos-Predict2-{s}-Video2World": contents for s in ("2B", "14B")}
    for repository in (GUARD, LLAMA, QWEN, REASON1):
        repositories[repository] = {"config.json": repository.encode(), "README.md": b"-"}
    with FakeHub(repositories) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        yield running


@pytest.mark.parametrize(("line", "sizes", "upsampler"), DOWNLOADS, ids=["original", "later"])
def test_download_of_both_generations(
    run: Run,
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    sizes: list[str],
    upsampler: str,
) -> None:
    """All that the generation's commands need, so that they run right afterwards."""
    monkeypatch.chdir(tmp_path)
    arguments = ["download", *line.split(), "--leave_text_encoder"]
    code, listed, err = run(*arguments, "--dry-run")
    assert code == 0, err
    folder = "there" if "there" in line else "checkpoints"
    assert not Path(folder).exists()
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    expected = [
        f"{folder}/nvidia/Cosmos-Predict2-{size}-Video2World/{name}"
        for size in sizes
        for name in ("model-720p-16fps.pt", "tokenizer/tokenizer.pth")
    ]
    expected += [f"{folder}/{beside}/config.json" for beside in (GUARD, LLAMA, upsampler)]
    document = json.loads(out)
    assert sorted(file["path"] for file in document["files"]) == sorted(expected)
    for path in expected:
        assert path in listed
        repository, name = path.removeprefix(f"{folder}/").split("/", 2)[:2], path.split("/", 3)[3]
        assert Path(path).read_bytes() == hub.repositories["/".join(repository)][name]


@pytest.mark.parametrize(
    ("flags", "beside"),
    [
        ("", [GUARD, LLAMA, REASON1]),
        ("--guardrail --prompt_refiner --prompt_upsampler", [GUARD, LLAMA, QWEN, REASON1]),
        ("--prompt_upsampler", [GUARD, LLAMA, QWEN]),
        ("--leave_guardrail", [REASON1]),
        ("--leave_upsampler", [GUARD, LLAMA]),
        ("--leave_upsampler --leave_guardrail --checkpoint_dir x", []),
        ("--checkpoint_dir x", [GUARD, LLAMA, QWEN]),
        ("--checkpoint_dir x --fps 10", [GUARD, LLAMA, REASON1]),
        ("--model_types sample_gr00t_dreams_gr1", [GUARD, LLAMA]),
    ],
)
def test_what_is_fetched_beside_the_model(flags: str, beside: list[str]) -> None:
    values = {word.removeprefix("--"): True for word in flags.split() if word.startswith("--")}
    if "model_types" in values:
        values["model_types"] = flags.split()[1:]  # type: ignore[assignment]
    assert companions_of(values) == beside


def test_download_fetches_the_rest_where_the_hub_refuses_the_guardrail(
    run: Run, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.status[LLAMA] = 403
    arguments = ["download", "--model_sizes", "2B", "--leave_text_encoder"]
    code, out, err = run(*arguments, "--dry_run")
    assert code == 1
    assert "to fetch" in out
    assert "Accept the terms at https://huggingface.co/meta-llama/Llama-Guard-3-8B" in err
    code, out, err = run(*arguments, "--json")
    assert code == 1
    document = json.loads(out)
    assert (document["status"], document["error"]["type"]) == ("failed", "GatedRepoError")
    assert err.splitlines()[-1] == f"error: {document['error']['message']}"
    for repository in (GUARD, REASON1):
        assert Path("checkpoints", repository, "config.json").is_file()
    assert Path("checkpoints/nvidia/Cosmos-Predict2-2B-Video2World/model-720p-16fps.pt").is_file()
    assert not Path("checkpoints", LLAMA).exists()
    del hub.status[LLAMA]
    assert run(*arguments)[0] == 0
    assert Path("checkpoints", LLAMA, "config.json").is_file()


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
        ("--guardrail --leave_guardrail", "--leave_guardrail and --guardrail contradict each"),
        ("--prompt_refiner --leave_upsampler", "--leave_upsampler and --prompt_refiner contradict"),
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
