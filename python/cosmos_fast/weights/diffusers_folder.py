"""The JSON files that make a folder of weights a diffusers pipeline."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cosmos_fast.files import write_atomically
from cosmos_fast.weights.sidecar import SIDECAR, sidecar_json

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.config import DiTConfig, Profile, VAEConfig


def write_descriptions(folder: Path, profile: Profile) -> None:
    """Writes every description of a pipeline folder but the text encoder's and tokenizer's own.

    Args:
        folder: of the pipeline; ``transformer/``, ``vae/`` and ``scheduler/`` are made in it.
        profile: what goes into them, and into ``cosmos_fast.json``.
    """
    contents = {
        "model_index.json": model_index(),
        "transformer/config.json": transformer_json(profile.dit),
        "vae/config.json": vae_json(profile.vae),
        "scheduler/scheduler_config.json": scheduler_json(),
        SIDECAR: sidecar_json(profile),
    }
    for name, content in contents.items():
        write_json(folder / name, content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes an object as indented JSON, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def model_index() -> dict[str, Any]:
    """``model_index.json``: which classes the parts are."""
    return {
        "_class_name": "Cosmos2VideoToWorldPipeline",
        "_diffusers_version": "0.34.0",
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "CosmosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def transformer_json(config: DiTConfig) -> dict[str, Any]:
    """``transformer/config.json`` of ``CosmosTransformer3DModel``."""
    return {
        "_class_name": "CosmosTransformer3DModel",
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.num_layers,
        "mlp_ratio": config.mlp_ratio,
        "text_embed_dim": config.text_dim,
        "adaln_lora_dim": config.adaln_rank,
        "max_size": list(config.max_size),
        "patch_size": [1, config.patch, config.patch],
        "rope_scale": list(config.rope_scale),
        "concat_padding_mask": config.concat_padding_mask,
        "extra_pos_embed_type": None,
    }


def vae_json(config: VAEConfig) -> dict[str, Any]:
    """``vae/config.json`` of ``AutoencoderKLWan``."""
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": config.base_dim,
        "z_dim": config.z_dim,
        "dim_mult": list(config.dim_mult),
        "num_res_blocks": config.num_res_blocks,
        "attn_scales": [],
        "temperal_downsample": list(config.temporal_downsample),  # diffusers' own spelling
        "dropout": 0.0,
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
    }


def scheduler_json() -> dict[str, Any]:
    """``scheduler/scheduler_config.json``; the pipeline adds the range of sigma itself."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_karras_sigmas": True,
    }
