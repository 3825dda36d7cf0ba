"""What a checkpoint says of itself in files of its own: sidecars and diffusers' descriptions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from attacks.checkpoints.small import MODEL, small_checkpoint, tool
from cosmos_fast.config import DiTConfig, VAEConfig
from cosmos_fast.errors import CheckpointError
from cosmos_fast.types import NO_TEXT, Size
from cosmos_fast.weights import find_checkpoint
from cosmos_fast.weights.released import (
    ARCHITECTURES,
)
from cosmos_fast.weights.sidecar import SIDECAR, read_sidecar, sidecar_json


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Small checkpoints to break."""
    small_checkpoint(tmp_path)
    return tmp_path


def rewrite(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content |= changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def test_sidecar_there_and_back(made: Path) -> None:
    profile = dataclasses.replace(
        tool().TINY,
        negative_prompt="none of that",
        conditional_frames=(1,),
        dit=dataclasses.replace(tool().TINY.dit, rope_scale=(0.5, 2.0, 1.5), max_size=(16, 32, 48)),
        vae=dataclasses.replace(tool().TINY.vae, latents_mean=(0.25,) * 16),
    )
    (made / MODEL / SIDECAR).write_text(json.dumps(sidecar_json(profile)))
    assert find_checkpoint(made / MODEL).profile == profile


def test_null_negative_prompt_is_no_text(made: Path) -> None:
    rewrite(made / MODEL / SIDECAR, negative_prompt=None)
    assert find_checkpoint(made / MODEL).profile.negative_prompt is NO_TEXT


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"framerate": 3}, "unknown framerate"),
        ({"fps": ...}, "fps missing"),
        ({"rope_scale": ...}, "rope_scale is missing"),
        ({"rope_scale": [1, 2]}, "rope_scale"),
        ({"rope_scale": [1, 2, -3]}, "rope_scale"),
        ({"rope_scale": [1, 2, True]}, "rope_scale"),
        ({"size": [96, 161]}, "multiple of 16"),
        ({"size": 96}, "size"),
        ({"size": [96.0, 160]}, "size"),
        ({"num_frames": 10}, "10 frames"),
        ({"num_frames": "9"}, "num_frames"),
        ({"num_frames": True}, "num_frames"),
        ({"fps": 0}, "fps"),
        ({"fps": [16]}, "fps"),
        ({"fps": float("inf")}, "fps"),
        ({"num_steps": 0}, "num_steps"),
        ({"guidance": -1}, "guidance"),
        ({"guidance": "7"}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"negative_prompt": 3}, "negative_prompt"),
        ({"conditional_frames": 1}, "conditional_frames"),
        ({"conditional_frames": []}, "conditional_frames"),
        ({"toy": "yes"}, "toy"),
        ({"name": ""}, "name"),
        ({"max_size": [1, 2, 3]}, "multiple of 16 from 16 to"),
        ({"vae": []}, "vae"),
        ({"vae": {"base": 8}}, "vae.base"),
        ({"vae": {"base_dim": "8"}}, "vae.base_dim"),
        ({"vae": {"dim_mult": [1, 2]}}, "temporal_downsample"),
        ({"vae": {"dim_mult": [1, 2, 4, "4"]}}, "vae.dim_mult"),
        ({"vae": {"latents_mean": [0.0]}}, "latents_mean"),
        ({"vae": {"z_dim": 8, "latents_mean": [0.0] * 8, "latents_std": [1.0] * 8}}, "z_dim"),
    ],
    ids=lambda value: json.dumps(value, default=str) if isinstance(value, dict) else "",
)
def test_sidecar_with_a_fault_is_refused_by_name(
    made: Path, changes: dict[str, Any], word: str
) -> None:
    rewrite(made / MODEL / SIDECAR, **changes)
    with pytest.raises(CheckpointError) as refusal:
        find_checkpoint(made / MODEL)
    assert word in str(refusal.value)
    assert SIDECAR in str(refusal.value)


@pytest.mark.parametrize("size", ["2B", "14B"])
def test_a_large_model_is_no_toy_whatever_its_file_says(made: Path, size: str) -> None:
    """Toys go without the guardrail."""
    sidecar = read_sidecar(made / MODEL / SIDECAR)
    assert sidecar.toy
    with pytest.raises(CheckpointError, match='"toy" = true, but its transformer has'):
        sidecar.profile(ARCHITECTURES[size], VAEConfig())
    honest = dataclasses.replace(sidecar, toy=False)
    assert not honest.profile(ARCHITECTURES[size], VAEConfig()).toy


@pytest.mark.parametrize(
    ("file", "changes", "word"),
    [
        ("transformer/config.json", {"rope_scale": [1, 2, 2]}, "config.json beside the weights"),
        ("transformer/config.json", {"extra_pos_embed_type": "learnable"}, "extra_pos_embed_type"),
        ("transformer/config.json", {"_class_name": "WanTransformer3DModel"}, "_class_name"),
        ("transformer/config.json", {"use_crossattn_projection": True}, "use_crossattn"),
        ("transformer/config.json", {"max_size": None}, "max_size"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "_class_name"),
        ("vae/config.json", {"is_residual": True}, "is_residual"),
        ("vae/config.json", {"base_dim": 9}, "vae differs"),
        ("vae/config.json", {"dim_mult": None}, "dim_mult"),
    ],
)
def test_diffusers_description_with_a_fault_is_refused(
    made: Path, file: str, changes: dict[str, Any], word: str
) -> None:
    rewrite(made / "diffusers" / MODEL / file, **changes)
    with pytest.raises(CheckpointError, match=word):
        find_checkpoint(made / "diffusers" / MODEL)


def test_rope_ratios_may_come_from_the_diffusers_description(made: Path) -> None:
    folder = made / "diffusers" / MODEL
    rewrite(folder / SIDECAR, rope_scale=...)
    rewrite(folder / "transformer/config.json", rope_scale=[1.5, 2.5, 2.5])
    assert find_checkpoint(folder).profile.dit.rope_scale == (1.5, 2.5, 2.5)


def test_sidecar_example_in_its_documentation_is_true(tmp_path: Path) -> None:
    from cosmos_fast.weights import sidecar

    lines = [line[:46] for line in (sidecar.__doc__ or "").splitlines() if line.startswith("    ")]
    text = "\n".join(lines).replace("...", '"num_res_blocks": 2')
    path = tmp_path / SIDECAR
    path.write_text(text)
    read = read_sidecar(path)
    assert read.profile(DiTConfig(2, 2), read.vae or VAEConfig()).size == Size(96, 160)
