"""Attention in plain Triton, for every GPU from Ampere on: softmax(q k^T scale) v, block by block.

Reads q, k and v wherever a projection wrote them (any strides, last axis contiguous) and keeps the
running maximum and sum of each row in float32, base 2. :mod:`attention_hopper` is the same
computation written for one architecture; both stand on the conditions checked here.

What a quantised form has to change stands in :func:`_scores` and :func:`_add_values`; what a
sparse one has to bring is a list of key blocks. Axes: B batch, S positions, H heads, D features of
a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from cosmos_fast_kernels.launching import launch

LOG2_E: Final = math.log2(math.e)

LIST_BLOCK: Final = 128
"""Queries, and keys, in one block of a :class:`KeyBlocks` list."""


@triton.jit
def _scores(q, k, POLICY: tl.constexpr):
    """q k^T in float32."""
    tl.static_assert(POLICY == "input")
    return tl.dot(q, k)


@triton.jit
def _add_values(p, v, out, POLICY: tl.constexpr):
    """out + p v in float32."""
    tl.static_assert(POLICY == "input")
    return tl.dot(p.to(v.dtype), v, out)


@triton.jit
def _attend(
    q,
    k_pointers,
    v_pointers,
    k_stride_s,
    v_stride_s,
    first,
    keys,
    scale,
    out,
    top,
    total,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Add the keys ``first`` to ``first`` + KEYS to the running softmax of every row."""
    key = first + tl.arange(0, KEYS)
    valid = key < keys
    k_block = k_pointers + key.to(tl.int64)[None, :] * k_stride_s  # [D, KEYS]
    v_block = v_pointers + key.to(tl.int64)[:, None] * v_stride_s  # [KEYS, D]
    k = tl.load(k_block, mask=valid[None, :], other=0.0) if MASKED else tl.load(k_block)
    s = _scores(q, k, POLICY) * scale  # [ROWS, KEYS]
    if MASKED:
        s = tl.where(valid[None, :], s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, 1))
    decay = tl.math.exp2(top - new_top)
    p = tl.math.exp2(s - new_top[:, None])
    total = total * decay + tl.sum(p, 1)
    v = tl.load(v_block, mask=valid[:, None], other=0.0) if MASKED else tl.load(v_block)
    return _add_values(p, v, out * decay[:, None], POLICY), new_top, total


