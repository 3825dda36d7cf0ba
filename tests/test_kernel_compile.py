"""Every kernel compiles ahead of time for every architecture, without a GPU.

Run as a program, this file compiles; run by pytest, it starts itself in a process in which Triton
is not interpreted, and looks at what came out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

ARCHITECTURES = (80, 89, 90, 100, 120)
KERNELS = (
    "qk_norm_rope_2b",
    "qk_norm_rope_14b",
    "head_norm_0.6b",
    "layernorm_modulate_2b",
    "layernorm_modulate_14b",
    "layernorm_modulate_indexed",
    "gated_layernorm_modulate_2b",
    "gated_layernorm_modulate_14b",
    "gated_residual_2b",
    "rms_silu_96",
    "rms_silu_384",
    "upsample_192",
)


def variants() -> dict[str, tuple[Any, Mapping[str, str], Mapping[str, Any], int]]:
    """Kernel, pointer types that are not bfloat16, compile-time values and warps, by name."""
    from cosmos_fast_kernels.gated_layernorm_modulate import _gated_kernel as gated
    from cosmos_fast_kernels.layernorm_modulate import _layernorm_modulate_kernel as layernorm
    from cosmos_fast_kernels.qk_norm_rope import _norm_rope_kernel as norm_rope
    from cosmos_fast_kernels.rms_silu import _assemble_kernel as assemble
    from cosmos_fast_kernels.upsample import _upsample_kernel as upsample

    tables = {"cos_pointer": "*fp32", "sin_pointer": "*fp32"}
    nothing = dict.fromkeys(
        ("k_pointer", "k_out_pointer", "k_weight_pointer", "cos_pointer", "sin_pointer")
    )
    heads_of_128 = {"HALF": 64, "HALF_BLOCK": 64, "BOTH": True, "ROTATE": True}
    heads_of_64 = {"HALF": 32, "HALF_BLOCK": 32, "BOTH": False, "ROTATE": False}
    raster = {"frame_pointer": None, "INDEXED": False}
    no_norm = dict.fromkeys(("shift_pointer", "scale_pointer", "normed_pointer"))
    flags = ("NORM", "BIAS", "RESIDUAL", "RESIDUAL_BIAS", "TOTAL")
    all_parts = dict.fromkeys(flags, True) | {"HISTORY": 2}
    return {
        "qk_norm_rope_2b": (norm_rope, tables, heads_of_128 | {"HEADS": 16, "HEAD_BLOCK": 16}, 4),
        "qk_norm_rope_14b": (norm_rope, tables, heads_of_128 | {"HEADS": 40, "HEAD_BLOCK": 8}, 4),
        "head_norm_0.6b": (
            norm_rope,
            {},
            heads_of_64 | nothing | {"HEADS": 20, "HEAD_BLOCK": 4},
            1,
        ),
        "layernorm_modulate_2b": (layernorm, {}, raster | {"FEATURES": 2048, "BLOCK": 2048}, 4),
        "layernorm_modulate_14b": (layernorm, {}, raster | {"FEATURES": 5120, "BLOCK": 8192}, 8),
        "layernorm_modulate_indexed": (
            layernorm,
            {"frame_pointer": "*i64"},
            {"FEATURES": 1280, "BLOCK": 2048, "INDEXED": True},
            4,
        ),
        "gated_layernorm_modulate_2b": (
            gated,
            {},
            raster | {"FEATURES": 2048, "BLOCK": 2048, "NORM": True},
            4,
        ),
        "gated_layernorm_modulate_14b": (
            gated,
            {},
            raster | {"FEATURES": 5120, "BLOCK": 8192, "NORM": True},
            8,
        ),
        "gated_residual_2b": (
            gated,
            {},
            raster | no_norm | {"FEATURES": 2048, "BLOCK": 2048, "NORM": False},
            4,
        ),
        "rms_silu_96": (
            assemble,
            {},
            all_parts | {"CHANNELS": 96, "BLOCK_C": 128, "BLOCK_P": 32},
            4,
        ),
        "rms_silu_384": (
            assemble,
            {},
            all_parts | {"CHANNELS": 384, "BLOCK_C": 512, "BLOCK_P": 8},
            4,
        ),
        "upsample_192": (
            upsample,
            {},
            {"CHANNELS": 192, "BLOCK_C": 256, "BLOCK_P": 16, "PARTS": 2, "BIAS": True},
            4,
        ),
    }


def compiled(name: str, architecture: int) -> dict[str, Any]:
    """Size of the cubin, widest load, exact divisions and stack of one kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, pointers, values, warps = variants()[name]
    signature, attributes = {}, {}
    for index, parameter in enumerate(kernel.arg_names):
        if parameter in values:
            signature[parameter] = "constexpr"
            continue
        pointer = parameter.endswith("_pointer")
        kind = "fp32" if parameter in ("eps", "gain") else "i32"
        signature[parameter] = pointers.get(parameter, "*bf16") if pointer else kind
        if pointer or "_stride_" in parameter:
            attributes[(index,)] = [["tt.divisibility", 16]]  # as in a launch on real tensors
    source = ASTSource(kernel, signature, constexprs=dict(values), attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    result = triton.compile(source, target=target, options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack = [int(number) for number in re.findall(r"STACK:(\d+)", usage)]
    return {
        "cubin": len(result.asm["cubin"]),
        "wide_loads": "ld.global.v4.b32" in result.asm["ptx"],
        "exact_divisions": result.asm["ptx"].count("div.rn.f32"),
        "stack": max(stack),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_compiles(results: dict[str, dict[str, Any]], name: str, architecture: int) -> None:
    result = results[f"{name} {architecture}"]
    assert result["cubin"] > 1000
    assert result["stack"] == 0, "registers spill to memory"
    if name != "head_norm_0.6b":  # its tiles are too small
        assert result["wide_loads"], "no load of 16 bytes at once"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", [name for name in KERNELS if "layernorm" in name])
def test_means_are_rounded_correctly(
    results: dict[str, dict[str, Any]], name: str, architecture: int
) -> None:
    # Mean and variance; a product with 1 / FEATURES would move a constant token off its mean.
    assert results[f"{name} {architecture}"]["exact_divisions"] == 2


if __name__ == "__main__":
    everything = {f"{name} {one}": compiled(name, one) for name in KERNELS for one in ARCHITECTURES}
    print(json.dumps(everything))
