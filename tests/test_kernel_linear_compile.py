"""Products with epilogues compiled ahead of time for Hopper, where no GPU is.

This file is also the program that compiles: ``python FILE DESIGN EPILOGUE`` calls the launch
wrapper as an engine would, under a driver that knows its target and launches nothing, and prints
what the machine code uses as one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ahead_of_time import assembler_log, disassembled, pretend_target

if TYPE_CHECKING:
    from ahead_of_time import Compiler


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "epilogue", "product"),
    [
        ("wide", "gelu", "64x256x16"),
        ("turns", "none", "64x128x16"),
        ("turns", "gated", "64x128x16"),
        ("turns", "indexed", "64x128x16"),
        ("wide, all pieces", "gated", "64x256x16"),
        ("tall", "indexed", "64x128x16"),
        ("turns", "norm", "64x128x16"),
        ("turns", "rope", "64x128x16"),
        ("wide", "rope", "64x256x16"),
    ],
)
def test_design_is_kept_in_machine_code(
    design: str, epilogue: str, product: str, compiler: Compiler, tmp_path: Path
) -> None:
    report = compiler.printed_by(__file__, design, epilogue, cache=tmp_path)
    assert report["shared"] <= report["expected_shared"]
    assert report["spills"] == 0
    assert "Compiling entry function" in report["assembler"]
    assert "serialized" not in report["assembler"]
    assert report["products"] == [product]
    # Two consumers, each with the first step of a tile and the others: 64 columns are 4 products.
    assert report["product_count"] == 2 * 2 * 4 * report["rows"] // 64
    # The last tile's output leaves under the first products of the next, not before them.
    assert report["waits_before_products"] == 0
    assert report["exponentials"] == (2 * 128 if epilogue == "gelu" else 0)
    if epilogue in ("norm", "rope"):
        # Cosine and sine for each pair of a thread's 128 sums, two at once; and nothing goes to
        # other threads by way of shared memory.
        assert report["pairs_loaded"] == (2 * 64 if epilogue == "rope" else 0)
        assert report["moved_through_shared"] == 0


def waits_before_products(sass: str) -> int:
    """Waits for stores between a consumer's wait for data and the first product of a tile."""
    tiles = re.split(r"HGMMA[^\n]* RZ, !UPT", sass)[:-1]
    return sum("DEPBAR.LE SB0" in re.split(r"SYNCS\.PHASECHK", tile)[-1] for tile in tiles)


def compile_one(design: str, epilogue: str) -> dict[str, Any]:
    pretend_target(90)
    import test_kernel_linear_heads
    from cosmos_fast_kernels import linear_hopper
    from test_kernel_linear import fused, given

    made: list[Any] = []
    kernel = linear_hopper._linear_kernel
    run = kernel.run
    kernel.run = lambda *arguments, **options: made.append(
        run(*arguments, **options | {"warmup": True})
    )
    config = linear_hopper.DESIGNS[design]
    with assembler_log() as log:
        if epilogue in test_kernel_linear_heads.EPILOGUES:
            one = test_kernel_linear_heads.Case(3, 100, 256, 2, 128).given(epilogue)
            test_kernel_linear_heads.fused(one, epilogue, config=config)
        else:
            fused(given((300, 256, 512)), epilogue, config=config)
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    sass = disassembled(made[0].asm["cubin"], folder)
    return {
        "shared": made[0].metadata.shared,
        "expected_shared": config.shared_bytes,
        "rows": config.rows,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "products": sorted(set(re.findall(r"HGMMA\.(\w+)", sass))),
        "product_count": len(re.findall(r"\bHGMMA\b", sass)),
        "exponentials": sass.count("MUFU.EX2"),
        "pairs_loaded": len(re.findall(r"LDG\.E\.64", sass)),
        "moved_through_shared": len(re.findall(r"\bLDS\.(?:64|128)\b|\bSTS\.128\b", sass)),
        "waits_before_products": waits_before_products(sass),
        "assembler": log.getvalue(),
    }


if __name__ == "__main__":
    print(json.dumps(compile_one(*sys.argv[1:])))
