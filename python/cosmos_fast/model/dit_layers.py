"""The layers of the diffusion transformer: attention, MLP, the block that joins them, the last.

Axes: B batch, T latent frames, N tokens, D width, S rows of text, E outputs of a linear. Heads are
split as (B, N, heads, D).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from cosmos_fast.model.attention import AttentionSpec
from cosmos_fast.model.cuts import LAYER_NORM_EPS, Cut, in_pieces
from cosmos_fast.model.embeddings import Modulation
from cosmos_fast.model.rope import Rope

if TYPE_CHECKING:
    from cosmos_fast.config import DiTConfig
    from cosmos_fast.model.ops import Ops


class Placement(NamedTuple):
    """Where each token is."""

    rope: Rope
    frame_N: torch.Tensor | None
    """int64 latent frame of each token; None in raster order, where N / T tokens share one."""
    cut: Cut = Cut()


class SelfAttention(nn.Module):
    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.heads = (3, config.num_heads, config.head_dim)
        self.spec = AttentionSpec(config.head_dim**-0.5, role="self")
        self.qkv_proj = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.qk_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.qk_norm_eps)
        self.output_proj = nn.Linear(config.width, config.width, bias=False)
        self.eps = config.qk_norm_eps

    def attended(self, x_BND: torch.Tensor, rope: Rope) -> torch.Tensor:
        """What the output projection reads."""
        norms = (self.q_norm.weight, self.k_norm.weight)
        weight_ED = self.qkv_proj.weight
        out_BNHD = self.ops.self_attention(x_BND, weight_ED, *norms, *rope, self.eps, self.spec)
        return out_BNHD.flatten(2)


class CrossAttention(nn.Module):
    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.heads = (config.num_heads, config.head_dim)
        self.spec = AttentionSpec(config.head_dim**-0.5, role="cross")
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.kv_proj = nn.Linear(config.text_dim, 2 * config.width, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.qk_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.qk_norm_eps)
        self.output_proj = nn.Linear(config.width, config.width, bias=False)
        self.eps = config.qk_norm_eps

    def keys_and_values(self, rows_BSC: torch.Tensor) -> torch.Tensor:
        """(B, S, 2, heads, head_dim) of a prompt."""
        k, v = self.kv_proj(rows_BSC).unflatten(-1, (2, *self.heads)).unbind(2)
        return torch.stack((self.ops.head_norm(k, self.k_norm.weight, self.eps), v), dim=2)

    def attended(
        self, x_BND: torch.Tensor, text_BS2HD: torch.Tensor, zero_keys: int = 0
    ) -> torch.Tensor:
        """What the output projection reads."""
        q = self.ops.linear_head_norm(x_BND, self.q_proj.weight, self.q_norm.weight, self.eps)
        k, v = text_BS2HD.expand(x_BND.shape[0], -1, -1, -1, -1).unbind(2)
        spec = replace(self.spec, zero_keys=zero_keys) if zero_keys else self.spec
        return self.ops.attention(q, k, v, spec).out_BSHD.flatten(2)


class MLP(nn.Module):
    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.layer1 = nn.Linear(config.width, config.mlp_width, bias=False)
        self.layer2 = nn.Linear(config.mlp_width, config.width, bias=False)

    def hidden(self, x_BND: torch.Tensor) -> torch.Tensor:
        """What the second layer reads."""
        return self.ops.linear_gelu(x_BND, self.layer1.weight)


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each with its own AdaLN.

    What moves through memory besides the matrix products and attention, in reads and writes of a
    tensor of N x D, with the kernels of :mod:`cosmos_fast.model.ops`: on Hopper, where products
    take what follows them along, and elsewhere.

    ========================================================  ======  =========
    pass                                                      Hopper  elsewhere
    ========================================================  ======  =========
    norm and modulation before self-attention                      2          2
    norm and rotation of q and k, where the projection is          4          4
    gate and residual behind attention, twice                      2          8
    norm and modulation that follow those, twice                   4
    norm of the queries of cross-attention                                    2
    GELU between the two layers of the MLP, 4 D wide                          8
    gate and residual at the end                                   1          3
    ========================================================  ======  =========

    13 in all on Hopper (15 for the 14B, whose heads are normed by a pass), 27 elsewhere. A
    product's own write of its result is not counted; the reads of the residual stream that a gated
    product makes are. At 27,216 tokens of the 2B 13 are 1.4 GB, 0.34 ms at the 4.2 TB/s that a copy
    reaches on an H200, 10 ms of a forward.
    """

    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.self_attn = SelfAttention(config, ops)
        self.cross_attn = CrossAttention(config, ops)
        self.mlp = MLP(config, ops)
        self.self_attn_modulation = Modulation(config, parts=3)
        self.cross_attn_modulation = Modulation(config, parts=3)
        self.mlp_modulation = Modulation(config, parts=3)

    def modulations(self, time_BTD: torch.Tensor, shared_BTE: torch.Tensor) -> torch.Tensor:
        """(3, B, T, 3·D): shift, scale and gate of each sub-layer."""
        return torch.stack(
            (
                self.self_attn_modulation(time_BTD, shared_BTE),
                self.cross_attn_modulation(time_BTD, shared_BTE),
                self.mlp_modulation(time_BTD, shared_BTE),
            )
        )

    def forward(
        self,
        x_BND: torch.Tensor,
        modulation_KBTE: torch.Tensor,
        placement: Placement,
        text_BS2HD: torch.Tensor,
        zero_keys: int = 0,
    ) -> torch.Tensor:
        if placement.cut != Cut():
            text = (text_BS2HD, zero_keys)
            return in_pieces(self, placement.cut, x_BND, modulation_KBTE, placement, text)
        self_attn, cross_attn, mlp = (part.chunk(3, dim=-1) for part in modulation_KBTE.unbind(0))
        frame_N, ops = placement.frame_N, self.ops

        shift_BTD, scale_BTD, gate_BTD = self_attn
        y_BND = ops.layernorm_modulate(x_BND, shift_BTD, scale_BTD, frame_N, LAYER_NORM_EPS)
        y_BND = self.self_attn.attended(y_BND, placement.rope)
        weight_DD = self.self_attn.output_proj.weight

        # Padding alone has values of zeros: without a prompt this sub-layer adds nothing.
        if text_BS2HD.shape[1]:
            x_BND, y_BND = self._joined(x_BND, gate_BTD, y_BND, weight_DD, cross_attn, frame_N)
            y_BND = self.cross_attn.attended(y_BND, text_BS2HD, zero_keys)
            gate_BTD, weight_DD = cross_attn[2], self.cross_attn.output_proj.weight

        x_BND, y_BND = self._joined(x_BND, gate_BTD, y_BND, weight_DD, mlp, frame_N)
        y_BNE, gate_BTD = self.mlp.hidden(y_BND), mlp[2]
        return ops.linear_gated_residual(x_BND, gate_BTD, y_BNE, self.mlp.layer2.weight, frame_N)

    def _joined(
        self,
        x_BND: torch.Tensor,
        gate_BTD: torch.Tensor,
        y_BND: torch.Tensor,
        weight_DD: torch.Tensor,
        following: tuple[torch.Tensor, ...],
        frame_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream with one sub-layer added, and what the following one reads."""
        shift_BTD, scale_BTD, _ = following
        return self.ops.linear_gated_layernorm_modulate(
            x_BND, gate_BTD, y_BND, weight_DD, shift_BTD, scale_BTD, frame_N, LAYER_NORM_EPS
        )


class FinalLayer(nn.Module):
    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.modulation = Modulation(config, parts=2)
        self.linear = nn.Linear(config.width, config.out_channels * config.patch**2, bias=False)

    def forward(
        self, x_BND: torch.Tensor, modulation_BTE: torch.Tensor, frame_N: torch.Tensor | None
    ) -> torch.Tensor:
        shift_BTD, scale_BTD = modulation_BTE.chunk(2, dim=-1)
        y_BND = self.ops.layernorm_modulate(x_BND, shift_BTD, scale_BTD, frame_N, LAYER_NORM_EPS)
        out_BNE: torch.Tensor = self.linear(y_BND)
        return out_BNE
