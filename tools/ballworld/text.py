"""The T5 encoder in miniature, for training: transformers' arithmetic in a form a graph can hold.

transformers' own ``T5EncoderModel`` is what runs in the engine; a test holds the two together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from tools.ballworld.words import ROWS, vocabulary
from torch import nn

if TYPE_CHECKING:
    from transformers import T5Config

WIDTH: Final = 64
HEADS: Final = 4
HEAD_DIM: Final = 16
HIDDEN: Final = 256
LAYERS: Final = 2
BUCKETS: Final = 32
MAX_DISTANCE: Final = 128
_EPS: Final = 1e-6


def t5_config() -> T5Config:
    from transformers import T5Config

    return T5Config(
        vocab_size=len(vocabulary()),
        d_model=WIDTH,
        d_kv=HEAD_DIM,
        num_heads=HEADS,
        d_ff=HIDDEN,
        num_layers=LAYERS,
        relative_attention_num_buckets=BUCKETS,
        relative_attention_max_distance=MAX_DISTANCE,
        dropout_rate=0.0,
        layer_norm_epsilon=_EPS,
        feed_forward_proj="relu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )


def new_parameters() -> dict[str, nn.Parameter]:
    """T5's own initialisation, under transformers' names."""
    inner = HEADS * HEAD_DIM

    def normal(rows: int, columns: int, deviation: float) -> nn.Parameter:
        return nn.Parameter(torch.randn(rows, columns) * deviation)

    named = {"shared.weight": normal(len(vocabulary()), WIDTH, 1.0)}
    for layer in range(LAYERS):
        block = f"encoder.block.{layer}.layer"
        attention = f"{block}.0.SelfAttention"
        named |= {
            f"{attention}.q.weight": normal(inner, WIDTH, (WIDTH * HEAD_DIM) ** -0.5),
            f"{attention}.k.weight": normal(inner, WIDTH, WIDTH**-0.5),
            f"{attention}.v.weight": normal(inner, WIDTH, WIDTH**-0.5),
            f"{attention}.o.weight": normal(WIDTH, inner, inner**-0.5),
            f"{block}.0.layer_norm.weight": nn.Parameter(torch.ones(WIDTH)),
            f"{block}.1.DenseReluDense.wi.weight": normal(HIDDEN, WIDTH, WIDTH**-0.5),
            f"{block}.1.DenseReluDense.wo.weight": normal(WIDTH, HIDDEN, HIDDEN**-0.5),
            f"{block}.1.layer_norm.weight": nn.Parameter(torch.ones(WIDTH)),
        }
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    named[bias] = normal(BUCKETS, HEADS, WIDTH**-0.5)
    named["encoder.final_layer_norm.weight"] = nn.Parameter(torch.ones(WIDTH))
    return named


class TextTwin:
    """``T5EncoderModel`` as a function of its weights; rows past the prompt come out zero."""

    def __init__(self, named: dict[str, nn.Parameter], device: torch.device) -> None:
        self.named = named
        self.bucket_LL = _buckets(ROWS).to(device)

    def rows(self, ids_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        """
        Args:
            ids_BL: int64 (B, ROWS), padded.
            length_B: int64 (B,), tokens that count.

        Returns:
            dtype of the weights, (B, ROWS, 64).
        """
        weights = self.named
        there_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) < length_B[:, None]
        x_BLC = _looked_up(ids_BL, weights["shared.weight"])
        bias = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        bias_BHLL = _looked_up(self.bucket_LL, bias).permute(2, 0, 1)[None].float()
        bias_BHLL = bias_BHLL.masked_fill(~there_BL[:, None, None], torch.finfo(torch.float32).min)
        for layer in range(LAYERS):
            block = f"encoder.block.{layer}.layer"
            y_BLC = _norm(x_BLC, weights[f"{block}.0.layer_norm.weight"])
            x_BLC = x_BLC + self._attention(y_BLC, f"{block}.0.SelfAttention", bias_BHLL)
            y_BLC = _norm(x_BLC, weights[f"{block}.1.layer_norm.weight"])
            hidden = F.relu(F.linear(y_BLC, weights[f"{block}.1.DenseReluDense.wi.weight"]))
            x_BLC = x_BLC + F.linear(hidden, weights[f"{block}.1.DenseReluDense.wo.weight"])
        x_BLC = _norm(x_BLC, weights["encoder.final_layer_norm.weight"])
        return x_BLC * there_BL[..., None]

    def _attention(self, y_BLC: torch.Tensor, name: str, bias_BHLL: torch.Tensor) -> torch.Tensor:
        def heads(part: str) -> torch.Tensor:
            projected = F.linear(y_BLC, self.named[f"{name}.{part}.weight"])
            return projected.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)

        scores = (heads("q") @ heads("k").mT).float() + bias_BHLL
        mixed = scores.softmax(dim=-1).to(y_BLC.dtype) @ heads("v")
        return F.linear(mixed.transpose(1, 2).flatten(2), self.named[f"{name}.o.weight"])


def _looked_up(index: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows of a small table, as a product: its gradient is one too, which a CUDA graph can hold."""
    chosen = index[..., None] == torch.arange(len(table), device=index.device)
    return chosen.to(table.dtype) @ table


def _norm(x_BLC: torch.Tensor, weight_C: torch.Tensor) -> torch.Tensor:
    wide = x_BLC.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _EPS)
    return weight_C * normed.to(weight_C.dtype)


def _buckets(length: int) -> torch.Tensor:
    """T5's bidirectional relative-position buckets: int64 (length, length), query by key."""
    position = torch.arange(length)
    relative = position[None] - position[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    distance = relative.abs()
    far = exact + (
        torch.log(distance.float().clamp(min=1) / exact)
        / math.log(MAX_DISTANCE / exact)
        * (half - exact)
    ).to(torch.int64)
    near_or_far = torch.where(distance < exact, distance, far.clamp(max=half - 1))
    return (relative > 0).to(torch.int64) * half + near_or_far
