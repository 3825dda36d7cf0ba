"""What the products on Hopper refuse.

Axes: M rows (tokens), N outputs, K inputs, F frames, L tokens of a sequence, D features of a head,
R = D / 2 rotation angles.
"""

from __future__ import annotations

import torch


def check_product(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> None:
    if x_MK.ndim != 2 or weight_NK.ndim != 2 or x_MK.shape[1] != weight_NK.shape[1]:
        raise ValueError(
            f"x of shape {tuple(x_MK.shape)} and weight of shape {tuple(weight_NK.shape)}: (M, K) "
            f"and (N, K) are needed"
        )
    outputs, inputs = weight_NK.shape
    if outputs % 64 or inputs % 64 or 0 in (outputs, inputs):
        raise ValueError(f"{outputs} outputs of {inputs} inputs: multiples of 64 are needed")


def check_layout(name: str, one: torch.Tensor, device: torch.device) -> None:
    """Whether TMA can move a tensor from where it lies."""
    if one.dtype != torch.bfloat16 or one.device != device:
        raise ValueError(f"{name} of {one.dtype} on {one.device}: bfloat16 on {device} is needed")
    apart = one.shape[0] > 1 and (one.stride(0) < one.shape[1] or one.stride(0) % 8)
    if one.stride(1) != 1 or apart or one.data_ptr() % 16:
        raise ValueError(
            f"{name} of strides {one.stride()} at {one.data_ptr():#x}: a contiguous last axis, "
            f"rows apart by a multiple of 8 elements and an address that 16 divides are needed"
        )


def check_gate(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    residual_MN: torch.Tensor,
    gate_FN: torch.Tensor,
    frame_M: torch.Tensor | None,
) -> None:
    check_product(x_MK, weight_NK)
    rows, outputs = x_MK.shape[0], weight_NK.shape[0]
    if gate_FN.ndim != 2 or gate_FN.shape[1] != outputs or gate_FN.shape[0] == 0:
        raise ValueError(f"gate of shape {tuple(gate_FN.shape)}: (F, {outputs}) is needed")
    if gate_FN.dtype != torch.bfloat16 or gate_FN.stride(1) != 1 or gate_FN.data_ptr() % 16:
        raise ValueError(
            f"gate of {gate_FN.dtype} and strides {gate_FN.stride()} at {gate_FN.data_ptr():#x}: "
            f"bfloat16 with a contiguous last axis at an address that 16 divides is needed"
        )
    if gate_FN.device != x_MK.device:
        raise ValueError(f"gate on {gate_FN.device}: {x_MK.device} is needed")
    if frame_M is None and rows % gate_FN.shape[0]:
        raise ValueError(f"{rows} rows do not share {gate_FN.shape[0]} frames evenly")
    if frame_M is not None and (
        frame_M.shape != (rows,)
        or frame_M.dtype not in (torch.int32, torch.int64)
        or not frame_M.is_contiguous()
        or frame_M.device != x_MK.device
    ):
        raise ValueError(
            f"frame_M of shape {tuple(frame_M.shape)} and {frame_M.dtype} on {frame_M.device}: "
            f"contiguous int32 or int64 of shape ({rows},) on {x_MK.device} is needed"
        )


def check_heads(
    x_MK: torch.Tensor, weight_NK: torch.Tensor, norms: dict[str, torch.Tensor], kinds: int
) -> None:
    """Whether outputs are heads of ``kinds`` kinds, as many of each, that the norms fit."""
    check_product(x_MK, weight_NK)
    outputs = weight_NK.shape[0]
    features = next(iter(norms.values())).shape[-1:].numel()
    if features not in (64, 128):
        raise ValueError(f"heads of {features} features: 64 or 128 are needed")
    if outputs % (kinds * features):
        raise ValueError(
            f"{outputs} outputs of heads of {features} features: a multiple of "
            f"{kinds * features} is needed"
        )
    for name, norm_D in norms.items():
        if norm_D.shape != (features,) or norm_D.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(
                f"{name} of shape {tuple(norm_D.shape)} and {norm_D.dtype}: bfloat16 or float32 "
                f"of shape ({features},) is needed"
            )
        _check_read(name, norm_D, x_MK.device)
    if len({norm_D.dtype for norm_D in norms.values()}) > 1:
        named = ", ".join(f"{name} of {norm_D.dtype}" for name, norm_D in norms.items())
        raise ValueError(f"{named}: one dtype is needed")


def check_angles(x_MK: torch.Tensor, tables: dict[str, torch.Tensor], features: int) -> None:
    """Whether the tables have angles for every row, sequence by sequence."""
    rows, tokens = x_MK.shape[0], next(iter(tables.values())).shape[:1].numel()
    for name, table_LR in tables.items():
        if table_LR.shape != (tokens, features // 2) or table_LR.dtype != torch.float32:
            raise ValueError(
                f"{name} of shape {tuple(table_LR.shape)} and {table_LR.dtype}: float32 of shape "
                f"({tokens}, {features // 2}) is needed"
            )
        _check_read(name, table_LR, x_MK.device)
    if rows and (tokens == 0 or rows % tokens):
        raise ValueError(f"{rows} rows are not sequences of {tokens} tokens, one angle table each")


def _check_read(name: str, one: torch.Tensor, device: torch.device) -> None:
    if not one.is_contiguous() or one.device != device:
        raise ValueError(
            f"{name} of strides {one.stride()} on {one.device}: a contiguous tensor on {device} "
            f"is needed"
        )
