"""What the README and CONTRIBUTING say is tried out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from attacks.checkpoints.fake_hub import FakeHub
from cosmos_fast.cli import FLAGS_OF, main

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [block for name, block in fences if name == language]


@pytest.mark.slow
def test_the_example_of_worlds_runs() -> None:
    _, example = blocks(README, "python")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "(3, 12, 96, 96, 3) tensor(True)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the picture that the examples start from."""
    picture = np.full((96, 160, 3), 40, np.uint8)
    picture[40:56, 30:46] = (220, 50, 47)
    Image.fromarray(picture).save(tmp_path / "start.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_library_example_runs(folder: Path) -> None:
    example, _ = blocks(README, "python")
    assert len(example.strip().splitlines()) <= 10
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("(33, 96, 160, 3) ")
    made = {file.name for file in folder.iterdir()}
    assert made == {"start.png", "ball.mp4", "ball.txt", "ball.json"}


@pytest.fixture
def _hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub with what the README downloads, an empty cache, and the files that it names."""
    from huggingface_hub import constants

    (folder / "examples").symlink_to(ROOT / "examples")
    np.save(folder / "actions.npy", np.zeros((3, 2)))
    names = ["model-720p-16fps.pt", "tokenizer/tokenizer.pth", "tokenizer/tokenizer.json"]
    names += ["text_encoder/config.json", "text_encoder/model.safetensors"]
    content = {name: name.encode() for name in names}
    repositories = {
        "nvidia/Cosmos-Predict2-2B-Video2World": content,
        "nvidia/Cosmos-Guardrail1": {"blocklist/custom/list.txt": b"a word"},
        "meta-llama/Llama-Guard-3-8B": {"config.json": b"{}"},
    }
    with FakeHub(repositories) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        yield


@pytest.mark.usefixtures("_hub")
def test_the_shell_examples_parse(capfd: pytest.CaptureFixture[str]) -> None:
    text = "".join(blocks(README, "bash")).replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("cosmos-fast ")]
    assert len(commands) >= 5
    for command in commands:
        _, *arguments = shlex.split(command, comments=True)
        light = "--help" in arguments or arguments[0] == "plan"
        extra = [] if light else ["--dry-run"]
        code = main([*arguments, *extra])
        assert code == 0, (command, capfd.readouterr().err)


def test_every_command_is_told_of() -> None:
    for command in FLAGS_OF:
        told = command in ("video2world-action",) or f"cosmos-fast {command}" in README
        assert told, command


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "BENCHMARKS.md", "Makefile"])
def test_every_make_target_that_is_named_exists(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    text = (ROOT / name).read_text("utf-8")
    named = set(re.findall(r"(?:`|^|^#   )make ([a-z]+)", text, re.M))
    assert named
    assert named <= targets


def test_every_place_on_the_tour_exists() -> None:
    (tree,) = [block for block in blocks(README, "") if "python/cosmos_fast/" in block]
    for line in tree.splitlines():
        folder = "" if not line.startswith("  ") else "python/cosmos_fast"
        place = ROOT / folder / line.split()[0]
        assert place.exists(), line


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"`([A-Z]+\.md|docs/\S+?|tests/\S+?|python/\S+?)`", README):
        assert (ROOT / name).exists(), name


def test_the_readme_says_what_it_must() -> None:
    said = " ".join(README.split())
    for sentence in (
        "not affiliated with, sponsored by or endorsed by NVIDIA",
        "NVIDIA Open Model License",
        "Built on NVIDIA Cosmos",
        "anything on the released weights",
        "GNU General Public License",
    ):
        assert sentence in said, sentence