@triton.jit(do_not_specialize=["zero_keys", "queries", "keys"])
def _attention_kernel(
    q_pointer,
    k_pointer,
    v_pointer,
    out_pointer,
    log_sum_exp_pointer,
    list_start_pointer,
    list_pointer,
    q_stride_b,
    q_stride_s,
    q_stride_h,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    out_stride_b,
    out_stride_s,
    out_stride_h,
    scale,
    zero_keys,
    queries,
    keys,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    LIST_BLOCK: tl.constexpr,
    LISTED: tl.constexpr,
    LOG_SUM_EXP: tl.constexpr,
    POLICY: tl.constexpr,
):
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, HEAD_DIM)
    row_mask = (row < queries)[:, None]
    q_start = q_pointer + batch * q_stride_b + head * q_stride_h
    q_pointers = q_start + row.to(tl.int64)[:, None] * q_stride_s + feature[None, :]
    q = tl.load(q_pointers, mask=row_mask, other=0.0)  # [ROWS, D]
    k_pointers = k_pointer + batch * k_stride_b + head * k_stride_h + feature[:, None]
    v_pointers = v_pointer + batch * v_stride_b + head * v_stride_h + feature[None, :]

    # Keys of zeros score 0 and add nothing but to the sum.
    top = tl.full([ROWS], float("-inf"), tl.float32)
    if zero_keys > 0:
        top = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS], tl.float32) + zero_keys
    out = tl.zeros([ROWS, HEAD_DIM], tl.float32)

    if LISTED:
        entry = block * ROWS // LIST_BLOCK
        list_start = tl.load(list_start_pointer + entry)
        steps = (tl.load(list_start_pointer + entry + 1) - list_start) * (LIST_BLOCK // KEYS)
        for step in tl.range(0, steps):
            chosen = tl.load(list_pointer + list_start + step // (LIST_BLOCK // KEYS))
            first = chosen * LIST_BLOCK + step % (LIST_BLOCK // KEYS) * KEYS
            # The second half of the last block may hold no key: its scores are all -inf.
            if first < keys:
                out, top, total = _attend(
                    q, k_pointers, v_pointers, k_stride_s, v_stride_s, first, keys, scale,
                    out, top, total, KEYS, True, POLICY,
                )  # fmt: skip
    else:
        whole = keys // KEYS * KEYS
        for first in tl.range(0, whole, KEYS):
            out, top, total = _attend(
                q, k_pointers, v_pointers, k_stride_s, v_stride_s, first, keys, scale,
                out, top, total, KEYS, False, POLICY,
            )  # fmt: skip
        if whole < keys:
            out, top, total = _attend(
                q, k_pointers, v_pointers, k_stride_s, v_stride_s, whole, keys, scale,
                out, top, total, KEYS, True, POLICY,
            )  # fmt: skip

    # A row that attends to nothing has sum 0 and top -inf: output 0, log-sum-exp -inf.
    total = tl.where(total > 0.0, total, 1.0)
    out = out / total[:, None]
    out_start = out_pointer + batch * out_stride_b + head * out_stride_h
    out_pointers = out_start + row.to(tl.int64)[:, None] * out_stride_s + feature[None, :]
    tl.store(out_pointers, out.to(out_pointer.dtype.element_ty), mask=row_mask)
    if LOG_SUM_EXP:
        place = (batch * queries + row) * tl.num_programs(1) + head
        value = (top + tl.math.log2(total)) * 0.6931471805599453
        tl.store(log_sum_exp_pointer + place, value, mask=row < queries)


@dataclass(frozen=True)
class Blocks:
    """How the work is cut."""

    rows: int
    """Queries of one program; 128 or a divisor of it."""
    keys: int
    """Keys of one step; 128 or a divisor of it."""
    num_warps: int
    num_stages: int


BLOCKS: Final[Mapping[tuple[int, int], Blocks]] = {
    (80, 64): Blocks(128, 64, 4, 3),
    (80, 128): Blocks(128, 64, 8, 3),
    (86, 64): Blocks(128, 64, 4, 3),
    (86, 128): Blocks(128, 64, 8, 2),
    (89, 64): Blocks(128, 64, 4, 3),
    (89, 128): Blocks(128, 64, 8, 2),
    (90, 64): Blocks(128, 128, 8, 2),
    (90, 128): Blocks(128, 128, 8, 2),
    (100, 64): Blocks(128, 128, 8, 2),
    (100, 128): Blocks(128, 64, 8, 2),
    (120, 64): Blocks(128, 64, 4, 3),
    (120, 128): Blocks(128, 64, 8, 2),
}
"""By (compute capability, features of a head). Fixed: the same call gives the same bytes."""


@dataclass(frozen=True)
class KeyBlocks:
    """For each block of 128 queries the blocks of 128 keys that it attends to."""

    starts: torch.Tensor
    """int32, one more than there are blocks of queries: where each one's list starts, and ends."""
    indices: torch.Tensor
    """int32, the lists one after another."""

    @classmethod
    def from_lists(
        cls, lists: tuple[tuple[int, ...], ...], device: torch.device | str
    ) -> KeyBlocks:
        """``lists[i]``: the blocks of keys of the i-th block of queries, each once."""
        starts = torch.tensor([0, *(len(one) for one in lists)], dtype=torch.int32).cumsum(0)
        indices = torch.tensor([index for one in lists for index in one], dtype=torch.int32)
        return cls(starts.to(device, torch.int32), indices.to(device))


def attention(
    q_BSHD: torch.Tensor,
    k_BSHD: torch.Tensor,
    v_BSHD: torch.Tensor,
    *,
    scale: float,
    zero_keys: int = 0,
    log_sum_exp: bool = False,
    out: torch.Tensor | None = None,
    key_blocks: KeyBlocks | None = None,
    blocks: Blocks | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """softmax(q k^T scale) v for every head, in float32 inside.

    Args:
        q_BSHD: bfloat16 or float16, D 64 or 128; any strides with the last axis contiguous.
        k_BSHD, v_BSHD: as q, but with a length of their own, 0 only beside ``zero_keys``.
        scale: factor on q · k, above 0.
        zero_keys: how many further keys to count that are zero, with values of zero: the padding
            of a prompt, which scores 0 and adds to the denominator alone.
        log_sum_exp: whether the second result is wanted.
        out: where to write, shaped and typed like q; any strides with the last axis contiguous.
            None: a new contiguous tensor.
        key_blocks: attend to these only; None: to all.
        blocks: how to cut the work; None: the shipped choice for the device.

    Returns:
        the output, shaped and typed like q; and, float32 (B, S, H), the natural
        logarithm of each row's sum of exponentials, where asked for.

    Raises:
        ValueError: shapes, dtypes, devices or numbers that the kernel cannot take.
    """
    if out is None:
        out = torch.empty_like(q_BSHD, memory_format=torch.contiguous_format)
    check(q_BSHD, k_BSHD, v_BSHD, out, scale, zero_keys)
    batches, queries, heads, head_dim = q_BSHD.shape
    blocks = blocks or shipped_blocks(q_BSHD.device, head_dim)
    if key_blocks is not None and len(key_blocks.starts) != triton.cdiv(queries, LIST_BLOCK) + 1:
        raise ValueError(
            f"{len(key_blocks.starts) - 1} lists of key blocks for {queries} queries: "
            f"{triton.cdiv(queries, LIST_BLOCK)} are needed, one for each {LIST_BLOCK}"
        )
    sums_BSH = None
    if log_sum_exp:
        sums_BSH = q_BSHD.new_empty((batches, queries, heads), dtype=torch.float32)
    if q_BSHD.numel() == 0:
        return out, sums_BSH
    launch(
        _attention_kernel,
        (triton.cdiv(queries, blocks.rows), heads, batches),
        q_BSHD,
        k_BSHD,
        v_BSHD,
        out,
        sums_BSH,
        key_blocks.starts if key_blocks else None,
        key_blocks.indices if key_blocks else None,
        *q_BSHD.stride()[:3],
        *k_BSHD.stride()[:3],
        *v_BSHD.stride()[:3],
        *out.stride()[:3],
        scale * LOG2_E,
        zero_keys,
        queries,
        k_BSHD.shape[1],
        HEAD_DIM=head_dim,
        ROWS=blocks.rows,
        KEYS=blocks.keys,
        LIST_BLOCK=LIST_BLOCK,
        LISTED=key_blocks is not None,
        LOG_SUM_EXP=log_sum_exp,
        POLICY="input",
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )
    return out, sums_BSH


def shipped_blocks(device: torch.device, head_dim: int) -> Blocks:
    """The choice of :data:`BLOCKS` for ``device``: of its own capability or the next below; of the
    current device where ``device`` is "meta"."""
    if device.type not in ("cuda", "meta"):
        return Blocks(32, 32, 4, 1)
    major, minor = torch.cuda.get_device_capability(device if device.type == "cuda" else None)
    known = [capability for capability, features in BLOCKS if features == head_dim]
    return BLOCKS[max(one for one in known if one <= 10 * major + minor), head_dim]


def check(
    q_BSHD: torch.Tensor,
    k_BSHD: torch.Tensor,
    v_BSHD: torch.Tensor,
    out_BSHD: torch.Tensor,
    scale: float,
    zero_keys: int,
) -> None:
    """
    Raises:
        ValueError: shapes, dtypes, devices or numbers that no kernel of attention can take.
    """
    tensors = {"q": q_BSHD, "k": k_BSHD, "v": v_BSHD, "out": out_BSHD}
    for name, tensor in tensors.items():
        if tensor.ndim != 4 or tensor.shape[3] not in (64, 128) or tensor.stride(3) != 1:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} and strides {tensor.stride()}: "
                f"(B, S, H, 64 or 128) with a contiguous last axis is needed"
            )
        if (
            tensor.dtype not in (torch.bfloat16, torch.float16)
            or tensor.dtype != q_BSHD.dtype
            or tensor.device != q_BSHD.device
        ):
            raise ValueError(
                f"{name} of {tensor.dtype} on {tensor.device} beside q of {q_BSHD.dtype} on "
                f"{q_BSHD.device}: all bfloat16, or all float16, on one device are needed"
            )
    batches, _, heads, head_dim = q_BSHD.shape
    if (
        out_BSHD.shape != q_BSHD.shape
        or k_BSHD.shape != v_BSHD.shape
        or k_BSHD.shape != (batches, k_BSHD.shape[1], heads, head_dim)
    ):
        raise ValueError(
            f"q of shape {tuple(q_BSHD.shape)}, k of {tuple(k_BSHD.shape)}, v of "
            f"{tuple(v_BSHD.shape)}, out of {tuple(out_BSHD.shape)}: only the length of k and v, "
            f"which they share, may differ"
        )
    if not scale > 0 or not math.isfinite(scale):
        raise ValueError(f"{scale = }: a finite number above 0 is needed")
    if zero_keys < 0 or (zero_keys == 0 and k_BSHD.shape[1] == 0):
        raise ValueError(
            f"{zero_keys = } beside {k_BSHD.shape[1]} keys: one key at least is needed"
        )


def tma_obstacle(*tensors_BSHD: torch.Tensor) -> str | None:
    """Why TMA cannot read these tensors where they lie; None if it can."""
    for tensor in tensors_BSHD:
        if tensor.data_ptr() % 16:
            return f"data at {tensor.data_ptr():#x}: an address that 16 divides is needed"
        for size, stride in zip(tensor.shape[:3], tensor.stride()[:3], strict=True):
            if size > 1 and (stride <= 0 or stride * tensor.element_size() % 16):
                return f"strides {tensor.stride()}: steps of whole 16 bytes are needed"
    return None
