"""Attention compiled ahead of time for every architecture, where no GPU is, and what came of it.

This file is also the program that compiles: ``python FILE CAPABILITY FEATURES [DESIGN]`` calls the
launch wrapper as an engine would, under a driver that knows its target and launches nothing, and
prints what the machine code uses as one JSON object. Triton's interpreter, which the other tests
run in, excludes its compiler, so that it takes a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that one program may use, by compute capability."""


def compiled(*arguments: object, cache: Path) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = os.pathsep.join(sys.path)
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_portable_attention_compiles_without_spills(capability: int, tmp_path: Path) -> None:
    report = compiled(capability, 128, cache=tmp_path)
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
    report = compiled(90, features, json.dumps(design), cache=tmp_path)
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


def disassembled(cubin: bytes, folder: Path) -> str:
    from triton import knobs

    (folder / "kernel.cubin").write_bytes(cubin)
    command = [knobs.nvidia.nvdisasm.path, "-c", str(folder / "kernel.cubin")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assembler_log(ptx: str, folder: Path) -> str:
    from triton import knobs

    (folder / "kernel.ptx").write_text(ptx)
    command = [knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", "-o", os.devnull]
    command += [str(folder / "kernel.ptx")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def under_values(sass: str) -> dict[str, list[int]]:
    """Exponentials and maxima between waiting for all products but one and waiting for that one."""
    parts = re.split(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1", sass)[1:]
    waiting = [part[: part.index("WARPGROUP.DEPBAR.LE gsb0, 0x0")] for part in parts]
    return {name: [part.count(name) for part in waiting] for name in ("MUFU.EX2", "FMNMX")}


def compile_one(
    capability: int, features: int, design: dict[str, Any] | None = None
) -> dict[str, Any]:
    hopper = design is not None
    import triton
    from triton.backends.compiler import GPUTarget

    driver = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    triton.runtime.driver.set_active(driver)
    from cosmos_fast_kernels import attention, attention_hopper

    made: list[Any] = []

    def only_compiling(kernel: Any) -> None:
        run = kernel.run

        def compile_instead(*arguments: Any, **options: Any) -> None:
            made.append(run(*arguments, **options | {"warmup": True}))

        kernel.run = compile_instead

    qkv = torch.empty(2, 300, 3, 4, features, dtype=torch.bfloat16).unbind(2)
    if hopper:
        cuda: Any = torch.cuda
        cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=132)
        cuda.device = lambda device: contextlib.nullcontext()
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
