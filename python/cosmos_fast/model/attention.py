"""The seam at which attention is called, and its dense form on torch.

Axes: B batch, S positions, H heads, D features of a head. Tensors arrive as (B, S, H, D) views of
whatever a projection wrote; only the last axis has to be contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from cosmos_fast.errors import InputError


@dataclass(frozen=True)
class AttentionSpec:
    """What one layer asks of attention."""

    scale: float
    """Factor on q · k before the softmax."""
    role: Literal["self", "cross"] = "self"
    """Which attention of a block it is: sharding and sparsity concern the first only."""
    log_sum_exp: bool = False
    """Whether the log-sum-exp of each row is needed too (to merge parts of the keys)."""
    zero_keys: int = 0
    """Further keys of zeros with values of zeros, counted by the softmax and kept nowhere: the
    padding of a prompt."""
    key_blocks: tuple[tuple[int, ...], ...] | None = None
    """For each block of 128 queries, the blocks of 128 keys that it attends to; None: all."""
    precision: Literal["input", "8bit"] = "input"
    """Arithmetic of the two products: as the tensors come, or 8 bit with scales of its own."""


class Attended(NamedTuple):
    """What attention returns."""

    out_BSHD: torch.Tensor
    """dtype of q, shape (B, S, H, D)."""
    log_sum_exp_BSH: torch.Tensor | None = None
    """float32, shape (B, S, H), where the spec asks for it."""


class Attention(Protocol):
    """Any attention: dense, sparse, sharded, quantised."""

    def __call__(
        self,
        q_BSHD: torch.Tensor,
        k_BSHD: torch.Tensor,
        v_BSHD: torch.Tensor,
        spec: AttentionSpec,
        /,
    ) -> Attended: ...


class Sending(Protocol):
    """One attention whose parts are given as they are made."""

    def give(self, part: int, x_BNHD: torch.Tensor) -> None:
        """Takes keys (1) or values (2), which nobody may write to any more."""

    def attended(self, q_BNHD: torch.Tensor) -> Attended:
        """Of the queries and what was given; to be read before the next attention begins."""


@runtime_checkable
class TakesInTurns(Protocol):
    """Attention that does something with values and keys while queries are computed."""

    def begin(
        self, batch: int, heads: int, features: int, dtype: torch.dtype, spec: AttentionSpec
    ) -> Sending | None:
        """None: this attention is to be called with all three."""


def torch_attention(
    q_BSHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, spec: AttentionSpec, /
) -> Attended:
    """Dense attention through ``scaled_dot_product_attention``, with the backend torch prefers."""
    if spec.log_sum_exp:
        return attention_with_sums(q_BSHD, k_BSHD, v_BSHD, spec)
    refuse_unsupported(spec, "torch's attention")
    k_BSHD, v_BSHD = padded(k_BSHD, v_BSHD, spec.zero_keys)
    out_BHSD = F.scaled_dot_product_attention(
        q_BSHD.transpose(1, 2), k_BSHD.transpose(1, 2), v_BSHD.transpose(1, 2), scale=spec.scale
    )
    return Attended(out_BHSD.transpose(1, 2))


def cudnn_attention(
    q_BSHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, spec: AttentionSpec, /
) -> Attended:
    """Dense attention through cuDNN, the fastest that torch brings for Hopper and later.

    The operator is called directly: ``torch.nn.attention.sdpa_kernel`` would choose it by flags
    that belong to the whole process, and other threads of a host program would see them change.
    Inputs that cuDNN cannot take, gradients, or a host that has switched cuDNN attention off, go
    the way of :func:`torch_attention`.
    """
    if spec.log_sum_exp:
        return attention_with_sums(q_BSHD, k_BSHD, v_BSHD, spec)
    refuse_unsupported(spec, "cuDNN's attention")
    if spec.zero_keys:
        k_BSHD, v_BSHD = padded(k_BSHD, v_BSHD, spec.zero_keys)
        spec = replace(spec, zero_keys=0)
    q, k, v = q_BSHD.transpose(1, 2), k_BSHD.transpose(1, 2), v_BSHD.transpose(1, 2)
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
    needs_gradient = torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
    )
    if needs_gradient or not torch.backends.cuda.can_use_cudnn_attention(params):
        return torch_attention(q_BSHD, k_BSHD, v_BSHD, spec)
    out_BHSD = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, False, 0.0, False, False, scale=spec.scale
    )[0]
    return Attended(out_BHSD.transpose(1, 2))


def attention_with_sums(
    q_BSHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, spec: AttentionSpec, /
) -> Attended:
    """Dense attention with the log-sum-exp of each row, through the fastest of torch's that has it.

    ``scaled_dot_product_attention`` computes the sums and keeps them from its callers: the
    operators behind it are called directly. No gradients.
    """
    refuse_unsupported(replace(spec, log_sum_exp=False), "torch's attention with log-sum-exp")
    k_BSHD, v_BSHD = padded(k_BSHD, v_BSHD, spec.zero_keys)
    q, k, v = (each.transpose(1, 2) for each in (q_BSHD, k_BSHD, v_BSHD))
    aten, scale = torch.ops.aten, spec.scale
    if q.device.type == "cpu":
        found = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    else:
        params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
        if torch.backends.cuda.can_use_cudnn_attention(params):
            found = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=scale)
        elif torch.backends.cuda.can_use_flash_attention(params):
            found = aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
        else:
            found = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)
    out_BHSD, sums = found[:2]
    # cuDNN keeps an axis of one behind the rows, the efficient kernel pads them.
    sums_BHS = sums.reshape(*sums.shape[:3])[:, :, : q.shape[2]]
    return Attended(out_BHSD.transpose(1, 2), sums_BHS.transpose(1, 2))


def padded(
    k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, zero_keys: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with ``zero_keys`` rows of zeros behind them, for who cannot fold them."""
    if not zero_keys:
        return k_BSHD, v_BSHD
    batch, _, heads, features = k_BSHD.shape
    rows = k_BSHD.new_zeros(batch, zero_keys, heads, features)
    return torch.cat((k_BSHD, rows), dim=1), torch.cat((v_BSHD, rows), dim=1)


def refuse_unsupported(spec: AttentionSpec, name: str) -> None:
    """
    Raises:
        InputError: ``spec`` asks for something that dense attention without extras has not.
    """
    if spec.log_sum_exp or spec.key_blocks is not None or spec.precision != "input":
        raise InputError(
            f"{spec = }: {name} is dense, in the precision of its input, and returns no "
            f"log-sum-exp; pass an Ops whose attention offers what is asked"
        )
