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
wall, cpu = time.perf_counter(), time.process_time()
import cosmos_fast
times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
print(json.dumps(times | {"modules": sorted(set(sys.modules) - before)}))
"""

GUARDED = """
import warnings
warnings.simplefilter("error")
import conftest

with conftest.unchanged():
    import cosmos_fast
print("unchanged")
"""


def child(code: str, folder: Path = TESTS, **environment: str) -> str:
    """Runs ``code`` in a process of its own that sees no GPU and no program on PATH."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
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
    # safetensors takes a hundredth of a second. Not allowed are, above all: transformers, triton,
    # ffmpeg, imageio_ffmpeg, huggingface_hub, diffusers, typer, rich.
    light = {"cosmos_fast", "cosmos_fast_kernels", "safetensors"}
    roots = {name.split(".")[0] for name in imported["modules"]}
    assert "cosmos_fast" in roots
    assert not roots - light - sys.stdlib_module_names
    measured(
        f"import cosmos_fast takes {imported['wall']:.2f} s beyond torch, "
        f"{imported['cpu']:.2f} s of them computing (aim: 0.2 s)"
    )


def test_import_leaves_the_process_as_it_was() -> None:
    assert child(GUARDED, PYTHONPATH=str(TESTS)) == "unchanged\n"


def test_the_guard_sees_a_change() -> None:
    disturbing = GUARDED.replace("import cosmos_fast", "import torch; torch.rand(1)")
    with pytest.raises(AssertionError, match="torch random"):
        child(disturbing, PYTHONPATH=str(TESTS))


GENERATE = """
import conftest
import numpy as np

picture = np.full((96, 160, 3), 40, np.uint8)
small = {"size": (32, 48), "num_frames": 5, "num_steps": 2}
with conftest.unchanged():
    import cosmos_fast as cf

    engine = cf.Video2World.from_pretrained("ballworld", device="cpu")
    clip = engine.generate(picture, "A red ball.", **small)
    assert sum(len(frames) for frames in engine.stream(picture, "A red ball.", **small)) == 5
    clip.save("clip.mp4")
print("unchanged")
"""


WARNED = """
import logging, sys
import numpy as np
import torch
import cosmos_fast as cf

engine = cf.Video2World.from_pretrained("ballworld", device="cpu", memory="1GiB")
picture, small = np.zeros((96, 160, 3), np.uint8), {"size": (32, 48), "num_frames": 5}

def run_out_of_memory():
    failed = []

    def once(*_):
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")

    clip = engine.generate(picture, "A red ball.", num_steps=1, on_step=once, **small)
    assert clip.report.notes[-1].startswith("out of memory with a plan of")

run_out_of_memory()
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s: %(message)s")
run_out_of_memory()
"""


def test_a_warning_is_printed_where_the_host_has_set_up_logging_and_nowhere_else() -> None:
    """Here that of a run that ran out of memory, and began again with a smaller plan."""
    told = child(WARNED)
    assert told.startswith("WARNING cosmos_fast.generation: out of memory with a plan of")
    assert told.count("\n") == 1


def test_generate_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    printed = child(GENERATE, folder=tmp_path, PYTHONPATH=str(TESTS))
    assert printed == "unchanged\n"
    assert (tmp_path / "clip.mp4").stat().st_size
