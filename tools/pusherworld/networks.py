"""The two small networks of the pusher world, as the package's own classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from tools.ballworld.networks import begin

from cosmos_fast.config import DiTConfig, Profile, VAEConfig
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.types import LATENT_CHANNELS, ActionSpec, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE: Final = 96
CHUNK: Final = 12
ACTIONS: Final = ActionSpec(
    dim=2,
    chunk=CHUNK,
    names=("x", "y"),
    units=("half tables/s", "half tables/s"),
    scale=(1.0, 1.0),
    frame="the table: x to the right, y upwards",
    fps=10.0,
)
DIT: Final = DiTConfig(
    num_layers=5,
    num_heads=3,
    head_dim=64,
    adaln_rank=24,
    text_dim=8,
    rope_scale=(1.0, 1.0, 1.0),
    action_inputs=ACTIONS.inputs,
)
RAW_VAE: Final = VAEConfig(
    base_dim=8, latents_mean=(0.0,) * LATENT_CHANNELS, latents_std=(1.0,) * LATENT_CHANNELS
)
"""While it trains: its latents are not normalised yet."""


def training_dit(device: torch.device) -> DiT:
    """With every gate and the output at zero; the action MLPs start as zeros too."""
    dit = DiT(DIT, Ops()).to(device)
    with torch.no_grad():
        for name, weight in dit.named_parameters():
            if name.startswith("action_embed"):
                if name.endswith("fc1.weight"):
                    torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
                else:
                    weight.zero_()
            else:
                begin(name, weight)
    return dit


def profile_of(statistics: tuple[Sequence[float], Sequence[float]], num_steps: int) -> Profile:
    """What the checkpoint implies."""
    mean, deviation = statistics
    return Profile(
        name="pusherworld",
        size=Size(SIDE, SIDE),
        num_frames=ACTIONS.num_frames,
        fps=ACTIONS.fps,
        dit=DIT,
        vae=VAEConfig(
            base_dim=RAW_VAE.base_dim, latents_mean=tuple(mean), latents_std=tuple(deviation)
        ),
        num_steps=num_steps,
        guidance=0.0,
        conditional_frames=(1,),
        toy=True,
        actions=ACTIONS,
    )
