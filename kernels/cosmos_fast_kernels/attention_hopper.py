"""Dense attention for Hopper, in Gluon: TMA, wgmma, warp specialisation.

One skeleton; :class:`HopperConfig` picks the design. A program walks over tiles, each a block of
queries of one head. In the specialised designs one warp, the loader, brings K and V through TMA
into two rings of shared memory, and each of the other warpgroups, the consumers, owns some rows of
the tile: S = Q K^T and O += P V on wgmma, between them the softmax in base 2 with P in registers.
Consumers may take turns: while one issues its two products, the other computes its softmax. The
ragged block of keys goes first, so that the loop over the others needs no mask.

Here are the kernel, the design that ships, and the call. :mod:`attention_hopper_consumer` is what
a consumer does, :mod:`attention_hopper_products` its two products, :mod:`attention_hopper_pipeline`
how data moves. What a quantised or a sparse form has to change stands in one function each:
``_scores`` and ``_add_values`` of the products (their arithmetic), ``key_block`` of the pipeline
(which keys come next).

Axes: B batch, S positions, H heads, D features of a head.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from cosmos_fast_kernels.attention import LOG2_E, check, tma_obstacle
from cosmos_fast_kernels.attention_hopper_consumer import consume
from cosmos_fast_kernels.attention_hopper_pipeline import (
    HopperConfig,
    load_tiles,
    make_barriers,
    make_ring,
)
from cosmos_fast_kernels.launching import launch, processors


@gluon.jit(do_not_specialize=["zero_keys", "batches", "queries", "keys", "heads"])
def _attention_kernel(
    q_desc,
    k_desc,
    v_desc,
    k_tail_desc,
    v_tail_desc,
    o_desc,
    log_sum_exp_pointer,
    scale,
    zero_keys,
    batches,
    queries,
    keys,
    heads,
    CONFIG: gl.constexpr,
    ZERO_KEYS: gl.constexpr,
    LOG_SUM_EXP: gl.constexpr,
):
    BLOCK: gl.constexpr = CONFIG.keys + CONFIG.tail
    query_blocks = gl.cdiv(queries, CONFIG.rows * CONFIG.consumers)
    sizes = (query_blocks, heads, query_blocks * heads * batches, gl.cdiv(keys, BLOCK))
    numbers = (scale, zero_keys, queries, keys, log_sum_exp_pointer)
    descs = (q_desc, (k_desc, k_tail_desc), (v_desc, v_tail_desc), o_desc)

    q_buffers = make_ring(q_desc, CONFIG.q_stages * CONFIG.consumers)
    k_ring = make_ring(k_desc, CONFIG.stages)
    v_ring = make_ring(v_desc, CONFIG.stages)
    k_tail_ring = k_ring
    v_tail_ring = v_ring
    if CONFIG.tail > 0:
        k_tail_ring = make_ring(k_tail_desc, CONFIG.stages)
        v_tail_ring = make_ring(v_tail_desc, CONFIG.stages)
    buffers = (q_buffers, (k_ring, k_tail_ring), (v_ring, v_tail_ring))
    bars = (
        make_barriers(CONFIG.q_stages * CONFIG.consumers, 1),
        make_barriers(CONFIG.q_stages * CONFIG.consumers, 1),
        make_barriers(CONFIG.stages, 1),
        make_barriers(CONFIG.stages, CONFIG.consumers),
        make_barriers(CONFIG.stages, 1),
        make_barriers(CONFIG.stages, CONFIG.consumers),
        make_barriers(CONFIG.consumers, 1),
    )
    if CONFIG.consumers == 1:
        consume(descs, buffers, bars, sizes, numbers, 0, CONFIG, ZERO_KEYS, LOG_SUM_EXP)
    elif CONFIG.consumers == 2:
        gl.warp_specialize(
            [
                (
                    consume,
                    (descs, buffers, bars, sizes, numbers, 0, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (
                    consume,
                    (descs, buffers, bars, sizes, numbers, 1, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (load_tiles, (descs, buffers, bars, sizes, CONFIG)),
            ],
            [4, 1],
            [CONFIG.registers, CONFIG.loader_registers],
        )
    else:
        gl.warp_specialize(
            [
                (
                    consume,
                    (descs, buffers, bars, sizes, numbers, 0, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (
                    consume,
                    (descs, buffers, bars, sizes, numbers, 1, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (
                    consume,
                    (descs, buffers, bars, sizes, numbers, 2, CONFIG, ZERO_KEYS, LOG_SUM_EXP),
                ),
                (load_tiles, (descs, buffers, bars, sizes, CONFIG)),
            ],
            [4, 4, 1],
            [CONFIG.registers, CONFIG.registers, CONFIG.loader_registers],
        )


SHORT: Final = 1024
"""Keys up to which filling the tensor cores at a tile's ends counts for more than its middle."""


