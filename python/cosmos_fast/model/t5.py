"""The encoder of T5 v1.0, which turns the tokens of prompts into rows.

Parameters have transformers' names, and values are rounded where its ``T5EncoderModel`` rounds
them. All prompts go through a layer before the next layer comes, so that weights that are streamed
come once; each goes by itself, as its values must not depend on its company. Nothing waits for the
device.

Axes: P prompts, N rows, C their width, H heads of D values.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cosmos_fast.config import T5Config

_BIAS: Final = "block.0.layer.0.SelfAttention.relative_attention_bias"


class T5Encoder(nn.Module):
    """Token ids to the last hidden state."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.shared = Table(config)
        self.encoder = Stack(config)

    def forward(self, ids_PN: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
        """
        Args:
            ids_PN: int64, on the device of the weights; padded.
            lengths: tokens of each prompt that are read, 1 to N; on the host.

        Returns:
            (N, C) of each prompt, in the dtype of the weights. Rows past its length mean nothing.
        """
        prompts = [F.embedding(ids_N, self.shared.weight) for ids_N in ids_PN]
        rows: list[torch.Tensor] = self.encoder(prompts, lengths)
        return rows


class Table(nn.Module):
    """A row of every token. None of torch's own: those draw their first values by what torch
    imports its compiler for, even on the meta device, and that takes seconds."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))


class Stack(nn.Module):
    """The layers, and the norm behind the last."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Layer(config, first=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = Norm(config)

    def forward(self, prompts: list[torch.Tensor], lengths: Sequence[int]) -> list[torch.Tensor]:
        """
        Args:
            prompts: (N, C) each; overwritten.
            lengths: as for :class:`T5Encoder`.
        """
        # Called as the module that it is: the weights of the first layer may have to come for it.
        bias = self.get_submodule(_BIAS)
        biases = [bias(len(x_NC), length) for x_NC, length in zip(prompts, lengths, strict=True)]
        for layer in self.block:
            layer(prompts, biases)
        return [self.final_layer_norm(x_NC) for x_NC in prompts]


class Layer(nn.Module):
    """Self-attention, then the feed-forward, each added to what it was made from."""

    def __init__(self, config: T5Config, *, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, first=first), FeedForwardLayer(config)])

    def forward(self, prompts: list[torch.Tensor], biases_1HNN: list[torch.Tensor]) -> None:
        """
        Args:
            prompts: (N, C) each; overwritten.
            biases_1HNN: of each prompt, from :class:`PositionBias`.
        """
        attention, feed_forward = self.layer
        for x_NC, bias_1HNN in zip(prompts, biases_1HNN, strict=True):
            x_NC += attention(x_NC, bias_1HNN)
            _keep_finite(x_NC)
            x_NC += feed_forward(x_NC)
            _keep_finite(x_NC)


class AttentionLayer(nn.Module):
    """Self-attention behind a norm."""

    def __init__(self, config: T5Config, *, first: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, first=first)
        self.layer_norm = Norm(config)

    def forward(self, x_NC: torch.Tensor, bias_1HNN: torch.Tensor) -> torch.Tensor:
        attended_NC: torch.Tensor = self.SelfAttention(self.layer_norm(x_NC), bias_1HNN)
        return attended_NC


class SelfAttention(nn.Module):
    """Every row attends to all that are read. Scores are not scaled: T5 has it in its weights."""

    def __init__(self, config: T5Config, *, first: bool) -> None:
        super().__init__()
        self.head_dim = config.d_kv
        inner = config.num_heads * config.d_kv
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if first:
            self.relative_attention_bias = PositionBias(config)

    def forward(self, x_NC: torch.Tensor, bias_1HNN: torch.Tensor) -> torch.Tensor:
        def heads(weight: torch.Tensor) -> torch.Tensor:
            projected: torch.Tensor = F.linear(x_NC, weight).unflatten(-1, (-1, self.head_dim))
            return projected.transpose(0, 1)[None]

        mixed_1HND = F.scaled_dot_product_attention(
            heads(self.q.weight),
            heads(self.k.weight),
            heads(self.v.weight),
            attn_mask=bias_1HNN,
            scale=1.0,
        )
        return F.linear(mixed_1HND[0].transpose(0, 1).flatten(1), self.o.weight)


class PositionBias(nn.Module):
    """What distance adds to the scores; one table, in the first layer, serves all layers."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.max_distance = config.max_distance
        self.weight = nn.Parameter(torch.empty(config.buckets, config.num_heads))

    def forward(self, rows: int, length: int) -> torch.Tensor:
        """
        Returns:
            (1, H, N, N), query by key: contiguous, as torch's kernels take nothing else. Keys from
            ``length`` on have the lowest number that there is.
        """
        place_N = torch.arange(rows, device=self.weight.device)
        bucket_R = self._buckets(torch.arange(1 - rows, rows, device=self.weight.device))
        index_NN = place_N - place_N[:, None] + (rows - 1)
        by_distance_HR = self.weight[bucket_R].T
        bias_HNN = by_distance_HR.index_select(1, index_NN.flatten()).view(-1, rows, rows)
        if length < rows:
            bias_HNN[..., length:].fill_(torch.finfo(bias_HNN.dtype).min)
        return bias_HNN[None]

    def _buckets(self, distance_R: torch.Tensor) -> torch.Tensor:
        """Near keys have a bucket each, far ones share those of a logarithmic scale; those ahead
        have the upper half. In float32, step by step as transformers has it."""
        half = len(self.weight) // 2
        exact = half // 2
        far_R = distance_R.abs()
        scale = math.log(self.max_distance / exact)
        shared_R = (torch.log(far_R.float() / exact) / scale * (half - exact)).long() + exact
        bucket_R = torch.where(far_R < exact, far_R, shared_R.clamp(max=half - 1))
        return bucket_R + (distance_R > 0) * half


class FeedForwardLayer(nn.Module):
    """Two matrices around a ReLU, behind a norm."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(config)
        self.layer_norm = Norm(config)

    def forward(self, x_NC: torch.Tensor) -> torch.Tensor:
        out_NC: torch.Tensor = self.DenseReluDense(self.layer_norm(x_NC))
        return out_NC


class FeedForward(nn.Module):
    """What the norm hands on, widened and narrowed again."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_NC: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x_NC, self.wi.weight).relu_(), self.wo.weight)


class Norm(nn.Module):
    """Root mean square, in float32; rounded before it meets the weight."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.epsilon = config.epsilon
        self.weight = nn.Parameter(torch.empty(config.d_model))

    def forward(self, x_NC: torch.Tensor) -> torch.Tensor:
        return torch.rms_norm(x_NC, self.weight.shape, None, self.epsilon).mul_(self.weight)


def _keep_finite(x_NC: torch.Tensor) -> None:
    """Holds float16 within its range, as transformers does; other dtypes have range enough."""
    if x_NC.dtype == torch.float16:
        highest = torch.finfo(x_NC.dtype).max
        limit = torch.where(x_NC.isinf().any(), highest - 1000, highest)
        x_NC.clamp_(-limit, limit)
