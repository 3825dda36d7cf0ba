"""Small action-conditioned checkpoints of random weights, with every file of a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

import cosmos_fast as cf
from cosmos_fast.config import DiTConfig, VAEConfig
from random_world import make_random_world

if TYPE_CHECKING:
    from pathlib import Path

CHUNK, DIM = 8, 2
HEIGHT, WIDTH = 32, 48
ACTIONS: Final = cf.ActionSpec(
    dim=DIM,
    chunk=CHUNK,
    names=("x", "y"),
    units=("m/s", "m/s"),
    scale=(1.0, 2.0),
    frame="table",
    fps=8.0,
)
PROFILE: Final = cf.Profile(
    name="random actions",
    size=cf.Size(HEIGHT, WIDTH),
    num_frames=ACTIONS.num_frames,
    fps=ACTIONS.fps,
    dit=DiTConfig(
        num_layers=2,
        num_heads=2,
        head_dim=24,
        adaln_rank=8,
        text_dim=64,
        rope_scale=(1.0, 1.0, 1.0),
        action_inputs=ACTIONS.inputs,
    ),
    vae=VAEConfig(base_dim=4),
    num_steps=2,
    guidance=0.0,
    conditional_frames=(1,),
    toy=True,
    actions=ACTIONS,
)


def action_engine(folder: Path, **options: Any) -> cf.Video2World:
    """An engine on the CPU in float32, its checkpoint made in ``folder``."""
    make_random_world(folder, PROFILE)
    return cf.Video2World.from_pretrained(folder, device="cpu", **options)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, H, W, 3): smooth, and all different."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 6, 3), dtype=np.uint8)
    return coarse.repeat(HEIGHT // 4, axis=1).repeat(WIDTH // 6, axis=2)


def actions(count: int, seed: int = 0) -> np.ndarray:
    """float32 (count, CHUNK, DIM) of -1 to 1."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, CHUNK, DIM)).astype(np.float32)