def shipped(head_dim: int, keys: int) -> HopperConfig:
    """The design that ships: on an H200 at 27,216 keys 0.97 of FlashAttention-3's speed (662 of 682
    TFLOP/s), where two tiles of queries and nothing else make 0.89 (624 of 701, in another run); at
    512 keys two tiles lead, 537 to 516 without the skipped scaling."""
    if keys <= SHORT:
        return HopperConfig(head_dim=head_dim)
    return HopperConfig(
        head_dim=head_dim,
        turns="named",
        free="named",
        early_values=True,
        q_registers=True,
        skip_decay=True,
    )


def hopper_attention(
    q_BSHD: torch.Tensor,
    k_BSHD: torch.Tensor,
    v_BSHD: torch.Tensor,
    *,
    scale: float,
    zero_keys: int = 0,
    log_sum_exp: bool = False,
    out: torch.Tensor | None = None,
    config: HopperConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """softmax(q k^T scale) v on a GPU of compute capability 9.0.

    Arguments and results are those of :func:`cosmos_fast_kernels.attention.attention`.

    Args:
        config: the design; None: the one that ships for this size of head and number of keys.

    Raises:
        ValueError: what the portable kernel refuses, or what :func:`tma_obstacle` names.
    """
    if out is None:
        out = torch.empty_like(q_BSHD, memory_format=torch.contiguous_format)
    check(q_BSHD, k_BSHD, v_BSHD, out, scale, zero_keys)
    batches, queries, heads, head_dim = q_BSHD.shape
    keys = k_BSHD.shape[1]
    config = shipped(head_dim, keys) if config is None else config
    if config.head_dim != head_dim:
        raise ValueError(f"a design for heads of {config.head_dim} features, but {head_dim = }")
    if reason := tma_obstacle(q_BSHD, k_BSHD, v_BSHD, out):
        raise ValueError(reason)
    sums_BSH = None
    if log_sum_exp:
        sums_BSH = q_BSHD.new_empty((batches, queries, heads), dtype=torch.float32)
    if q_BSHD.numel() == 0:
        return out, sums_BSH
    if keys == 0:
        return out.zero_(), None if sums_BSH is None else sums_BSH.fill_(math.log(zero_keys))

    tiles = triton.cdiv(queries, config.rows * config.consumers) * heads * batches
    tail = config.tail or config.keys
    with torch.cuda.device_of(q_BSHD):  # Triton launches on the current device
        launch(
            _attention_kernel,
            (min(tiles, processors(q_BSHD)),),
            _descriptor(q_BSHD, config.rows),
            _descriptor(k_BSHD, config.keys),
            _descriptor(v_BSHD, config.keys),
            _descriptor(k_BSHD, tail),
            _descriptor(v_BSHD, tail),
            _descriptor(out, config.rows),
            sums_BSH,
            scale * LOG2_E,
            zero_keys,
            batches,
            queries,
            keys,
            heads,
            CONFIG=config,
            ZERO_KEYS=zero_keys > 0,
            LOG_SUM_EXP=log_sum_exp,
            num_warps=config.num_warps,
        )
    return out, sums_BSH


def _descriptor(tensor_BSHD: torch.Tensor, rows: int) -> TensorDescriptor:
    """What TMA needs to move ``rows`` positions of one head; beyond the end it reads zeros."""
    tensor_BHSD = tensor_BSHD.transpose(1, 2)
    block = [1, 1, rows, tensor_BHSD.shape[3]]
    # The stride of an axis of length 1 is arbitrary, and may be one that TMA refuses.
    strides = [
        stride if size > 1 else tensor_BHSD.shape[3]
        for size, stride in zip(tensor_BHSD.shape, tensor_BHSD.stride(), strict=True)
    ]
    strides[3] = 1
    dtype = gl.bfloat16 if tensor_BSHD.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for(block, dtype)
    return TensorDescriptor(tensor_BHSD, list(tensor_BHSD.shape), strides, block, layout)
