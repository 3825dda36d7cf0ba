"""Which modules of the networks make up the blocks that a plan moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from cosmos_fast.model.dit import DiT
    from cosmos_fast.model.t5 import T5Encoder
    from cosmos_fast.model.vae import VAE

Blocks = Mapping[str, Sequence[nn.Module]]
"""A block's name, and the modules whose parameters it is made of, in the order of use."""
Components = Mapping[str, Blocks]


def dit_blocks(dit: DiT) -> Blocks:
    """ "edges" (used at both ends of a pass) and "blocks.0", "blocks.1", ..."""
    edges: list[nn.Module] = [dit.patch_embed, dit.time_embed, dit.final_layer]
    if dit.action_embed is not None:
        edges.append(dit.action_embed)
    return {"edges": edges} | {f"blocks.{i}": [block] for i, block in enumerate(dit.blocks)}


def vae_blocks(vae: VAE) -> Components:
    """ "encoder" and "decoder", of one component each."""
    return {
        "vae encoder": {"encoder": [vae.encoder, vae.quant_conv]},
        "vae decoder": {"decoder": [vae.decoder, vae.post_quant_conv]},
    }


def text_blocks(t5: T5Encoder) -> Blocks:
    """ "embedding" (with the last norm) and "layer 0", "layer 1", ..."""
    embedding: list[nn.Module] = [t5.shared, t5.encoder.final_layer_norm]
    return {"embedding": embedding} | {
        f"layer {i}": [layer] for i, layer in enumerate(t5.encoder.block)
    }
