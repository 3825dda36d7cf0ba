"""Engines around other networks: diffusers' in the place of ours, and ours in float32.

Solver, media, text encoder and noise are those of the engine that they are made from, and so are
the weights.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

import rivals
import torch
from torch.nn.attention import SDPBackend

import cosmos_fast as cf
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.graphs import GraphedDiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.vae import VAE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.model.stripe import Stripe
    from cosmos_fast.parts import Parts


class TheirDiT:
    """diffusers' transformer where the engine expects ours."""

    def __init__(self, dit: DiT, *, compiled: bool) -> None:
        self.config, self.dtype, self.rope_table = dit.config, dit.dtype, dit.rope_table
        network = rivals.diffusers_dit(dit)
        self._network = rivals.compile_blocks(network) if compiled else network

    def text_context(
        self, rows_BSC: torch.Tensor, length: int | None = None, *, as_used: bool = False
    ) -> torch.Tensor:
        return rows_BSC.to(self.dtype)

    def rope(self, layout: object) -> None:
        """It makes its own, every time."""

    def modulations(self, t_BT: torch.Tensor) -> TheirDiT:
        return self

    def at(self, index_BT: torch.Tensor) -> None:
        """It has no table of times."""

    def __call__(
        self,
        x_BCTHW: torch.Tensor,
        t_BT: torch.Tensor,
        mask_B1THW: torch.Tensor,
        text: torch.Tensor,
        *_: object,
        **__: object,
    ) -> torch.Tensor:
        height, width = x_BCTHW.shape[3:]
        sample: torch.Tensor = self._network(
            hidden_states=x_BCTHW.to(self.dtype),
            timestep=t_BT[:, None, :, None, None].to(self.dtype),
            encoder_hidden_states=text,
            fps=24,
            condition_mask=mask_B1THW.to(self.dtype),
            padding_mask=x_BCTHW.new_zeros(1, 1, height * 8, width * 8).to(self.dtype),
        ).sample
        return sample.float()


class TheirVAE:
    """diffusers' VAE where the engine expects ours."""

    def __init__(self, vae: VAE) -> None:
        self._ours, self.ops = vae, vae.ops
        self._network = rivals.diffusers_vae(vae)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        moments = self._network.encode(video).latent_dist.parameters
        return self._ours._normalised(moments)

    def decode_chunks(
        self, latents: torch.Tensor, *, frame_by_frame: bool = False, stripe: Stripe | None = None
    ) -> Iterator[torch.Tensor]:
        assert stripe is None, "one rank computes all of it"
        yield self._network.decode(self._ours._denormalised(latents)).sample.float()


def with_their_networks(engine: cf.Video2World, *, compiled: bool = True) -> cf.Video2World:
    """The same engine, solver, media and text encoder around diffusers' two networks.

    Its reports say under ``backends`` what runs there, and nothing of ours.
    """
    parts = engine._parts
    names = their_backends(parts.dit, compiled=compiled)
    dit, vae = cast("DiT", TheirDiT(parts.dit, compiled=compiled)), cast("VAE", TheirVAE(parts.vae))
    other = beside(engine, replace(parts, dit=dit, vae=vae, ops=replace(parts.ops, names=names)))
    other._studio = replace(other._studio, dit=GraphedDiT(dit, most_tokens=0))
    return other


def their_backends(dit: DiT, *, compiled: bool) -> dict[str, str]:
    """What runs diffusers' networks, and which attention torch takes for tensors of their form."""
    device = dit.patch_embed.weight.device
    whose = f"diffusers {version('diffusers')}"
    how = f"blocks compiled by {rivals.compiler(device)}" if compiled else "eager"
    q = torch.empty(1, dit.config.num_heads, 512, dit.config.head_dim, dtype=dit.dtype)
    q = q.to(device)
    chosen = SDPBackend(torch._fused_sdp_choice(q, q, q)).name.lower()
    return {
        "transformer": f"{whose}, {how}",
        "attention": f"torch sdpa ({chosen})",
        "vae": f"{whose}, eager",
    }


def in_float32(engine: cf.Video2World) -> cf.Video2World:
    """The same engine around our networks in float32 and plain torch, on the same weights."""
    parts = engine._parts
    with torch.device("meta"):
        dit, vae = DiT(parts.dit.config, Ops(), parts.dit.rope_table), VAE(parts.vae.config)
    networks: tuple[tuple[torch.nn.Module, torch.nn.Module], ...] = (
        (dit, parts.dit),
        (vae, parts.vae),
    )
    for wide, ours in networks:
        wide.load_state_dict(
            {name: one.float() for name, one in ours.state_dict().items()}, strict=True, assign=True
        )
        wide.eval().requires_grad_(False)
    wide_parts = replace(parts, dtype=torch.float32, ops=Ops(), dit=dit, vae=vae, graphs=False)
    return beside(engine, wide_parts)


def beside(engine: cf.Video2World, parts: Parts) -> cf.Video2World:
    """An engine of other parts; where weights lie stays the business of ``engine``."""
    residence = engine._parts.residence
    told = residence.on_move
    other = cf.Video2World(parts, engine._desk)
    residence.on_move = told  # else it would keep the other's networks alive
    return other
