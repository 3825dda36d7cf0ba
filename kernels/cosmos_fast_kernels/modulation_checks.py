"""What the norms with modulation refuse alike.

Axes: B batch, N tokens, D features, T frames.
"""

from __future__ import annotations

import torch

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_modulation(
    x_BND: torch.Tensor, vectors_BTD: dict[str, torch.Tensor], frame_N: torch.Tensor | None
) -> None:
    """Whether the vectors are alike and fit the tokens, which know their frames."""
    batch, tokens, features = x_BND.shape
    first = next(iter(vectors_BTD.values()))
    for name, one in vectors_BTD.items():
        if one.shape != first.shape or one.ndim != 3 or one.shape[2] != features:
            raise ValueError(f"{name} of shape {tuple(one.shape)}: (B, T, {features}) is needed")
        if one.shape[0] not in (1, batch):
            raise ValueError(f"{name} of batch {one.shape[0]}: 1 or {batch} is needed")
    if frame_N is None and tokens % first.shape[1]:
        raise ValueError(f"{tokens} tokens do not share {first.shape[1]} frames evenly")
    if frame_N is not None and (
        frame_N.shape != (tokens,)
        or frame_N.dtype not in (torch.int32, torch.int64)
        or not frame_N.is_contiguous()
    ):
        raise ValueError(
            f"frame_N of shape {tuple(frame_N.shape)} and {frame_N.dtype}: contiguous int32 or "
            f"int64 of shape ({tokens},) is needed"
        )


def check_layout(tensors: dict[str, torch.Tensor], device: torch.device) -> None:
    """Whether the kernels can read, or write, tensors where they lie."""
    for name, one in tensors.items():
        if one.dtype not in _DTYPES or one.stride(-1) != 1 or one.device != device:
            raise ValueError(
                f"{name} of {one.dtype} and strides {one.stride()} on {one.device}: bfloat16, "
                f"float16 or float32 with a contiguous last axis on {device}"
            )
