"""What ours is measured against: diffusers' networks with our weights, and attention wheels.

Nothing here is needed by cosmos-fast. A package that is missing is an ImportError in the row.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosmos_fast.model.dit import DiT
    from cosmos_fast.model.vae import VAE

_OUTSIDE_BLOCKS = {
    "patch_embed.proj": "patch_embed",
    "time_embed.t_embedder.linear_1": "time_embed.linear_1",
    "time_embed.t_embedder.linear_2": "time_embed.linear_2",
    "time_embed.norm": "time_embed.norm",
    "norm_out.linear_1": "final_layer.modulation.down",
    "norm_out.linear_2": "final_layer.modulation.up",
    "proj_out": "final_layer.linear",
}
_INSIDE_BLOCKS = {
    "attn1.norm_q": "self_attn.q_norm",
    "attn1.norm_k": "self_attn.k_norm",
    "attn1.to_out.0": "self_attn.output_proj",
    "attn2.to_q": "cross_attn.q_proj",
    "attn2.norm_q": "cross_attn.q_norm",
    "attn2.norm_k": "cross_attn.k_norm",
    "attn2.to_out.0": "cross_attn.output_proj",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
    "norm1.linear_1": "self_attn_modulation.down",
    "norm1.linear_2": "self_attn_modulation.up",
    "norm2.linear_1": "cross_attn_modulation.down",
    "norm2.linear_2": "cross_attn_modulation.up",
    "norm3.linear_1": "mlp_modulation.down",
    "norm3.linear_2": "mlp_modulation.up",
}


def diffusers_dit(dit: DiT) -> Any:
    """``CosmosTransformer3DModel`` of the same weights, in their dtype and on their device."""
    from diffusers import CosmosTransformer3DModel

    config = dit.config
    with torch.device("meta"):
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
    other.load_state_dict(_weights(dit), strict=True, assign=True)
    return other.requires_grad_(False)


def _weights(dit: DiT) -> dict[str, torch.Tensor]:
    ours = {name: weight.detach() for name, weight in dit.named_parameters()}
    weights = {f"{name}.weight": ours[f"{key}.weight"] for name, key in _OUTSIDE_BLOCKS.items()}
    for index in range(dit.config.num_layers):
        block, prefix = f"blocks.{index}", f"transformer_blocks.{index}"
        weights |= {
            f"{prefix}.{name}.weight": ours[f"{block}.{key}.weight"]
            for name, key in _INSIDE_BLOCKS.items()
        }
        for attention, source, names in (
            ("attn1", "self_attn.qkv_proj", "qkv"),
            ("attn2", "cross_attn.kv_proj", "kv"),
        ):
            parts = ours[f"{block}.{source}.weight"].chunk(len(names))
            weights |= {
                f"{prefix}.{attention}.to_{name}.weight": part
                for name, part in zip(names, parts, strict=True)
            }
    return weights


def compiler(device: torch.device) -> str:
    """Inductor; on a CPU, where nothing is measured, only its front end."""
    return "inductor" if device.type == "cuda" else "eager"


def compile_blocks(other: Any) -> Any:
    """Each block compiled, which is how diffusers' own guide compiles a transformer."""
    for block in other.transformer_blocks:
        block.compile(dynamic=False, backend=compiler(other.device))
    return other


def with_attention(other: Any, attend: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Calls of ``other`` in which its processors find ``attend(q, k, v)`` (B, S, H, D)."""
    module: Any = importlib.import_module("diffusers.models.transformers.transformer_cosmos")

    def dispatch(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object
    ) -> torch.Tensor:
        return attend(query, key, value)

    def call(*arguments: Any, **options: Any) -> Any:
        original = module.dispatch_attention_fn
        module.dispatch_attention_fn = dispatch
        try:
            return other(*arguments, **options)
        finally:
            module.dispatch_attention_fn = original

    return call


def fa3() -> Callable[..., torch.Tensor]:
    """The wheel fa3-fwd as an operator that torch.compile need not look into."""
    function: Any = importlib.import_module("fa3_fwd_interface").flash_attn_func

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = function(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return _operator("fa3", attend)


def sage() -> Callable[..., torch.Tensor]:
    """The wheel sageattention (1.0.6 on the package index), the same way."""
    function: Any = importlib.import_module("sageattention").sageattn

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (one.transpose(1, 2).contiguous() for one in (q, k, v))
        return function(q, k, v, is_causal=False).transpose(1, 2).contiguous()

    return _operator("sage", attend)


def _operator(name: str, attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    full = f"cosmos_bench::{name}"

    def typed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v)

    # Evaluated annotations: torch reads the operator's schema off them.
    typed.__annotations__ = dict.fromkeys(("q", "k", "v", "return"), torch.Tensor)
    operator = torch.library.custom_op(full, typed, mutates_args=())
    operator.register_fake(lambda q, k, v: q.new_empty(q.shape))
    return operator


def diffusers_vae(vae: VAE) -> Any:
    """``AutoencoderKLWan`` of the same weights, in their dtype and on their device."""
    from diffusers import AutoencoderKLWan

    config = vae.config
    with torch.device("meta"):
        other = AutoencoderKLWan(
            base_dim=config.base_dim,
            z_dim=config.z_dim,
            dim_mult=list(config.dim_mult),
            num_res_blocks=config.num_res_blocks,
            attn_scales=[],
            temperal_downsample=list(config.temporal_downsample),
        ).eval()
    other.load_state_dict(vae.state_dict(), strict=True, assign=True)
    return other.requires_grad_(False)
