"""The three small networks: their sizes, their beginnings, and their weights in files.

They are the package's own classes, so that what is trained is what runs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final, cast

import torch
from safetensors.torch import load_file, save_file
from tools.ballworld.words import ROWS
from torch import nn

from cosmos_fast.config import DiTConfig, VAEConfig
from cosmos_fast.model.attention import Attended, AttentionSpec, torch_attention
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.vae import VAE
from cosmos_fast.types import LATENT_CHANNELS, TEXT_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DIT: Final = DiTConfig(
    num_layers=8,
    num_heads=3,
    head_dim=64,
    adaln_rank=32,
    text_dim=64,
    rope_scale=(1.0, 1.0, 1.0),
)
RAW_VAE: Final = VAEConfig(
    base_dim=16, latents_mean=(0.0,) * LATENT_CHANNELS, latents_std=(1.0,) * LATENT_CHANNELS
)
"""The VAE while it trains: its latents are not normalised yet."""

_TEXT_SHARPNESS: Final = 1.6
"""Start of the cross-attention's q and k norms. At 1, the 490 padding rows, whose logit is exactly
0, drown the 20 rows of text, and prompts are learnt late."""
_FIRST_LOG_VARIANCE: Final = -6.0
_PADDING_BIAS: Final = math.log(1 + TEXT_ROWS - ROWS)


def training_attention(
    q_BSHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, spec: AttentionSpec, /
) -> Attended:
    """Dense attention; text comes in ROWS rows, whose last stands for all the missing ones.

    A zero row has key 0 and value 0, so 481 of them are one whose logit is raised by log 481.
    """
    if spec.role == "self":
        return torch_attention(q_BSHD, k_BSHD, v_BSHD, spec)
    rows = k_BSHD.shape[1]
    last = torch.arange(rows, device=q_BSHD.device) == rows - 1
    scores = torch.einsum("bnhd,bshd->bhns", q_BSHD, k_BSHD).float() * spec.scale
    shares = (scores + last.float() * _PADDING_BIAS).softmax(dim=-1).to(v_BSHD.dtype)
    return Attended(torch.einsum("bhns,bshd->bnhd", shares, v_BSHD))


def training_dit(device: torch.device) -> DiT:
    """The transformer with attention folded over the text's padding; not for 512 rows."""
    dit = DiT(DIT, dataclasses.replace(Ops(), attention=training_attention)).to(device)
    with torch.no_grad():
        for name, weight in dit.named_parameters():
            begin(name, weight)
    return dit


def running_dit(device: torch.device, dtype: torch.dtype) -> DiT:
    """The transformer as the engine runs it: plain torch operations, 512 rows of text."""
    return DiT(DIT, Ops()).to(device, dtype).eval().requires_grad_(False)


def begin(name: str, weight: nn.Parameter) -> None:
    """Every gate and the output start at zero, as in DiT (arXiv 2212.09748)."""
    if weight.ndim == 1:
        cross = "cross_attn" in name
        weight.fill_(_TEXT_SHARPNESS if cross else 1.0)
    elif name.endswith(("modulation.up.weight", "linear_2.weight", "final_layer.linear.weight")):
        weight.zero_()
    else:
        nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


def muon_matrices(dit: DiT) -> dict[str, int]:
    """Names of the matrices inside the blocks, and how many are stacked in each."""
    stacked = {"qkv_proj.weight": 3, "kv_proj.weight": 2}
    return {
        name: next((parts for end, parts in stacked.items() if name.endswith(end)), 1)
        for name, weight in dit.named_parameters()
        if name.startswith("blocks.") and weight.ndim == 2 and "modulation" not in name
    }


def training_vae(device: torch.device, config: VAEConfig = RAW_VAE) -> VAE:
    """A VAE that treats every frame alike: temporal kernels see the present only, at first.

    Single frames then teach weights that hold for clips at once: the older taps of the causal
    convolutions start at zero, and single frames leave them there; time is halved by keeping the
    last frame, and doubled by showing a frame twice.
    """
    vae = VAE(config).to(device)
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if weight.ndim == 5 and weight.shape[2] == 3 and "time_conv" not in name:
                weight[:, :, :2] = 0
                weight[:, :, 2] *= math.sqrt(3.0)
            elif name.endswith("time_conv.weight"):
                outputs, inputs = weight.shape[:2]
                weight.mul_(0.1)
                weight[:, :, 2, 0, 0] += torch.eye(inputs, device=device).repeat(
                    outputs // inputs, 1
                )
            elif name.endswith("time_conv.bias"):
                weight.zero_()
        # Almost no noise on the latents at first: the decoder learns nothing through much.
        quiet = slice(LATENT_CHANNELS, None)
        vae.quant_conv.weight[quiet].mul_(0.1)
        cast("torch.Tensor", vae.quant_conv.bias)[quiet] = _FIRST_LOG_VARIANCE
    return vae


def save(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> None:
    """Writes a safetensors file; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, dict(about))
    partial.replace(path)


def prefixed(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of ``state`` under ``prefix``, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def read(path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors
