"""Attention compiled ahead of time for every architecture, where no GPU is, and what came of it.

This file is also the program that compiles: ``python FILE CAPABILITY FEATURES [DESIGN]`` calls the
launch wrapper as an engine would, under a driver that knows its target and launches nothing, and
prints what the machine code uses as one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ahead_of_time import assembler_log, disassembled, pretend_target, printed_by

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that one program may use, by compute capability."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_portable_attention_compiles_without_spills(capability: int, tmp_path: Path) -> None:
    report = printed_by(__file__, capability, 128, cache=tmp_path)
    assert report["shared"] <= SHARED_MEMORY[capability] * 1024
    assert report["spills"] == 0
    assert report["tensor_core_instructions"] > 0


EARLY = {"turns": "named", "free": "named", "early_values": True, "q_registers": True}
LAZY = {"turns": "none", "free": "named", "skip_decay": True, "slack": 8.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "design"),
    [
        (64, {}),
        (128, {}),
        (128, LAZY | {"q_registers": True}),
        (128, EARLY),
        (64, EARLY | {"skip_decay": True}),
        (128, EARLY | {"skip_decay": True}),
    ],
    ids=["64", "128", "lazy", "early", "shipped 64", "shipped 128"],
)
def test_hopper_attention_keeps_its_design_in_machine_code(
    features: int, design: dict[str, Any], tmp_path: Path
) -> None:
    report = printed_by(__file__, 90, features, json.dumps(design), cache=tmp_path)
    assert report["shared"] <= SHARED_MEMORY[90] * 1024
    assert report["spills"] == 0
    assert "serialized" not in report["assembler"]
    # Two warpgroups, each with the scores and the values in the first, every, and the last block.
    assert report["tensor_core_instructions"] == 2 * (2 * features // 16 + 2 * 128 // 16)
    early = design.get("early_values", False)
    # The softmax of 128 keys (64 exponentials a thread) runs while values are being added, or only
    # its maxima (two rows of 64 scores).
    under = report["under_values"]
    assert min(under["MUFU.EX2"]) >= (0 if early else 64)
    assert min(under["FMNMX"]) >= 64
    # One vote in the loop of each warpgroup.
    assert report["votes"] == (2 if design.get("skip_decay") else 0)


def under_values(sass: str) -> dict[str, list[int]]:
    """Exponentials and maxima between waiting for all products but one and waiting for that one."""
    parts = re.split(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1", sass)[1:]
    waiting = [part[: part.index("WARPGROUP.DEPBAR.LE gsb0, 0x0")] for part in parts]
    return {name: [part.count(name) for part in waiting] for name in ("MUFU.EX2", "FMNMX")}


def compile_one(
    capability: int, features: int, design: dict[str, Any] | None = None
) -> dict[str, Any]:
    hopper = design is not None
    pretend_target(capability)
    from cosmos_fast_kernels import attention, attention_hopper

    made: list[Any] = []

    def only_compiling(kernel: Any) -> None:
        run = kernel.run

        def compile_instead(*arguments: Any, **options: Any) -> None:
            made.append(run(*arguments, **options | {"warmup": True}))

        kernel.run = compile_instead

    qkv = torch.empty(2, 300, 3, 4, features, dtype=torch.bfloat16).unbind(2)
    if hopper:
        only_compiling(attention_hopper._attention_kernel)
        config = attention_hopper.HopperConfig(head_dim=features, **(design or {}))
        attention_hopper.hopper_attention(*qkv, scale=0.1, config=config)
    else:
        only_compiling(attention._attention_kernel)
        blocks = attention.BLOCKS[capability, features]
        attention.attention(*qkv, scale=0.1, blocks=blocks)
    kernel = made[0]
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    sass = disassembled(kernel.asm["cubin"], folder)
    return {
        "shared": kernel.metadata.shared,
        "votes": len(re.findall(r"\bVOTE\.ANY\b", sass)),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "tensor_core_instructions": len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA)\b", sass)),
        "assembler": assembler_log(kernel.asm["ptx"], folder) if hopper else "",
        "under_values": under_values(sass) if hopper else {},
    }


if __name__ == "__main__":
    print(
        json.dumps(compile_one(int(sys.argv[1]), int(sys.argv[2]), *map(json.loads, sys.argv[3:])))
    )
