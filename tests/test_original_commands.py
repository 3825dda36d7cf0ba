"""Every command of the original document, run to its end on small models of the real classes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from tools.random_companions import SENTENCES

from commands import ran
from cosmos_fast.cli import main
from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS
from cosmos_fast.media import VideoWriter, read_frames
from cosmos_fast.types import Size
from documented import EXAMPLE_1, EXAMPLE_1B, HIDDEN_2, HIDDEN_3, HIDDEN_4, HIDDEN_5
from documented import NEGATIVE as GIVEN_NEGATIVE
from documented import PROMPT as LONG_PROMPT
from released_folders import NEGATIVE, make_released_folders

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosmos_fast.types import Frames

    Run = Callable[..., tuple[int, str, str]]

EXAMPLE_2 = EXAMPLE_1.replace("2B", "14B").replace("_2b", "_14b")
SMALL = ["--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "1"]
"""What a command gets at its end to be soon over: of a flag that comes twice, the last counts."""
LISTS = "assets/diffusion/batch_inputs"
RIFLE = "He lifts the rifle from the table."
ENDINGS = (".json", ".mp4", ".txt")


@pytest.fixture(scope="module")
def checkpoints(companions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_released_folders(tmp_path_factory.mktemp("released") / "checkpoints", companions)


@pytest.fixture
def place(tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which every path of the commands exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    noise = np.random.default_rng(0).integers(0, 256, (9, 40, 60, 3), dtype=np.uint8)
    for name in ("assets/video2world/input0.jpg", "assets/diffusion/video2world_input0.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise[0]).save(name)
    Path(LISTS).mkdir()
    Path("path/to").mkdir(parents=True)
    with VideoWriter("path/to/video1.mp4", size=Size(40, 60), fps=16) as video:
        video.write(noise)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command as the document writes it, small: exit code, stdout, stderr."""

    def call(command: str, *more: str) -> tuple[int, str, str]:
        return ran(capfd, ["video2world", *shlex.split(command), *SMALL, *more])

    return call


