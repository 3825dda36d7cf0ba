"""Compiles the kernels for Hopper as an engine would, with the Triton that is installed; no GPU.

    PYTHONPATH=tests python tools/compile_hopper.py

Gluon is Triton's experimental part: a new version may know it under other names. The last line of
the output is one JSON object: Triton's version, and bytes of machine code by kernel.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton

from ahead_of_time import pretend_target
from cosmos_fast.model.linear_table import DESIGNS


def launches() -> dict[str, list[Any]]:
    """What would be launched, by the name of a kernel."""
    from cosmos_fast_kernels import linear_hopper
    from cosmos_fast_kernels.attention_hopper import hopper_attention
    from cosmos_fast_kernels.launching import only_named

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    x, weight, gate, norm = empty(300, 256), empty(256, 256), empty(3, 256), empty(128)
    products = {
        "none": lambda config: linear_hopper.linear(x, weight, config=config),
        "gelu": lambda config: linear_hopper.linear_gelu(x, weight, config=config),
        "gated": lambda config: linear_hopper.linear_gated_residual(
            x, weight, x, gate, None, config=config
        ),
        "norm": lambda config: linear_hopper.linear_head_norm(x, weight, norm, 1e-6, config=config),
    }
    found: dict[str, list[Any]] = {}
    for features in (64, 128):
        for keys in (300, 1500):
            with only_named() as found[f"attention, {features}, {keys} keys"]:
                qkv = [empty(1, length, 2, features) for length in (200, keys, keys)]
                hopper_attention(*qkv, scale=0.1)
    for epilogue, design in DESIGNS:
        with only_named() as found[f"linear, {epilogue}, {design}"]:
            products[epilogue](linear_hopper.DESIGNS[design])
    return found


def main() -> int:
    pretend_target(90)
    sizes = {
        name: [len(one.compile().asm["cubin"]) for one in named]
        for name, named in launches().items()
    }
    print(json.dumps({"triton": triton.__version__, "bytes": sizes}))
    return 0 if all(sizes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
