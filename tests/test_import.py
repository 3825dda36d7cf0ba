"""What ``import cosmos_fast`` brings along, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

TESTS = Path(__file__).resolve().parent

IMPORT = """
import json, sys, time
import torch, numpy

before = set(sys.modules)
start = time.perf_counter()
import cosmos_fast
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""

GUARDED = """
import warnings
warnings.simplefilter("error")
import conftest

with conftest.unchanged():
    import cosmos_fast
print("unchanged")
"""


def child(code: str, **environment: str) -> str:
    """Runs ``code`` in a process of its own that sees no GPU and no program on PATH."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PATH": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    child(IMPORT)  # once before, so that byte code is not compiled on the clock
    result: dict[str, Any] = json.loads(child(IMPORT))
    return result


def test_import_brings_nothing_but_itself(
    imported: dict[str, Any], measured: Callable[[str], None]
) -> None:
    own = {"cosmos_fast", "cosmos_fast_kernels"}
    roots = {name.split(".")[0] for name in imported["modules"]}
    foreign = roots - own - sys.stdlib_module_names
    assert "cosmos_fast" in roots
    # ... above all not transformers, triton, ffmpeg, huggingface_hub, diffusers, typer or rich.
    assert not foreign
    measured(f"import cosmos_fast takes {imported['seconds']:.3f} s beyond torch (aim: 0.2 s)")


def test_import_leaves_the_process_as_it_was() -> None:
    assert child(GUARDED, PYTHONPATH=str(TESTS)) == "unchanged\n"


def test_the_guard_sees_a_change() -> None:
    disturbing = GUARDED.replace("import cosmos_fast", "import torch; torch.rand(1)")
    with pytest.raises(AssertionError, match="torch random"):
        child(disturbing, PYTHONPATH=str(TESTS))
