"""A Ray cluster on this machine: two workers, one of them killed mid-way."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tools.toy_jobs import ToyEngine

from bad_jobs import job
from cosmos_fast.errors import InputError
from cosmos_fast.jobs.on_ray import run_batch_on_ray
from cosmos_fast.media import write_png

ROOT = Path(__file__).resolve().parent.parent
HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="the ray extra is not installed")
@pytest.mark.timeout(900)
def test_a_killed_worker_of_a_cluster_costs_nothing_but_time() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tools.soak_ray"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.stdout, found.stderr[-4000:]
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["ok"], (told, found.stderr[-4000:])


@pytest.mark.soak
@pytest.mark.skipif(not HAS_RAY, reason="the ray extra is not installed")
@pytest.mark.timeout(1800)
def test_the_example_runs(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("make soak runs it")
    write_png(tmp_path / "start.png", np.full((96, 160, 3), 60, np.uint8))
    lines = [job(num_frames=5, num_steps=1), job(seed=-1)]
    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(lines))
    found = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ray_batch.py"), "jobs.jsonl"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-4000:]
    assert found.stdout.splitlines()[-2:][0] == "1 made, 1 failed"
    assert (tmp_path / "ray_batch" / "0.mp4").exists()


@pytest.mark.skipif(HAS_RAY, reason="the ray extra is installed")
def test_without_ray_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pip install '\.\[ray\]' in a clone"):
        run_batch_on_ray(
            lambda: ToyEngine(tmp_path / "log"), "jobs.jsonl", tmp_path, num_workers=1, model=""
        )
