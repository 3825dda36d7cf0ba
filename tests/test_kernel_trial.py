"""The trial of the smallest kernel: what keeps Triton from working is found before a run.

This file is also the program that fails: ``python FILE`` tries the kernel as an engine does, under
a driver that knows its target, with a compiler that may write nowhere, and prints what was said.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ahead_of_time import pretend_target, printed_by
from cosmos_fast.model.ops.choice import trial_failure

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_kernel_that_works_passes(dtype: torch.dtype) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert trial_failure(device, dtype) is None


def test_a_kernel_that_cannot_be_called_is_told() -> None:
    assert "failed its test: ValueError" in str(trial_failure(CPU, torch.float64))


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = printed_by(__file__, cache=tmp_path / "file" / "cache")
    assert told.startswith("the smallest kernel failed its test: ")
    assert "file/cache" in told


if __name__ == "__main__":
    assert "file" in os.environ["TRITON_CACHE_DIR"]
    pretend_target(90)
    print(json.dumps(trial_failure(CPU, torch.bfloat16)))
