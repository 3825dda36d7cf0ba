"""The first use: what is counted as compiled, and what two processes must not have done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from ahead_of_time import printed_by

ROOT = Path(__file__).resolve().parent.parent

COMPILES_TWICE = """
import json
import sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def add_one(x):
    tl.store(x, tl.load(x) + 1)

sys.path.insert(0, sys.argv[1])
from bench_first_use import Kernels

kernels, told = Kernels.watched(), []
for kind in ("*fp32", "*fp32", "*bf16"):
    source = ASTSource(add_one, signature={"x": kind}, constexprs={})
    triton.compile(source, target=GPUTarget("cuda", 90, 32))
    told.append(kernels.taken())
print(json.dumps(told))
"""


@pytest.mark.slow
def test_what_triton_compiles_is_told_from_what_it_finds(tmp_path: Path) -> None:
    program = tmp_path / "compiles.py"
    program.write_text(COMPILES_TWICE)
    first, second = (
        printed_by(str(program), ROOT / "benches", cache=tmp_path / "cache") for _ in range(2)
    )
    new, old = {"compiled": ["add_one"], "found": []}, {"compiled": [], "found": ["add_one"]}
    assert first == [new, old, new]
    assert second == [old, old, old]


def test_a_first_use_is_two_processes_and_another_clip(tmp_path: Path) -> None:
    save = tmp_path / "first_use.json"
    program = str(ROOT / "benches" / "bench_first_use.py")
    command = [sys.executable, program, "--tiny", "--save", str(save)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(save.read_text("utf-8"))
    first, second = document["rows"]
    assert first["contender"] == "ours, nothing compiled before"
    assert second["contender"] == "ours, a second process"
    for row, report in zip(document["rows"], document["uses"], strict=True):
        parts = [one for part, one in report["seconds"].items() if part != "others"]
        assert row["seconds"] == pytest.approx(sum(parts))
    assert "another prompt, seed and picture: 0 compiled" in first["note"]
    assert "; bar 60 s, " in first["note"]
    digests = [report["latents_sha256"] for report in document["uses"]]
    assert digests[0] == digests[1]

    render = [sys.executable, str(ROOT / "benches" / "render.py"), "--results", str(tmp_path)]
    page = tmp_path / "page.md"
    page.write_text("<!-- figures: begin --><!-- figures: end -->")
    subprocess.run([*render, "--page", str(page)], check=True, capture_output=True)
    line = next(line for line in page.read_text().splitlines() if "| tiny, ours, nothing" in line)
    assert re.fullmatch(r".* \| 0, 0 \| [0-9.]+, 0 \|", line)


@pytest.mark.parametrize(("seconds", "told"), [(59.0, "met"), (61.0, "NOT MET")])
def test_a_row_says_whether_its_bar_is_met(
    seconds: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    from bench_first_use import EMPTY, row_of

    parts = {"start": 9.0, "load": seconds - 10.0, "clip": 1.0}
    kernels = {part: {"compiled": ["one"], "found": []} for part in parts}
    row = row_of("action", EMPTY, {"seconds": parts, "kernels": kernels})
    assert row.seconds == seconds
    assert row.note.endswith(f"3 kernels compiled, 0 found; bar 60 s, {told}")


def test_what_compiles_again_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    from bench_first_use import faults

    nothing: dict[str, list[str]] = {"compiled": [], "found": []}
    first: dict[str, Any] = {
        "kernels": {"load": {"compiled": ["attention"], "found": []}, "others": deepcopy(nothing)},
        "latents_sha256": "one",
    }
    second: dict[str, Any] = {"kernels": {"load": deepcopy(nothing)}, "latents_sha256": "one"}
    assert faults("action", first, second, compiles=True) == []

    second["latents_sha256"] = "two"
    second["kernels"]["load"]["compiled"].append("attention")
    first["kernels"]["others"]["compiled"].append("head_norm")
    assert faults("action", first, second, compiles=True) == [
        "action: the second process compiled ['attention']",
        "action: another prompt, seed and picture compiled ['head_norm']",
        "action: two processes made different latents",
    ]
    idle: dict[str, Any] = {"kernels": {"load": nothing}, "latents_sha256": "one"}
    (fault,) = faults("action", idle, idle, compiles=True)
    assert "the counter does not count" in fault
    assert faults("action", idle, idle, compiles=False) == []
