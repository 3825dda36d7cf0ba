"""Which attention runs: a shipped table, and a test of each choice when an engine starts.

Nothing is timed at run time: the same machine, packages and shapes give the same bytes. The order
of each row was measured on the card named beside it (``benches/LOG.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

import torch

from cosmos_fast.model.attention import AttentionSpec, padded

if TYPE_CHECKING:
    from cosmos_fast.model.attention import Attention

Backend = Literal["hopper", "portable", "fa3", "cudnn", "sdpa"]
"""Our Gluon kernel for Hopper; our portable Triton kernel; the FlashAttention-3 wheel; cuDNN
through torch; what torch's ``scaled_dot_product_attention`` prefers."""

ShapeClass = Literal["self", "cross", "folded", "listed", "merged"]
"""Self-attention; cross-attention, with its padding spelled out or folded; blocks of keys from a
list; results that are going to be merged and need their log-sum-exp."""

TABLE: Final[Mapping[tuple[int, int], Mapping[ShapeClass, tuple[Backend, ...]]]] = {
    # H200: FA3 682 to 707 TFLOP/s, ours 646 to 677, cuDNN 550 to 631 at 27,216 to 84,480 tokens;
    # 512 keys: 517, 513, 500; 128 of 512 keys, the others folded: 625 (not folded), 771, 597.
    (9, 0): {
        "self": ("fa3", "hopper", "cudnn"),
        "cross": ("hopper", "cudnn"),
        "folded": ("hopper", "portable", "cudnn"),
        "listed": ("portable",),
        "merged": ("hopper", "portable"),
    },
    # Not measured: cuDNN is torch's own first choice there.
    (10, 0): {
        "self": ("cudnn",),
        "cross": ("cudnn",),
        "folded": ("cudnn",),
        "listed": ("portable",),
        "merged": ("portable",),
    },
}
"""Best first, by compute capability. What is missing, or failed its test, is passed over."""

ELSEWHERE: Final[Mapping[ShapeClass, tuple[Backend, ...]]] = {
    "self": ("sdpa",),
    "cross": ("sdpa",),
    "folded": ("sdpa",),
    "listed": ("portable",),
    "merged": ("portable",),
}
"""The row of every other capability from 8.0 on: torch brings FlashAttention-2."""

ERROR_LIMIT: Final[Mapping[torch.dtype, float]] = {torch.bfloat16: 5e-3, torch.float16: 1e-3}
"""Of the self-test, relative to float32: twice and a half what rounding alone gives."""


def shape_class(spec: AttentionSpec) -> ShapeClass:
    """The column of the table that ``spec`` belongs to."""
    if spec.key_blocks is not None:
        return "listed"
    if spec.log_sum_exp:
        return "merged"
    if spec.zero_keys:
        return "folded"
    return spec.role


def preferences(capability: tuple[int, int], wanted: ShapeClass) -> tuple[Backend, ...]:
    """Backends for one class of shapes, best first, by the row of this generation of GPUs."""
    row = TABLE.get(capability)
    if row is None:
        row = TABLE.get((capability[0], 0)) if capability[0] == 10 else None
    return (row or ELSEWHERE)[wanted]


def self_test_error(attend: Attention, head_dim: int, dtype: torch.dtype, device: str) -> float:
    """Largest relative error of ``attend`` against float32 on hard inputs of awkward sizes.

    Channels of k far from zero, two tokens that every query looks at, a row of large values; 300
    keys, and the same with 212 folded ones, for 200 queries.
    """
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, 300, 3, 2, head_dim)
    qkv = torch.randn(shape, device=device, generator=generator).to(dtype)
    q, k, v = qkv[:, :200, 0], qkv[:, :, 1], qkv[:, :, 2]
    k[..., ::16] += 20.0
    q[..., 5] += 1.0
    k[:, :2, :, 5] += 30.0
    v[:, -1] *= 8.0
    spec = AttentionSpec(head_dim**-0.5)
    errors = []
    for zero_keys in (0, 212):
        folded = AttentionSpec(spec.scale, "cross", zero_keys=zero_keys)
        out = attend(q, k, v, folded if zero_keys else spec).out_BSHD
        exact = _exact(q, *padded(k, v, zero_keys), spec.scale)
        errors.append(float((out.double() - exact).norm() / exact.norm()))
    return float(torch.tensor(errors).max())  # Python's max would pass over a NaN that comes second


def _exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """In float64: float32 products of CUDA may be rounded to TF32, by a flag of the process."""
    scores = torch.einsum("bshd,bthd->bhst", q.double(), k.double()) * scale
    return torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v.double())
