"""diffusers' transformer in its group offload, for ``memory_rows.py``."""

from __future__ import annotations

import gc
from typing import Any

import torch


def offloaded(size: str, device: torch.device) -> Any:
    """diffusers' transformer with random weights, its blocks in host memory."""
    import rivals

    from cosmos_fast.model.dit import DiT
    from cosmos_fast.model.ops import Ops
    from cosmos_fast.weights.released import ARCHITECTURES

    with torch.device("meta"):
        ours = DiT(ARCHITECTURES[size], Ops()).to(torch.bfloat16).eval().requires_grad_(False)
    ours = ours.to_empty(device="cpu")
    # Numbers draw power as real ones do; which ones does not matter.
    numbers = torch.randn(1 << 24).to(torch.bfloat16)
    for weight in ours.parameters():
        scaled = numbers * weight.shape[-1] ** -0.5
        for part in weight.data.view(-1).split(len(scaled)):
            part.copy_(scaled[: len(part)])
    theirs = rivals.diffusers_dit(ours)
    del ours
    gc.collect()
    theirs.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=True,
    )
    return theirs


def inputs(size: tuple[int, int], frames: int, device: torch.device) -> dict[str, Any]:
    height, width = size
    latent = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    sample = torch.randn(latent, dtype=torch.bfloat16, device=device)
    return {
        "hidden_states": sample,
        "timestep": torch.full((1, 1, latent[2], 1, 1), 0.5, dtype=torch.bfloat16, device=device),
        "encoder_hidden_states": torch.randn(1, 512, 1024, dtype=torch.bfloat16, device=device),
        "fps": 24,
        "condition_mask": torch.zeros_like(sample[:, :1]),
        "padding_mask": sample.new_zeros(1, 1, height, width),
    }
