"""Attention compiled ahead of time for every architecture, where no GPU is, and what came of it.

This file is also the program that compiles: ``python FILE CAPABILITY FORMS [DESIGN]`` calls the
launch wrapper once for each form, as an engine would, under a driver that knows its target and
launches nothing, and prints what the machine code of each uses as one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ahead_of_time import assembler_log, disassembled, pretend_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ahead_of_time import Compiler

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that one program may use, by compute capability."""


FOLDED = {"zero_keys": 212}
MERGED = {"log_sum_exp": True}
LISTED = {"key_blocks": [[0, 2], [1], [0, 1, 2]]}
PORTABLE: Mapping[str, dict[str, Any]] = {
    "merged 64": {"features": 64} | MERGED,
    "merged 128": {"features": 128} | MERGED,
    "listed 64": {"features": 64} | LISTED,
    "listed 128": {"features": 128} | LISTED,
    "folded 64": {"features": 64} | FOLDED,
}
"""What the table may name the portable kernel for, everywhere. Merged is dense and one store more,
folded the code of dense with another start of its sums."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_portable_attention_compiles_without_spills(
    capability: int, compiler: Compiler, tmp_path: Path
) -> None:
    forms = dict(PORTABLE)
    if capability == 90:  # the one row of the table with it
        forms["folded 128"] = {"features": 128} | FOLDED
    reports = compiler.printed_by(__file__, capability, json.dumps(forms), cache=tmp_path)
    assert set(reports) == set(forms)
    for name, report in reports.items():
        assert report["shared"] <= SHARED_MEMORY[capability] * 1024, name
        assert report["spills"] == 0, name
        assert report["tensor_core_instructions"] > 0, name
        assert (report["stores_of_sums"] > 0) == ("merged" in name), name


EARLY = {"turns": "named", "free": "named", "early_values": True, "q_registers": True}
LAZY = {"turns": "none", "free": "named", "skip_decay": True, "slack": 8.0}


SHIPPED = EARLY | {"skip_decay": True}
FEW_KEYS: Mapping[str, Any] = {"dense": {}, "folded": FOLDED}
MANY_KEYS: Mapping[str, Any] = {"dense": {}, "merged": MERGED}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "design", "forms"),
    [
        (64, {}, FEW_KEYS),
        (128, {}, FEW_KEYS),
        (128, LAZY | {"q_registers": True}, {"dense": {}}),
        (128, EARLY, {"dense": {}}),
        (64, SHIPPED, MANY_KEYS),
        (128, SHIPPED, MANY_KEYS),
    ],
    ids=["64", "128", "lazy", "early", "shipped 64", "shipped 128"],
)
def test_hopper_attention_keeps_its_design_in_machine_code(
    features: int,
    design: dict[str, Any],
    forms: dict[str, dict[str, Any]],
    compiler: Compiler,
    tmp_path: Path,
) -> None:
    forms = {name: form | {"features": features} for name, form in forms.items()}
    reports = compiler.printed_by(
        __file__, 90, json.dumps(forms), json.dumps(design), cache=tmp_path
    )
    assert set(reports) == set(forms)
    for name, report in reports.items():
        keeps_its_design(report, features, design)
        assert (report["stores_of_sums"] > 0) == (name == "merged")
    if "folded" in reports:  # one exponential a row more, of two rows a thread in two warpgroups
        assert reports["folded"]["exponentials"] == reports["dense"]["exponentials"] + 2 * 2


def keeps_its_design(report: dict[str, Any], features: int, design: dict[str, Any]) -> None:
    assert report["shared"] <= SHARED_MEMORY[90] * 1024
    assert report["spills"] == 0
    assert "Compiling entry function" in report["assembler"]
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


def compile_all(
    capability: int, forms: dict[str, dict[str, Any]], design: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """What came of each form, by its name; ``design``: of the kernel for Hopper."""
    pretend_target(capability)
    from cosmos_fast_kernels import attention, attention_hopper

    made: list[tuple[Any, str]] = []
    kernel: Any = (attention if design is None else attention_hopper)._attention_kernel
    run = kernel.run

    def compile_instead(*arguments: Any, **options: Any) -> None:
        with assembler_log() as log:
            made.append((run(*arguments, **options | {"warmup": True}), log.getvalue()))

    kernel.run = compile_instead
    for form in forms.values():
        given: dict[str, Any] = {"scale": 0.1} | form
        features = given.pop("features")
        qkv = torch.empty(2, 300, 3, 4, features, dtype=torch.bfloat16).unbind(2)
        if design is not None:
            config = attention_hopper.HopperConfig(head_dim=features, **design)
            attention_hopper.hopper_attention(*qkv, config=config, **given)
            continue
        if lists := given.pop("key_blocks", None):
            given["key_blocks"] = attention.KeyBlocks.from_lists(lists, "cpu")
        attention.attention(*qkv, blocks=attention.BLOCKS[capability, features], **given)
    hopper = design is not None
    return {name: used(*one, hopper=hopper) for name, one in zip(forms, made, strict=True)}


def used(kernel: Any, log: str, *, hopper: bool) -> dict[str, Any]:
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    sass = disassembled(kernel.asm["cubin"], folder)
    return {
        "shared": kernel.metadata.shared,
        "votes": len(re.findall(r"\bVOTE\.ANY\b", sass)),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "tensor_core_instructions": len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA)\b", sass)),
        "exponentials": len(re.findall(r"\bMUFU\.EX2\b", sass)),
        # Outputs are narrower or wider, or leave through TMA.
        "stores_of_sums": len(re.findall(r"\bSTG\.E\s", sass)),
        "assembler": log if hopper else "",
        "under_values": under_values(sass) if hopper else {},
    }


if __name__ == "__main__":
    print(json.dumps(compile_all(*map(json.loads, sys.argv[1:]))))
