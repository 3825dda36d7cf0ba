"""Which attention runs: a shipped table, and a test of each choice when an engine starts.

Nothing is timed at run time: the same machine, packages and shapes give the same bytes. The order
of each row was measured on the card named beside it (``benches/LOG.md``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

ALL_CLASSES: Final[tuple[ShapeClass, ...]] = ("self", "cross", "folded", "listed", "merged")

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


def classes_of(backend: Backend, capability: tuple[int, int]) -> tuple[ShapeClass, ...]:
    """The columns in which the row of this generation of GPUs names ``backend``."""
    return tuple(one for one in ALL_CLASSES if backend in preferences(capability, one))


QUERIES: Final = 200
SHORT_KEYS, LONG_KEYS = 300, 1500
"""Of the self-test, ragged in any design's blocks: kernels may change their design between them."""
_LISTS: Final = ((0, 3, 11), (1, 2, 6, 7, 11))
"""For :data:`QUERIES` queries, of :data:`LONG_KEYS` keys, the last block among them. One object for
all tests: who copies lists to a device keeps them by identity."""


def self_test_error(
    attend: Attention,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    classes: Iterable[ShapeClass] = ("self", "cross", "folded", "merged"),
) -> float:
    """Largest relative error of ``attend`` against float64 on hard inputs of awkward sizes.

    Channels of k far from zero, two tokens that every query looks at, a row of large values. Few
    queries make it cheap; every length at which a design may change, every extra that a class asks
    for. The host waits for the device once.

    Args:
        classes: what ``attend`` would be chosen for.

    Raises:
        RuntimeError: no log-sum-exp came where one was asked for.
    """
    qkv = {keys: _hard_inputs(keys, head_dim, dtype, device) for keys in (SHORT_KEYS, LONG_KEYS)}
    errors = []
    for wanted in classes:
        for keys, spec in forms(wanted, head_dim**-0.5):
            attended = attend(*qkv[keys], spec)
            exact, exact_sums = _exact(*qkv[keys], spec)
            errors.append((attended.out_BSHD.double() - exact).norm() / exact.norm())
            if spec.log_sum_exp:
                if attended.log_sum_exp_BSH is None:
                    raise RuntimeError("no log-sum-exp came where one was asked for")
                # As the relative error of the weight with which a part would be merged.
                off = attended.log_sum_exp_BSH.double() - exact_sums
                errors.append(off.expm1().abs().max())
    return float(torch.stack(errors).max())  # Python's max would pass over a later NaN


def forms(wanted: ShapeClass, scale: float) -> list[tuple[int, AttentionSpec]]:
    """(keys, what is asked) that stand for one class."""
    lengths = (SHORT_KEYS, LONG_KEYS)
    match wanted:
        case "self":
            return [(keys, AttentionSpec(scale)) for keys in lengths]
        case "merged":
            return [(keys, AttentionSpec(scale, log_sum_exp=True)) for keys in lengths]
        case "cross":  # a prompt has 512 tokens at most
            return [(SHORT_KEYS, AttentionSpec(scale, "cross"))]
        case "folded":
            return [(SHORT_KEYS, AttentionSpec(scale, "cross", zero_keys=512 - SHORT_KEYS))]
        case "listed":
            return [(LONG_KEYS, AttentionSpec(scale, key_blocks=_LISTS))]


def _hard_inputs(
    keys: int, head_dim: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as views of one projection."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, keys, 3, 2, head_dim)
    qkv = torch.randn(shape, device=device, generator=generator).to(dtype)
    q, k, v = qkv[:, :QUERIES, 0], qkv[:, :, 1], qkv[:, :, 2]
    k[..., ::16] += 20.0
    q[..., 5] += 1.0
    k[:, :2, :, 5] += 30.0
    v[:, -1] *= 8.0
    return q, k, v


def _exact(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, log-sum-exp) in float64: float32 products of CUDA may be rounded to TF32, by a flag
    of the process."""
    k, v = padded(k, v, spec.zero_keys)
    scores = torch.einsum("bshd,bthd->bhst", q.double(), k.double()) * spec.scale
    if spec.key_blocks is not None:
        for block, seen in enumerate(spec.key_blocks):
            rows = slice(128 * block, 128 * (block + 1))
            for other in set(range(-(-k.shape[1] // 128))) - set(seen):
                scores[:, :, rows, 128 * other : 128 * (other + 1)] = float("-inf")
    out = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v.double())
    return out, scores.logsumexp(-1).transpose(1, 2)
