"""The DiT against diffusers' transformer, and against itself in other orders and dtypes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from cosmos_fast.config import DiTConfig
from cosmos_fast.errors import InputError
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.types import TokenLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SMALL = {
    "head_dim_64": DiTConfig(
        num_layers=2, num_heads=3, head_dim=64, adaln_rank=24, text_dim=40, rope_scale=(1.0, 4.0, 4.0)
    ),
    "head_dim_128_2b_ratios": DiTConfig(
        num_layers=2, num_heads=2, head_dim=128, adaln_rank=16, text_dim=64
    ),
    "head_dim_128_14b_ratios": DiTConfig(
        num_layers=2, num_heads=2, adaln_rank=16, text_dim=64, rope_scale=(20 / 24, 2.0, 2.0)
    ),
    "text2image": DiTConfig(
        num_layers=1, num_heads=2, head_dim=64, adaln_rank=16, text_dim=32, in_channels=16
    ),
}


def network(config: DiTConfig, rope_table: str = "float32") -> DiT:
    """A network whose every weight matters: norms away from 1, logits away from uniform."""
    torch.manual_seed(1)
    dit = DiT(config, Ops(), rope_table)
    with torch.no_grad():
        for name, weight in dit.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 2.0)
            else:
                weight.normal_(std=1.5 * weight.shape[1] ** -0.5)
    return dit.eval()


def theirs(dit: DiT) -> CosmosTransformer3DModel:
    """diffusers' network with the weights of ours, by a table of its own."""
    config = dit.config
    other = CosmosTransformer3DModel(
        in_channels=config.in_channels,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_layers,
        text_embed_dim=config.text_dim,
        adaln_lora_dim=config.adaln_rank,
        rope_scale=config.rope_scale,
        extra_pos_embed_type=None,
    ).eval()
    for block in other.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.eps = attention.norm_k.eps = config.qk_norm_eps
    weights = {
        "patch_embed.proj.weight": dit.patch_embed.weight,
        "time_embed.t_embedder.linear_1.weight": dit.time_embed.linear_1.weight,
        "time_embed.t_embedder.linear_2.weight": dit.time_embed.linear_2.weight,
        "time_embed.norm.weight": dit.time_embed.norm.weight,
        "norm_out.linear_1.weight": dit.final_layer.modulation.down.weight,
        "norm_out.linear_2.weight": dit.final_layer.modulation.up.weight,
        "proj_out.weight": dit.final_layer.linear.weight,
    }
    for index, block in enumerate(dit.blocks):
        ours, prefix = block, f"transformer_blocks.{index}"
        q, k, v = ours.self_attn.qkv_proj.weight.chunk(3)
        text_k, text_v = ours.cross_attn.kv_proj.weight.chunk(2)
        weights |= {
            f"{prefix}.attn1.to_q.weight": q,
            f"{prefix}.attn1.to_k.weight": k,
            f"{prefix}.attn1.to_v.weight": v,
            f"{prefix}.attn1.norm_q.weight": ours.self_attn.q_norm.weight,
            f"{prefix}.attn1.norm_k.weight": ours.self_attn.k_norm.weight,
            f"{prefix}.attn1.to_out.0.weight": ours.self_attn.output_proj.weight,
            f"{prefix}.attn2.to_q.weight": ours.cross_attn.q_proj.weight,
            f"{prefix}.attn2.to_k.weight": text_k,
            f"{prefix}.attn2.to_v.weight": text_v,
            f"{prefix}.attn2.norm_q.weight": ours.cross_attn.q_norm.weight,
            f"{prefix}.attn2.norm_k.weight": ours.cross_attn.k_norm.weight,
            f"{prefix}.attn2.to_out.0.weight": ours.cross_attn.output_proj.weight,
            f"{prefix}.ff.net.0.proj.weight": ours.mlp.layer1.weight,
            f"{prefix}.ff.net.2.weight": ours.mlp.layer2.weight,
        }
        for norm, modulation in (
            ("norm1", ours.self_attn_modulation),
            ("norm2", ours.cross_attn_modulation),
            ("norm3", ours.mlp_modulation),
        ):
            weights[f"{prefix}.{norm}.linear_1.weight"] = modulation.down.weight
            weights[f"{prefix}.{norm}.linear_2.weight"] = modulation.up.weight
    other.load_state_dict(weights, strict=True)
    return other


def inputs(config: DiTConfig, frames: int = 3, height: int = 6, width: int = 10) -> dict:
    generator = torch.Generator().manual_seed(2)
    mask = torch.zeros(1, 1, frames, 1, 1)
    mask[:, :, 0] = 1
    rows = torch.randn(2, 21, config.text_dim, generator=generator)
    rows[:, 13:] = 0
    return {
        "x_BCTHW": torch.randn(2, 16, frames, height, width, generator=generator),
        "t_BT": torch.rand(2, frames, generator=generator),
        "mask_B1THW": mask if config.in_channels == 17 else None,
        "rows": rows,
    }


def run(dit: DiT, x_BCTHW, t_BT, mask_B1THW, rows, layout=None, **options):
    return dit(x_BCTHW, t_BT, mask_B1THW, dit.text_context(rows), layout, **options)


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("name", SMALL)
@torch.inference_mode()
def test_forward_equals_diffusers(name: str, measured: Callable[[str], None]) -> None:
    config = SMALL[name]
    dit, given = network(config), inputs(config)
    other, x = theirs(dit), given["x_BCTHW"]
    batch, _, frames, height, width = x.shape
    mask = given["mask_B1THW"]
    expected = other(
        hidden_states=x,
        timestep=given["t_BT"][:, None, :, None, None],
        encoder_hidden_states=given["rows"],
        fps=24,
        condition_mask=None if mask is None else mask.expand(batch, 1, frames, height, width),
        padding_mask=torch.zeros(1, 1, height * 8, width * 8),
    ).sample
    error = relative_error(run(dit, **given), expected)
    measured(f"relative error {error:.1e}")
    assert expected.std() > 0.1
    assert error <= 1e-5
