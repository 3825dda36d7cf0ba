"""The bench of attention, walked through without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _benches_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benches"))


def test_attention_is_walked_through_without_a_gpu(tmp_path: Path, capsys) -> None:
    from cosmos_fast.cli import main

    assert main(["bench", "--only", "attention", "--tiny", "--save", str(tmp_path)]) == 0
    path = next(tmp_path.glob("attention_*.json"))
    document = json.loads(path.read_text("utf-8"))
    passed = {name for name, report in document["checks"].items() if report["passed"]}
    assert passed == {"dry ours", "dry two", "cudnn"}
    assert "no end within 5 s" in document["checks"]["dry hang"]["problem"]
    assert str(path) in document["command"]
    notes = {row["contender"]: row["note"] for row in document["rows"] if not row["median_ms"]}
    assert set(notes) == {"dry wrong", "dry crash", "dry hang"}
    assert "refused: relative error 5.00e-01 is beyond" in notes["dry wrong"]
    assert "RuntimeError: a contender that does not work" in notes["dry crash"]
    timed = [row for row in document["rows"] if row["median_ms"]]
    assert all(row["calls"] >= 2 and row["p10_ms"] <= row["p90_ms"] for row in timed)
    # Ours twice where there are keys to fold: folding, and reading all of them as the rivals do.
    assert {row["contender"] for row in timed if "folded" in row["shape"]} == {
        "dry ours, 64 keys read",
        "dry ours, 72 keys read",
        "dry two, 72 keys read",
        "cudnn, 72 keys read",
    }


@pytest.mark.parametrize(
    ("broken", "shape", "told"),
    [
        ("dry ours wrong", "1 x 1, 1 heads", "refused: relative error"),
        ("dry ours crash", "small shapes", "not run: exit code 1: RuntimeError"),
        ("dry ours wrong late", "200 x 300, 2 heads", "refused: relative error 9"),
    ],
)
def test_attention_of_ours_that_is_wrong_is_refused_and_ends_in_an_error(
    broken: str, shape: str, told: str, tmp_path: Path
) -> None:
    save = tmp_path / "attention.json"
    program = str(ROOT / "benches" / "bench_attention.py")
    words = ["--dry", "--seconds", "0.05", "--contenders", f"dry ours;{broken}"]
    ended = subprocess.run(
        [sys.executable, program, *words, "--save", str(save)], capture_output=True, text=True
    )
    assert ended.returncode == 1, ended.stderr
    assert f"bench_attention: {broken} at {shape}: {told}" in ended.stderr
    rows = json.loads(save.read_text("utf-8"))["rows"]
    (wrong,) = (row for row in rows if row["contender"] == broken and row["shape"] == shape)
    assert wrong["median_ms"] is None
    assert wrong["note"].startswith(told)
    assert any(row["contender"] == "dry ours" and row["median_ms"] for row in rows)


def test_attention_that_the_budget_has_no_room_for_is_listed() -> None:
    from attention_shapes import DRY_SHAPES
    from attention_timing import time_all

    ceilings, *shapes = time_all(
        list(DRY_SHAPES),
        ["dry ours", "cudnn"],
        CPU,
        seconds=0.01,
        first_seconds=1e6,
        alone_seconds=0.0,
        budget=60.0,
        keep=3,
        no_graph={},
    )
    assert set(ceilings) == {"ceilings"}
    assert [found["shape"] for found in shapes] == [shape.name for shape in DRY_SHAPES]
    first, second = (found["rows"] for found in shapes)
    assert {row["contender"]: row["median_ms"] for row in first} == {
        "dry ours": None,
        "cudnn": None,
    }
    assert all(row["note"].startswith("skipped: --budget has no room") for row in first)
    assert all(row["median_ms"] for row in second)


def test_attention_that_engines_take_is_what_is_timed() -> None:
    from attention_contenders import designs

    from cosmos_fast_kernels.attention_hopper import shipped

    assert shipped(128, 27216) == designs()["gluon early, registers, skip"]
    assert shipped(128, 512) == designs()["gluon two tiles"]
