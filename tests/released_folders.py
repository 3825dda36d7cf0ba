"""Small models of the real classes in the folders that the reference's download scripts fill."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from cosmos_fast.config import VAEConfig
from cosmos_fast.types import Size
from cosmos_fast.weights import find_checkpoint
from cosmos_fast.weights.convert import convert
from guarded import copied
from random_world import RANDOM_PROFILE, make_random_world

NEGATIVE: Final = "Blurred and jerky."
TINY: Final = replace(
    RANDOM_PROFILE,
    size=Size(32, 48),
    num_frames=9,
    dit=replace(RANDOM_PROFILE.dit, num_layers=1, num_heads=1),
    vae=VAEConfig(base_dim=4),
    negative_prompt=NEGATIVE,
    guidance=7.0,
    toy=False,
)
"""One block wide; no toy, so that guardrail and upsampler apply."""
SIZES: Final = ("2B", "14B")
VARIANTS: Final = ("720p-16fps", "720p-10fps", "480p-16fps", "480p-10fps")
T5: Final = "google-t5/t5-11b"
VAE: Final = "Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth"
AVERAGED: Final = "480p-10fps"
"""The variant whose file also holds averaged weights, as a training checkpoint does."""


def make_released_folders(root: Path, companions: Path) -> Path:
    """The original's layout and the later tool's, both below ``root``, with all companions.

    The released shapes are known by their names; a small model brings a description of its own.

    Args:
        companions: guardrail and upsamplers, which are linked and not copied.
    """
    copied(companions, root)
    for seed, size in enumerate(SIZES):
        made = make_random_world(root / "made" / size, replace(TINY, name=size), seed=seed)
        convert(find_checkpoint(made), root / "made" / f"{size}-nvidia", "nvidia")
        _spread(made, root / "made" / f"{size}-nvidia", root, size)
    shutil.rmtree(root / "made")
    return root


def _spread(made: Path, nvidia: Path, root: Path, size: str) -> None:
    (vae,) = nvidia.rglob("*.pth")
    original = root / f"Cosmos-Predict2-{size}-Video2World"
    later = root / "nvidia" / original.name
    _link(nvidia / "model.pt", original / "model.pt")
    _link(vae, root / VAE)
    _link(vae, later / "tokenizer" / "tokenizer.pth")
    for home in (original, later):
        _link(made / "cosmos_fast.json", home / "cosmos_fast.json")
    for part in ("text_encoder", "tokenizer"):
        for file in (made / part).iterdir():
            _link(file, root / T5 / file.name)
    trained = torch.load(nvidia / "model.pt", weights_only=True)
    for variant in VARIANTS:
        scale = 1 + VARIANTS.index(variant) / 8
        tensors = {name: tensor * scale for name, tensor in trained.items()}
        if variant == AVERAGED:
            tensors |= {
                name.replace("net.", "net_ema.", 1): tensor / 2 for name, tensor in tensors.items()
            }
        torch.save(tensors, later / f"model-{variant}.pt")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.link(source, target)
