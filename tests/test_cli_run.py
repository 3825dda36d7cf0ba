"""Commands that run: small random models, real files, what lands on disk, stdout and stderr."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from commands import ran
from cosmos_fast.config import VAEConfig
from cosmos_fast.media import read_frames
from cosmos_fast.types import Size
from random_world import RANDOM_PROFILE, make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

PROMPT = "A grey heron stands in the reeds."
SMALL = ["--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "2"]
TINY = replace(
    RANDOM_PROFILE,
    dit=replace(RANDOM_PROFILE.dit, num_layers=1, num_heads=1),
    vae=VAEConfig(base_dim=4),
)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return ran(capfd, arguments)

    return call


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy, and one that is none, below the original's names."""
    root = tmp_path_factory.mktemp("checkpoints")
    make_random_world(root / "toy", TINY)
    make_random_world(
        root / "Cosmos-Predict2-2B-Video2World", replace(TINY, name="tiny", toy=False)
    )
    return root


@pytest.fixture
def place(tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(picture).save("start.png")
    return tmp_path


def later(*extra: str) -> list[str]:
    start = ["--model", "checkpoints/toy", "--input_path", "start.png", "--prompt", PROMPT]
    return ["video2world", *start, *SMALL, *extra]


def original(*extra: str) -> list[str]:
    start = ["--checkpoint_dir", "checkpoints", "--input_image_or_video_path", "start.png"]
    off = ["--disable_prompt_upsampler", "--offload_prompt_upsampler", "--prompt", PROMPT]
    return ["video2world", *start, *off, *SMALL, *extra]


def manifest(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_the_later_generation_writes_its_files(run: Run, place: Path) -> None:
    code, out, err = run(*later("--save_path", "a/heron.mp4"))
    assert code == 0, err
    assert out == "a/heron.mp4\n"
    assert sorted(path.name for path in (place / "a").iterdir()) == [
        "heron.json",
        "heron.mp4",
        "heron.txt",
    ]
    assert (place / "a/heron.txt").read_text().startswith(f"[Prompt]\n{PROMPT}\n")
    found = manifest(place / "a/heron.json")
    assert found["video"] | {"sha256": ""} == {
        "file": "heron.mp4", "sha256": "", "frames": 9, "height": 32, "width": 48,
        "fps": 16.0, "crf": 15,
    }  # fmt: skip
    assert (found["arguments"]["seed"], found["arguments"]["fit"]) == (0, "cover")
    assert found["guardrail"]["reason"] == "toy model"
    frames = read_frames(place / "a/heron.mp4", size=Size(32, 48), num_frames=9)
    assert frames.shape == (9, 32, 48, 3)


@pytest.mark.parametrize(
    ("host", "rests"),
    [([], "pinned"), (["--host_memory", "2561MiB"], "files")],
    ids=["free", "1 MiB"],
)
def test_the_hosts_memory_decides_what_is_read_again(
    run: Run, place: Path, host: list[str], rests: str
) -> None:
    """Of 2561 MiB the planner sets 2.5 GiB aside for the process."""
    code, out, err = run(*later("--memory", "11MiB", *host, "--save_path", "a.npy", "--json"))
    assert code == 0, err
    assert json.loads(out)["report"]["memory"]["sources"]["dit"] == rests
    code, _, err = run(*later("--host_memory", "1GiB", "--save_path", "b.npy"))
    assert code == 1
    assert "1.00 GiB of host memory is too little" in err


@pytest.mark.parametrize("name", ["heron.mkv", "heron.npy", "heron/%05d.png"])
def test_a_lossless_video_holds_the_frames_and_has_its_manifest(
    run: Run, place: Path, name: str
) -> None:
    code, out, err = run(*later("--save_path", f"a/{name}", "--json"))
    assert code == 0, err
    document = json.loads(out)
    assert (document["video"], document["manifest"]) == (f"a/{name}", "a/heron.json")
    assert (place / "a/heron.txt").read_text().startswith(f"[Prompt]\n{PROMPT}\n")
    found = manifest(place / "a/heron.json")["video"]
    assert (found["file"], found["frames"], found["crf"]) == (name, 9, None)
    if name == "heron.npy":
        made = np.load(place / "a/heron.npy")
    elif name == "heron.mkv":
        made = np.asarray(read_frames(place / "a/heron.mkv", size=Size(32, 48), num_frames=9))
    else:
        pictures = sorted((place / "a/heron").iterdir())
        made = np.stack([np.asarray(Image.open(picture)) for picture in pictures])
        code, _, err = run(*later("--save_path", f"a/{name}"))
        message = "error: --save_path: 'a/heron' holds files; name a folder that is new or empty\n"
        assert (code, err) == (2, message)
    assert made.shape == (9, 32, 48, 3)
    assert run(*later("--save_path", "b/heron.npy"))[0] == 0
    assert np.array_equal(made, np.load(place / "b/heron.npy"))


def test_averaged_weights_and_a_bf16_text_encoder_are_used(run: Run, place: Path) -> None:
    import torch

    from cosmos_fast.weights import find_checkpoint
    from cosmos_fast.weights.convert import convert

    convert(find_checkpoint("checkpoints/toy"), place / "trained", "nvidia")
    stored = torch.load(place / "trained/model.pt", weights_only=True)
    averaged = {name.replace("net.", "net_ema.", 1): tensor * 2 for name, tensor in stored.items()}
    torch.save(stored | averaged, place / "trained/model.pt")
    made = {}
    for flags in ([], ["--load_ema"], ["--downcast_text_encoder"]):
        name = f"{''.join(flags).strip('-') or 'plain'}.npy"
        code, out, err = run(
            *later("--model", "trained", "--save_path", name, *flags, "--guidance", "1", "--json")
        )
        assert code == 0, err
        made[name] = np.load(name)
        assert json.loads(out)["report"]["model"]["ema"] is (name == "load_ema.npy")
    assert not np.array_equal(made["plain.npy"], made["load_ema.npy"])
    assert not np.array_equal(made["plain.npy"], made["downcast_text_encoder.npy"])


def test_the_original_generation_writes_its_files(run: Run, place: Path) -> None:
    code, out, err = run(*original("--video_save_name", "heron", "--disable_guardrail"))
    assert code == 0, err
    assert out == "outputs/heron.mp4\n"
    assert (place / "outputs/heron.txt").read_text() == PROMPT
    found = manifest(place / "outputs/heron.json")
    assert (found["video"]["fps"], found["video"]["crf"]) == (24.0, 25)
    assert (found["arguments"]["seed"], found["arguments"]["fit"]) == (1, "stretch")
    assert found["guardrail"]["reason"] == "--disable_guardrail"
    assert "note: --offload_prompt_upsampler has no effect" in err
    assert err.count("warning: no guardrail: prompts and videos are not checked") == 1


def test_a_run_without_its_guardrail_is_blocked(run: Run, place: Path) -> None:
    code, out, err = run(*original("--json"))
    assert code == 3
    assert "error: the guardrail is not there: nvidia/Cosmos-Guardrail1" in err
    assert "--disable_guardrail" in err
    found = json.loads(out)
    assert (found["status"], found["error"]["type"]) == ("blocked", "GuardrailBlocked")
    assert not (place / "outputs").exists()


def test_json_is_all_there_is_on_stdout(run: Run, place: Path) -> None:
    code, out, _ = run(*later("--save_path", "heron.mp4", "--json"))
    assert code == 0
    assert out.count("\n") == 1
    document = json.loads(out)
    assert (document["status"], document["exit_code"]) == ("ok", 0)
    assert (document["video"], document["sidecar"], document["manifest"]) == (
        "heron.mp4",
        "heron.txt",
        "heron.json",
    )
    assert document["report"]["stages"].keys() >= {"read", "text", "encode", "denoise", "decode"}
    assert document["settings"]["origins"]["seed"] == "later default"
    assert document["report"]["arguments"] == manifest(place / "heron.json")["arguments"]


def test_the_same_command_makes_the_same_bytes(run: Run, place: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        assert run(*later("--save_path", name))[0] == 0
    assert run(*later("--save_path", "three.mp4", "--seed", "5"))[0] == 0
    one, two, three = ((place / f"{n}.mp4").read_bytes() for n in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_progress_is_plain_lines_where_no_terminal_is(run: Run, place: Path) -> None:
    _, _, err = run(*later())
    assert "\x1b" not in err
    stages = [line.split(" s  ")[1] for line in err.splitlines() if " s  " in line]
    assert [name for name in stages if name in ("read", "text", "encode", "denoise", "decode")] == [
        "read",
        "text",
        "encode",
        "denoise",
        "decode",
    ]
    assert any(name.startswith("step 3 of 3, ") for name in stages)
    assert "total" in err
    assert "TFLOP/s" in err
    assert [line.split() for line in err.splitlines() if "backend" in line] == [
        ["backends", "torch"]
    ]
    assert "wrote output/generated_video.mp4" in err


def test_a_terminal_sees_a_bar_and_no_color_sees_lines(place: Path) -> None:
    import pty

    for name, value in (("TERM", "xterm-256color"), ("NO_COLOR", "1")):
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "cosmos_fast", *later()],
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm-256color", name: value},
        )
        os.close(terminal)
        seen = b""
        while chunk := _read(controller):
            seen += chunk
        os.close(controller)
        assert process.wait(60) == 0
        assert (b"\x1b[" in seen) is (name == "TERM")
        assert b"denoise" in seen


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 4096)
    except OSError:  # the other end of a pseudo-terminal is closed
        return b""


def test_a_config_file_runs(run: Run, place: Path) -> None:
    (place / "run.toml").write_text(
        f'model = "checkpoints/toy"\ninput_path = "start.png"\nprompt = "{PROMPT}"\n'
        "height = 32\nwidth = 48\nnum_video_frames = 9\nnum_steps = 2\nseed = 9\n"
    )
    code, out, err = run("video2world", "--config", "run.toml", "--num_steps", "1", "--json")
    assert code == 0, err
    arguments = json.loads(out)["report"]["arguments"]
    assert (arguments["seed"], arguments["num_steps"]) == (9, 1)


def test_five_frames_of_a_video_are_continued(run: Run, place: Path) -> None:
    assert run(*later("--save_path", "first.mp4"))[0] == 0
    code, out, err = run(
        *later("--input_path", "first.mp4", "--num_conditional_frames", "5", "--json")
    )
    assert code == 0, err
    assert json.loads(out)["report"]["arguments"]["num_conditional_frames"] == 5


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--input_path", "text.png"], 2, "'text.png' is no picture or video: it is text"),
        (["--num_conditional_frames", "5", "--input_path", "text.mp4"], 2, "text.mp4"),
        (["--device", "cuda:99"], 2, "cuda:99"),
        (["--model", "hollow"], 1, "hollow"),
        (["--model", "start.png"], 1, "start.png: no checkpoint by its name; files that end in"),
        (["--variant", "480p-16fps-x"], 1, "480p-16fps-x"),
        (["--num_video_frames", "1"], 2, "num_frames = 1"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(
    run: Run, place: Path, extra: list[str], code: int, message: str
) -> None:
    for name in ("text.png", "text.mp4"):
        (place / name).write_text("no picture at all\n")
    (place / "hollow").mkdir()
    before = sorted(place.rglob("*"))
    got, out, err = run(*later(*extra))
    assert (got, out) == (code, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0] == err.splitlines()[-1]
    assert message in errors[0]
    assert "Traceback" not in err
    assert [
        path for path in sorted(place.rglob("*")) if path not in before and path.is_file()
    ] == []


def test_debug_shows_the_traceback(run: Run, place: Path) -> None:
    _, _, err = run(*later("--model", "start.png", "--debug"))
    assert "Traceback" in err


@pytest.mark.slow
def test_demo_and_the_command_that_it_names(run: Run, place: Path) -> None:
    code, out, err = run("demo", "--num_steps", "1", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["command"].startswith("cosmos-fast video2world --model ballworld ")
    assert document["command"] in err
    made = {path.name for path in (place / "outputs").iterdir()}
    assert made == {"demo.mp4", "demo.txt", "demo.json", "demo_start.png", "demo_frames.png"}
    assert np.asarray(Image.open(place / "outputs/demo_start.png")).shape == (96, 160, 3)
    assert np.asarray(Image.open(place / "outputs/demo_frames.png")).ndim == 3
    assert document["tracking_error"].keys() == {"frame_8", "frame_16", "frame_32"}
    _, *words = shlex.split(document["command"])
    code, out, _ = run(*words, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["settings"] == document["settings"] | {"dry_run": True}
