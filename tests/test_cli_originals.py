"""The original document's way, from its download command to its videos, on small checkpoints."""

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
from PIL import Image

from attacks.checkpoints.fake_hub import FakeHub
from command_lines import settings
from cosmos_fast.cli import main
from cosmos_fast.config import VAEConfig
from cosmos_fast.media import read_frames
from cosmos_fast.types import Size
from cosmos_fast.weights import find_checkpoint
from cosmos_fast.weights.convert import convert
from documented import EXAMPLE_1, EXAMPLE_1B, HIDDEN_2, HIDDEN_3, HIDDEN_4, HIDDEN_5, PROMPT, words
from random_world import RANDOM_PROFILE, make_random_world

if TYPE_CHECKING:
    from cosmos_fast.cli.settings import Settings

EXAMPLE_2 = EXAMPLE_1.replace("2B", "14B").replace("_2b", "_14b")
SMALL = ["--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "2"]
"""What a command gets at its end to be soon over: of a flag that comes twice, the last counts."""
TINY = replace(
    RANDOM_PROFILE,
    toy=False,
    dit=replace(RANDOM_PROFILE.dit, num_layers=1, num_heads=1),
    vae=VAEConfig(base_dim=4),
)


@pytest.fixture(scope="module")
def repositories(
    companions: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, bytes]]:
    """Two repositories as NVIDIA's: its own file, its VAE, and T5 as diffusers keeps it; and those
    of what stands beside the model."""
    root = tmp_path_factory.mktemp("repositories")
    found = {}
    for owner in companions.iterdir():
        for folder in owner.iterdir():
            parts = [path for path in folder.rglob("*") if path.is_file()]
            content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in parts}
            found[f"{owner.name}/{folder.name}"] = content
    for size in ("2B", "14B"):
        made = make_random_world(root / size, replace(TINY, name=size))
        files = find_checkpoint(made)
        folder = root / f"{size}-nvidia"
        convert(files, folder, "nvidia")
        (vae,) = folder.rglob("*.pth")
        content = {
            "model-720p-16fps.pt": (folder / "model.pt").read_bytes(),
            "tokenizer/tokenizer.pth": vae.read_bytes(),
            "cosmos_fast.json": (made / "cosmos_fast.json").read_bytes(),
        }
        assert files.text_encoder is not None
        assert files.tokenizer is not None
        for name, place in (("text_encoder", files.text_encoder), ("tokenizer", files.tokenizer)):
            content |= {f"{name}/{path.name}": path.read_bytes() for path in place.iterdir()}
        found[f"nvidia/Cosmos-Predict2-{size}-Video2World"] = content
    return found


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cosmos_fast", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_from_its_download_to_its_videos(
    tmp_path: Path,
    repositories: dict[str, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "assets/video2world/input0.jpg"
    picture.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    line = "--model_sizes 2B 14B --model_types Video2World --checkpoint_dir checkpoints"
    with FakeHub(repositories) as hub:
        home = str(tmp_path / "home")
        done = program("download", *line.split(), HF_ENDPOINT=hub.endpoint, HF_HOME=home)
    assert (done.returncode, done.stdout) == (0, "checkpoints\n"), done.stderr
    for size, command, name in (
        ("2B", EXAMPLE_1, "video2world_2b"),
        ("14B", EXAMPLE_2, "video2world_14b"),
    ):
        # The released shapes are known by their names; a small one brings its own description.
        folder = tmp_path / f"checkpoints/nvidia/Cosmos-Predict2-{size}-Video2World"
        described = repositories[f"nvidia/Cosmos-Predict2-{size}-Video2World"]["cosmos_fast.json"]
        (folder / "cosmos_fast.json").write_bytes(described)
        capfd.readouterr()
        code = main([*words(command), *SMALL, "--json"])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        document = json.loads(captured.out)
        assert document["video"] == f"outputs/{name}.mp4"
        assert Path(f"outputs/{name}.txt").read_text() == PROMPT
        frames = read_frames(f"outputs/{name}.mp4", size=Size(32, 48), num_frames=9)
        assert frames.fps == 24
        assert document["report"]["arguments"]["fit"] == "stretch"
        assert document["report"]["arguments"]["seed"] == 1
    for command in (EXAMPLE_1B, HIDDEN_2, HIDDEN_3):
        line = command.replace("assets/diffusion/video2world_input0.jpg", str(picture))
        code = main([*words(line), "--dry_run"])
        assert code == 0, capfd.readouterr().err


def resolved(command: str) -> Settings:
    return settings(" ".join(f'"{word}"' if " " in word else word for word in words(command)[1:]))


OFFLOADED = {
    "--offload_diffusion_transformer": ("dit",),
    "--offload_tokenizer": ("vae encoder", "vae decoder"),
    "--offload_text_encoder_model": ("text encoder",),
}
"""What each flag moves off the device when its stage ends."""


@pytest.mark.parametrize(
    ("command", "source", "given", "output"),
    [
        pytest.param(HIDDEN_2, "14B", 1, "outputs/diffusion-video2world-14b.mp4", id="hidden 2"),
        pytest.param(HIDDEN_3, "2B", 1, "outputs/diffusion-video2world-2b.mp4", id="hidden 3"),
        pytest.param(HIDDEN_4, "2B", 9, "diffusion-video2world-2b-batch/output.mp4", id="hidden 4"),
        pytest.param(
            HIDDEN_5, "2B", 9, "diffusion-video2world-2b-batch-wo-ps/output.mp4", id="hidden 5"
        ),
    ],
)
def test_hidden_commands_resolve(command: str, source: str, given: int, output: str) -> None:
    found = resolved(command)
    assert found.generation == "original"
    assert found.source == f"Cosmos-Predict2-{source}-Video2World"
    assert found.checkpoint_root == Path("checkpoints")
    assert found.num_conditional_frames == given
    assert found.output == Path(output)
    assert (found.height, found.width, found.num_frames, found.fps) == (704, 1280, 121, 24)
    offloads = [word for word in command.split() if word.startswith("--offload_")]
    assert set(found.offload) == {part for flag in offloads for part in OFFLOADED.get(flag, ())}
    if "--offload_guardrail_models" in offloads:
        assert found.guardrail_placement == "disk"
    assert found.upsampler_placement == ("host" if found.upsampler == "on" else "device")
