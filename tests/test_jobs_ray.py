"""A Ray cluster on this machine: two workers, one of them killed mid-way."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_fast.errors import InputError
from cosmos_fast.jobs.on_ray import run_batch_on_ray
from tools.toy_jobs import ToyEngine

ROOT = Path(__file__).resolve().parent.parent
HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.soak
@pytest.mark.skipif(not HAS_RAY, reason="the ray extra is not installed")
@pytest.mark.timeout(1800)
def test_a_killed_worker_of_a_cluster_costs_nothing_but_time(
    request: pytest.FixtureRequest,
) -> None:
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("make soak runs it")
    found = subprocess.run(
        [sys.executable, "-m", "tools.soak_ray"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["ok"], (told, found.stderr[-4000:])


@pytest.mark.skipif(HAS_RAY, reason="the ray extra is installed")
def test_without_ray_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pip install cosmos-fast\[ray\]"):
        run_batch_on_ray(
            lambda: ToyEngine(tmp_path / "log"), "jobs.jsonl", tmp_path, num_workers=1, model=""
        )
