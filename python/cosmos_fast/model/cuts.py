"""A block of the transformer in pieces: the same rows in the same order, less memory at a time.

Every result is a row of the same matrix product, a head of the same attention: what is cut is how
many of them exist at a time. A device's matrix products may round differently for other numbers of
rows, so the bytes may differ; the mathematics does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cosmos_fast.model.dit_layers import Block, Placement

LAYER_NORM_EPS: Final = 1e-6
"""Of the norms that AdaLN modulates."""


@dataclass(frozen=True)
class Cut:
    """How far a block's activations are cut up."""

    chunks: int = 1
    """Stretches of tokens that pass cross-attention and MLP one after the other; in raster order
    they end where latent frames end."""
    groups: int = 1
    """Groups of heads that pass self-attention one after the other."""

    @property
    def name(self) -> str:
        if self.chunks == self.groups == 1:
            return "whole"
        return f"{self.chunks} token chunks, {self.groups} head groups"

    def token_tensors(self, frames: int) -> float:
        """Token tensors (N tokens of width D) alive at the fullest moment of a block.

        For operations that work in place, and where GELU is one of its own. Whole: x, y, and q, k,
        v with the result in self-attention, q and the result in cross-attention, both sides of GELU
        in the MLP. Cut: x alone is whole, in self-attention also y and the result.

        Args:
            frames: latent frames; a stretch holds whole ones.
        """
        share = -(-frames // min(self.chunks, frames)) / frames
        attention = 6.0 if self.groups == 1 else max(3 + 4 / self.groups, 2 + 2 * share)
        cross = 4.0 if self.chunks == 1 else 1 + 4 * share
        mlp = 10.0 if self.chunks == 1 else 1 + 9 * share
        return max(attention, cross, mlp)


class Stretch(NamedTuple):
    """Tokens that go together."""

    tokens: slice
    frames: slice
    """Of the modulation."""
    frame_N: torch.Tensor | None


def in_pieces(
    block: Block,
    cut: Cut,
    x_BND: torch.Tensor,
    modulation_KBTE: torch.Tensor,
    placement: Placement,
    text: tuple[torch.Tensor, int],
) -> torch.Tensor:
    """``block`` of ``x_BND``, which is overwritten.

    Args:
        text: keys and values (B, S, 2, heads, head_dim), and how many rows of zeros follow them.
    """
    self_attn, cross_attn, mlp = modulation_KBTE.unbind(0)
    frames = self_attn.shape[1]
    stretches = list(_stretches(cut.chunks, x_BND.shape[1], frames, placement.frame_N))
    if cut.groups == 1:
        whole = [Stretch(slice(None), slice(None), placement.frame_N)]
        layer, projection = block.self_attn, block.self_attn.output_proj.weight
        attend = partial(layer.attended, rope=placement.rope)
        _by_stretches(block, x_BND, self_attn, whole, attend, projection)
    else:
        _self_attention(block, cut.groups, x_BND, self_attn, placement, stretches)
    if text[0].shape[1]:  # padding alone adds nothing
        read, projection = block.cross_attn, block.cross_attn.output_proj.weight
        attend = partial(read.attended, text_BS2HD=text[0], zero_keys=text[1])
        _by_stretches(block, x_BND, cross_attn, stretches, attend, projection)
    _by_stretches(block, x_BND, mlp, stretches, block.mlp.hidden, block.mlp.layer2.weight)
    return x_BND


def _stretches(
    chunks: int, tokens: int, frames: int, frame_N: torch.Tensor | None
) -> Iterator[Stretch]:
    units = frames if frame_N is None else tokens
    step = -(-units // min(chunks, units))
    for start in range(0, units, step):
        end = min(start + step, units)
        if frame_N is None:
            each = tokens // frames
            yield Stretch(slice(start * each, end * each), slice(start, end), None)
        else:
            yield Stretch(slice(start, end), slice(None), frame_N[start:end])


def _by_stretches(
    block: Block,
    x_BND: torch.Tensor,
    modulation_BTE: torch.Tensor,
    stretches: list[Stretch],
    layer: Callable[[torch.Tensor], torch.Tensor],
    weight_DE: torch.Tensor,
) -> None:
    """x + gate * (layer(modulated x) Wᵀ), in the place of x."""
    for tokens, frames, frame_N in stretches:
        piece = x_BND[:, tokens].contiguous()
        y_BND, gate_BTD = _modulated(block, piece, modulation_BTE[:, frames], frame_N)
        y_BNE = layer(y_BND)
        del y_BND
        gated = block.ops.linear_gated_residual(piece, gate_BTD, y_BNE, weight_DE, frame_N)
        _replace(x_BND, tokens, gated)
        del piece, y_BNE, gated


def _self_attention(
    block: Block,
    groups: int,
    x_BND: torch.Tensor,
    modulation_BTE: torch.Tensor,
    placement: Placement,
    stretches: list[Stretch],
) -> None:
    layer = block.self_attn
    _, heads, width = layer.heads
    y_BND, gate_BTD = _modulated(block, x_BND, modulation_BTE, placement.frame_N)
    attended_BNHD = y_BND.new_empty((*y_BND.shape[:2], heads, width))
    norms = (layer.q_norm.weight, layer.k_norm.weight)
    weight_3HDE = layer.qkv_proj.weight.unflatten(0, layer.heads)
    step = -(-heads // groups)
    for start in range(0, heads, step):
        part = weight_3HDE[:, start : start + step]
        attended_BNHD[:, :, start : start + step] = layer.ops.self_attention(
            y_BND, part.flatten(0, 2), *norms, *placement.rope, layer.eps, layer.spec
        )
    del y_BND
    for tokens, frames, frame_N in stretches:
        piece = x_BND[:, tokens].contiguous()
        gated = block.ops.linear_gated_residual(
            piece,
            gate_BTD[:, frames],
            attended_BNHD[:, tokens].flatten(2),
            layer.output_proj.weight,
            frame_N,
        )
        _replace(x_BND, tokens, gated)


def _modulated(
    block: Block, x_BND: torch.Tensor, modulation_BTE: torch.Tensor, frame_N: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x normed, scaled and shifted (B, N, D), and the gate (B, T, D)."""
    shift_BTD, scale_BTD, gate_BTD = modulation_BTE.chunk(3, dim=-1)
    modulate = block.ops.layernorm_modulate
    return modulate(x_BND, shift_BTD, scale_BTD, frame_N, LAYER_NORM_EPS), gate_BTD


def _replace(x_BND: torch.Tensor, tokens: slice, result_BND: torch.Tensor) -> None:
    place = x_BND[:, tokens]
    if place.data_ptr() != result_BND.data_ptr():  # operations may work in place
        place.copy_(result_BND)