def files(folder: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def manifest(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_bytes())
    return found


def frames(path: str, count: int = 9) -> Frames:
    return read_frames(path, size=Size(32, 48), num_frames=count)


SINGLE = [
    pytest.param(EXAMPLE_1, "video2world_2b", "2B", LONG_PROMPT, None, id="example 1"),
    pytest.param(
        EXAMPLE_1B, "video2world_2b_prompt_upsampled", "2B", "A harbour in the rain.", "Qwen",
        id="example 1b",
    ),
    pytest.param(EXAMPLE_2, "video2world_14b", "14B", LONG_PROMPT, None, id="example 2"),
    pytest.param(HIDDEN_2, "diffusion-video2world-14b", "14B", "", "Qwen", id="hidden 2"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "name", "size", "prompt", "upsampler"), SINGLE)
def test_one_video(
    run: Run, place: Path, command: str, name: str, size: str, prompt: str, upsampler: str | None
) -> None:
    code, out, err = run(command)
    assert code == 0, err
    assert out == f"outputs/{name}.mp4\n"
    assert files("outputs") == [f"{name}{ending}" for ending in ENDINGS]
    made = frames(f"outputs/{name}.mp4")
    assert (made.shape, made.fps) == ((9, 32, 48, 3), 24)
    found = manifest(f"outputs/{name}.json")
    assert found["video"]["crf"] == 25
    arguments = found["arguments"]
    assert (arguments["prompt"], arguments["seed"], arguments["fit"]) == (prompt, 1, "stretch")
    assert found["model"]["name"] == size
    used = Path(f"outputs/{name}.txt").read_text("utf-8")
    if upsampler is None:
        assert (used, found["upsampler"]["requested"]) == (prompt, None)
        assert "note: --offload_prompt_upsampler has no effect" in err
    else:
        assert used == found["upsampler"]["prompt"]
        assert used in SENTENCES
        assert found["upsampler"]["requested"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    if "--disable_guardrail" in command:
        assert found["guardrail"]["reason"] == "--disable_guardrail"
        assert "warning: no guardrail" in err
        assert arguments["negative_prompt"] == GIVEN_NEGATIVE
    else:
        ran = {(one["check"], one["subject"]) for one in found["guardrail"]["checks"] if one["ran"]}
        assert found["guardrail"]["verdict"] == "safe"
        assert ran == {
            *((check, text) for check in ("blocklist", "llama guard")
              for text in ("negative prompt", "upsampled prompt")),
            ("video filter", "video"), ("face blur", "video"),
        }  # fmt: skip
        assert arguments["negative_prompt"] == NEGATIVE


def test_a_blocked_prompt_leaves_no_file(run: Run, place: Path) -> None:
    code, out, err = run(HIDDEN_2, "--prompt", RIFLE, "--json")
    assert code == 3
    assert "error: the prompt was blocked by the guardrail's llama guard" in err
    told = json.loads(out)
    assert (told["status"], told["error"]["type"]) == ("blocked", "GuardrailBlocked")
    assert not Path("outputs").exists(), "a folder that was made for nothing is gone"


@pytest.mark.slow
def test_several_gpus(place: Path) -> None:
    """Two processes in the place of eight GPUs."""
    command = HIDDEN_3.replace("--num_gpus 8", "--num_gpus 2")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "cosmos_fast"]
    found = subprocess.run(
        [sys.executable, *launcher, "video2world", *shlex.split(command), *SMALL, "--json"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    (line,) = found.stdout.splitlines()
    report = json.loads(line)["report"]
    assert report["parallel"]["ranks"] == 2
    assert report["guardrail"]["verdict"] == "safe"
    assert files("outputs") == [f"diffusion-video2world-2b{ending}" for ending in ENDINGS]
    used = Path("outputs/diffusion-video2world-2b.txt").read_text("utf-8")
    assert used == report["upsampler"]["prompt"]


BATCHES = [
    pytest.param(HIDDEN_4, "video2world_ps", "", True, id="hidden 4"),
    pytest.param(HIDDEN_5, "video2world_wo_ps", "-wo-ps", False, id="hidden 5"),
]


def write_list(name: str, *prompts: str | None) -> None:
    """Lines as the document has them: a prompt only where one is given."""
    entries = [
        ({} if prompt is None else {"prompt": prompt}) | {"visual_input": "path/to/video1.mp4"}
        for prompt in prompts
    ]
    lines = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    Path(LISTS, f"{name}.jsonl").write_text(lines, "utf-8")


@pytest.mark.parametrize(("command", "name", "end", "upsampled"), BATCHES)
def test_a_batch(run: Run, place: Path, command: str, name: str, end: str, upsampled: bool) -> None:
    prompts = [None] if upsampled else ["A crane turns."]
    write_list(name, *prompts)
    folder = f"diffusion-video2world-2b-batch{end}"
    code, out, err = run(command, "--num_video_frames", "13")
    assert code == 0, err
    assert out == f"{folder}/{name}.jsonl.summary.json\n"
    list_files = [f"{name}.jsonl.journal", f"{name}.jsonl.summary.json"]
    videos = [f"{index}{ending}" for index in range(len(prompts)) for ending in ENDINGS]
    assert files(folder) == sorted(videos + list_files)
    for index, prompt in enumerate(prompts):
        found = manifest(f"{folder}/{index}.json")
        assert frames(f"{folder}/{index}.mp4", 13).fps == 24
        assert found["arguments"]["num_conditional_frames"] == 9
        assert found["arguments"]["seed"] == 1
        assert found["guardrail"]["verdict"] == "safe"
        used = Path(f"{folder}/{index}.txt").read_text("utf-8")
        if upsampled:
            assert used == found["upsampler"]["prompt"]
        else:
            assert used == prompt
            assert found["upsampler"]["requested"] is None


def test_a_blocked_line_of_a_batch_is_a_row(run: Run, place: Path) -> None:
    """The others are made, one of them from a prompt that the upsampler wrote."""
    write_list("video2world_ps", "A crane turns.", RIFLE, None)
    code, out, err = run(HIDDEN_4, "--num_video_frames", "13", "--json")
    assert code == 4, err
    folder = "diffusion-video2world-2b-batch"
    summary = json.loads(out)["summary"]
    assert (summary["made"], summary["failed"]) == (2, 1)
    [row] = summary["failures"]
    assert (row["index"], row["line"], row["code"]) == (1, 2, 3)
    assert (row["error"], row["video"]) == ("GuardrailBlocked", "1.mp4")
    assert "the prompt was blocked" in row["message"]
    assert [name for name in files(folder) if name[0].isdigit()] == [
        f"{index}{ending}" for index in (0, 2) for ending in ENDINGS
    ]
    for index, prompt in ((0, "A crane turns."), (2, "")):
        found = manifest(f"{folder}/{index}.json")
        assert found["arguments"]["prompt"] == prompt
        assert found["upsampler"]["ran"]


def test_help_names_every_flag(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["video2world", "--help"]) == 0
    told = capfd.readouterr().out
    missing = [flag.name for flag in VIDEO2WORLD_FLAGS if f"--{flag.name}" not in told]
    assert missing == []
