"""Attention beyond torch's own: the kernels and the wheel that may take it, all of one form."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from cosmos_fast.errors import InputError
from cosmos_fast.model.attention import (
    Attended,
    Attention,
    AttentionSpec,
    padded,
    refuse_unsupported,
)
from cosmos_fast.model.attention_table import ERROR_LIMIT, Backend
from cosmos_fast.model.obstacles import gluon_obstacle


def candidates(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int
) -> dict[Backend, Attention]:
    """Backends beyond torch's own that could run on this device, none of them tested yet; best
    first."""
    if dtype not in ERROR_LIMIT or head_dim not in (64, 128):
        return {}
    found: dict[Backend, Attention] = {}
    if capability == (9, 0):
        if importlib.util.find_spec("fa3_fwd_interface") is not None:
            found["fa3"] = _fa3_attention()
        found["hopper"] = _hopper_attention()
    return found | {"portable": _portable_attention()}


def _portable_attention() -> Attention:
    from cosmos_fast_kernels.attention import KeyBlocks, attention

    lists: dict[int, tuple[object, KeyBlocks]] = {}

    def blocks_of(spec: AttentionSpec, device: torch.device) -> KeyBlocks | None:
        """On the device, copied there once for each list; the list is kept, so is its id."""
        if spec.key_blocks is None:
            return None
        if id(spec.key_blocks) not in lists:
            made = KeyBlocks.from_lists(spec.key_blocks, device)
            lists[id(spec.key_blocks)] = (spec.key_blocks, made)
        return lists[id(spec.key_blocks)][1]

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
    ) -> Attended:
        blocks = blocks_of(spec, q.device)
        with torch.cuda.device_of(q):
            out, sums = attention(
                q,
                k,
                v,
                scale=spec.scale,
                zero_keys=spec.zero_keys,
                log_sum_exp=spec.log_sum_exp,
                key_blocks=blocks,
            )
        return Attended(out, sums)

    return attend


def _hopper_attention() -> Attention:
    """Imported where it is called: a Triton whose Gluon is another fails the test, not the host."""
    reason = gluon_obstacle()

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
    ) -> Attended:
        if reason is not None:
            raise InputError(reason)
        from cosmos_fast_kernels.attention_hopper import hopper_attention

        out, sums = hopper_attention(
            q, k, v, scale=spec.scale, zero_keys=spec.zero_keys, log_sum_exp=spec.log_sum_exp
        )
        return Attended(out, sums)

    return attend


def reachable_by_tma(*tensors_BSHD: torch.Tensor) -> bool:
    """Whether TMA, through which ours for Hopper and the wheel read, can move these from where
    they lie."""
    from cosmos_fast_kernels.attention import tma_obstacle

    return tma_obstacle(*tensors_BSHD) is None


def _fa3_attention() -> Attention:
    """The wheel ``fa3-fwd``, where its user has installed it."""

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
    ) -> Attended:
        function: Any = importlib.import_module("fa3_fwd_interface").flash_attn_func
        refuse_unsupported(spec, "the FlashAttention-3 wheel")
        k, v = padded(k, v, spec.zero_keys)
        out = function(q, k, v, softmax_scale=spec.scale)
        return Attended(out[0] if isinstance(out, tuple) else out)

    return attend
