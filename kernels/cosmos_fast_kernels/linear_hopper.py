"""Products with epilogues for Hopper, in Gluon: y = epilogue(x Wᵀ), rounded once.

A program walks over tiles of the output. One warp, the loader, brings x and W through TMA into a
ring of shared memory; the other warpgroups, the consumers, multiply on wgmma with the sums in
registers, apply the epilogue to those, and send the result out through TMA while the next tile's
products run. :class:`LinearConfig` says whether consumers share a tile or take tiles in turns.

Here are the kernel, its designs, and the calls; :mod:`linear_hopper_consumer` is what a consumer
does, :mod:`linear_hopper_pipeline` how data moves.

Axes: M rows (tokens), N outputs, K inputs, F frames, L tokens of a sequence, D features of a head,
R = D / 2 rotation angles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from cosmos_fast_kernels.attention_hopper_pipeline import make_barriers, make_ring
from cosmos_fast_kernels.launching import launch, processors
from cosmos_fast_kernels.linear_hopper_checks import (
    check_angles,
    check_gate,
    check_heads,
    check_layout,
    check_product,
)
from cosmos_fast_kernels.linear_hopper_consumer import consume
from cosmos_fast_kernels.linear_hopper_epilogue import Epilogue
from cosmos_fast_kernels.linear_hopper_pipeline import CONSUMERS, LinearConfig, load_tiles

_CHANGING: Final = [
    "rows",
    "row_tiles",
    "column_tiles",
    "column_pieces",
    "k_steps",
    "rows_per_frame",
    "tokens",
    "q_heads",
]


@gluon.jit(do_not_specialize=_CHANGING)
def _linear_kernel(
    x_desc,
    w_desc,
    residual_desc,
    y_desc,
    gate_pointer,
    frame_pointer,
    gate_stride,
    rows,
    row_tiles,
    column_tiles,
    column_pieces,
    k_steps,
    rows_per_frame,
    q_weight_pointer,
    k_weight_pointer,
    cos_pointer,
    sin_pointer,
    eps,
    tokens,
    q_heads,
    CONFIG: gl.constexpr,
    EPILOGUE: gl.constexpr,
):
    descs = (x_desc, w_desc, residual_desc, y_desc)
    sizes = (row_tiles, column_tiles, k_steps)
    numbers = (gate_pointer, frame_pointer, gate_stride, rows, column_pieces, rows_per_frame)
    heads = (q_weight_pointer, k_weight_pointer, cos_pointer, sin_pointer, eps, tokens, q_heads)
    PIECES: gl.constexpr = CONSUMERS * CONFIG.pieces
    buffers = (
        make_ring(x_desc, CONFIG.stages * CONFIG.members),
        make_ring(w_desc, CONFIG.stages),
        make_ring(y_desc, PIECES),
    )
    bars = (
        make_barriers(CONFIG.stages, 1),
        make_barriers(CONFIG.stages, CONFIG.members),
        make_barriers(PIECES, 1),
        make_barriers(PIECES, 1),
        make_barriers(CONSUMERS, 1),
    )
    gl.warp_specialize(
        [
            (consume, (descs, buffers, bars, sizes, numbers, heads, 0, CONFIG, EPILOGUE)),
            (consume, (descs, buffers, bars, sizes, numbers, heads, 1, CONFIG, EPILOGUE)),
            (load_tiles, (descs, buffers, bars, sizes, CONFIG, EPILOGUE.kind == "gated")),
        ],
        [4, 1],
        [CONFIG.registers, CONFIG.loader_registers],
    )


WIDE: Final = LinearConfig()
"""128 x 256 by two consumers, output in two pieces each."""
ALL_PIECES: Final = LinearConfig(stages=3, pieces=4)
"""The same with room for the whole output, and so for a residual that is there before it is due."""
TURNS: Final = LinearConfig(rows=128, columns=128, together=False, stages=5)
"""128 x 128 by each of two consumers in turns: epilogues run under products."""
DESIGNS: Final[Mapping[str, LinearConfig]] = {
    "wide": WIDE,
    "wide, all pieces": ALL_PIECES,
    "tall": LinearConfig(rows=128, columns=128, stages=3),
    "turns": TURNS,
}
"""What has been thought of, for the bench to choose from."""
DEFAULT: Final[Mapping[str, LinearConfig]] = {
    "none": TURNS,
    "gelu": WIDE,
    "gated": TURNS,
    "norm": TURNS,
    "rope": TURNS,
}
"""The design of each kind of epilogue, where the caller names none: the fastest on an H200 at
27,216 rows of 2048."""


def linear(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """x Wᵀ on a GPU of compute capability 9.0.

    Args:
        x_MK: bfloat16, the last axis contiguous, rows any multiple of 8 elements apart.
        weight_NK: bfloat16, as ``torch.nn.Linear`` keeps it; N and K multiples of 64.
        out: where to write, bfloat16 of shape (M, N), laid out as x may be. None: a new tensor.
        config: the design; None: :data:`DEFAULT`.

    Raises:
        ValueError: shapes, dtypes, devices, strides or addresses that the kernel cannot take.
    """
    return _launch(x_MK, weight_NK, Epilogue(), out, config)


def linear_gelu(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    *,
    round_first: bool = False,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """``reference.linear_gelu``: GELU in its exact form of x Wᵀ.

    Args:
        round_first: round the product to bfloat16 before GELU, as two kernels would: one rounding
            more than needed, to tell apart what differs from them.
        x_MK, weight_NK, out, config: as in :func:`linear`.

    Raises:
        ValueError: as :func:`linear`.
    """
    return _launch(x_MK, weight_NK, Epilogue("gelu", round_first=round_first), out, config)


def linear_gated_residual(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    residual_MN: torch.Tensor,
    gate_FN: torch.Tensor,
    frame_M: torch.Tensor | None,
    *,
    round_first: bool = False,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """``reference.linear_gated_residual``: residual + gate · (x Wᵀ), by the frame of each row.

    Args:
        residual_MN: bfloat16, laid out as x may be.
        gate_FN: bfloat16, the last axis contiguous.
        frame_M: int32 or int64, contiguous: the frame of each row, 0 to F - 1 (not checked: the
            device would have to wait). None: M / F consecutive rows to a frame.
        out: as in :func:`linear`; ``residual_MN`` itself is allowed.
        x_MK, weight_NK, round_first, config: as in :func:`linear_gelu`.

    Raises:
        ValueError: as :func:`linear`; or rows that frames do not share evenly.
    """
    epilogue = Epilogue("gated", indexed=frame_M is not None, round_first=round_first)
    check_gate(x_MK, weight_NK, residual_MN, gate_FN, frame_M)
    gate = (residual_MN, gate_FN, frame_M)
    return _launch(x_MK, weight_NK, epilogue, out, config, gate)


def linear_head_norm(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    *,
    round_first: bool = False,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """``reference.linear_head_norm``: the norm over each head of x Wᵀ.

    Args:
        norm_D: gains of the norm, bfloat16 or float32, contiguous; D is 64 or 128 and divides N.
        eps: added to the mean square.
        x_MK, weight_NK, round_first, out, config: as in :func:`linear_gelu`; D divides the
            ``columns`` of ``config``.

    Raises:
        ValueError: as :func:`linear`; or heads that the kernel cannot take.
    """
    check_heads(x_MK, weight_NK, {"norm": norm_D}, 1)
    epilogue = Epilogue("norm", round_first=round_first, features=len(norm_D))
    heads = (norm_D, None, None, None, eps, 1, 0)
    return _launch(x_MK, weight_NK, epilogue, out, config, heads=heads)


def linear_qk_norm_rope(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    q_norm_D: torch.Tensor,
    k_norm_D: torch.Tensor,
    cos_LR: torch.Tensor,
    sin_LR: torch.Tensor,
    eps: float,
    *,
    round_first: bool = False,
    out: torch.Tensor | None = None,
    config: LinearConfig | None = None,
) -> torch.Tensor:
    """``reference.linear_qk_norm_rope``: q, k and v of x Wᵀ, q and k normed and turned.

    Args:
        weight_NK: that of q above that of k above that of v: N is three times heads times D.
        q_norm_D, k_norm_D: as in :func:`linear_head_norm`.
        cos_LR, sin_LR: float32, contiguous; row m has the angles of token m mod L, L divides M.
        x_MK, eps, round_first, out, config: as in :func:`linear_head_norm`.

    Returns:
        (M, N): q of every head, then k, then v.

    Raises:
        ValueError: as :func:`linear_head_norm`; or tables that do not fit.
    """
    check_heads(x_MK, weight_NK, {"q_norm": q_norm_D, "k_norm": k_norm_D}, 3)
    features = len(q_norm_D)
    check_angles(x_MK, {"cos": cos_LR, "sin": sin_LR}, features)
    epilogue = Epilogue("rope", round_first=round_first, features=features)
    q_heads = weight_NK.shape[0] // (3 * features)
    heads = (q_norm_D, k_norm_D, cos_LR, sin_LR, eps, len(cos_LR), q_heads)
    return _launch(x_MK, weight_NK, epilogue, out, config, heads=heads)


def _launch(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    epilogue: Epilogue,
    out: torch.Tensor | None,
    config: LinearConfig | None,
    gate: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] = (None, None, None),
    heads: tuple[torch.Tensor | float | None, ...] = (None, None, None, None, 0.0, 1, 0),
) -> torch.Tensor:
    check_product(x_MK, weight_NK)
    config = DEFAULT[epilogue.kind] if config is None else config
    if epilogue.features and config.columns % epilogue.features:
        raise ValueError(
            f"{config.columns = }: whole heads of {epilogue.features} features are needed"
        )
    (rows, inputs), outputs = x_MK.shape, weight_NK.shape[0]
    out = x_MK.new_empty((rows, outputs)) if out is None else out
    residual_MN, gate_FN, frame_M = gate
    residual_MN = out if residual_MN is None else residual_MN
    for name, one in {"residual": residual_MN, "out": out}.items():
        if one.shape != (rows, outputs):
            raise ValueError(f"{name} of shape {tuple(one.shape)}: ({rows}, {outputs}) is needed")
    named = {"x": x_MK, "weight": weight_NK, "residual": residual_MN, "out": out}
    for name, one in named.items():
        check_layout(name, one, x_MK.device)
    if rows == 0:
        return out

    row_tiles = triton.cdiv(rows, config.tile_rows)
    column_tiles = triton.cdiv(outputs, config.columns)
    with torch.cuda.device_of(x_MK):  # Triton launches on the current device
        launch(
            _linear_kernel,
            (min(row_tiles * column_tiles, processors(x_MK)),),
            _descriptor(x_MK, config.rows),
            _descriptor(weight_NK, config.columns),
            _descriptor(residual_MN, config.rows),
            _descriptor(out, config.rows),
            gate_FN,
            frame_M,
            0 if gate_FN is None else gate_FN.stride(0),
            rows,
            row_tiles,
            column_tiles,
            outputs // 64,
            inputs // 64,
            1 if gate_FN is None else rows // gate_FN.shape[0],
            *heads,
            CONFIG=config,
            EPILOGUE=epilogue,
            num_warps=4,
        )
    return out


def _descriptor(tensor: torch.Tensor, rows: int) -> TensorDescriptor:
    """What TMA needs to move 64 columns of ``rows`` rows; beyond the end it reads zeros."""
    block = [rows, 64]
    # The stride of an axis of length 1 is arbitrary, and may be one that TMA refuses.
    stride = tensor.stride(0) if tensor.shape[0] > 1 else tensor.shape[1]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    return TensorDescriptor(tensor, list(tensor.shape), [stride, 1], block, layout)
