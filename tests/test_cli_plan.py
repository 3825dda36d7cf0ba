"""``cosmos-fast plan`` as a user meets it: help, pictures, and what is said of a refusal."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

import cosmos_fast as cf
from commands import ran
from cosmos_fast.cli import main

CARD = ["plan", "--gpu", "rtx4090-pcie4x8", "--height", "432", "--width", "768"]
WIDTH = 1200


def test_a_refusal_in_json_holds_the_plan_that_would_do(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capfd, [*CARD, "--memory", "2GiB", "--json"])
    told = json.loads(out)
    assert code == told["exit_code"] == 1
    assert told["error"]["type"] == "MemoryPlanError"
    plan = told["plan"]
    assert str(plan["smallest_bytes"]) in told["error"]["message"]
    assert plan["peak_bytes"] <= plan["budget_bytes"] == plan["smallest_bytes"]
    assert plan["stages"].keys() == {"text", "encode", "denoise", "decode"}
    assert err.count("\n") == 1, "one line; the plan is on stdout"


def test_a_refusal_shows_the_plan_that_would_do(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capfd, [*CARD, "--memory", "2GiB"])
    assert code == 1
    assert not out
    assert "the smallest that would do:" in err
    assert "device memory cannot hold stage" in err.splitlines()[-1]


@pytest.mark.parametrize("ending", ["svg", "png", "SVG", "PNG"])
def test_pictures_appear_in_folders_that_are_made(
    ending: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plans" / f"text.{ending}"
    code, out, err = ran(
        capfd, [*CARD, "--memory", "7GiB", "--picture", str(path), "--picture_stage", "text"]
    )
    assert (code, err) == (0, "")
    assert "24 of 25" in out
    if ending.lower() == "svg":
        assert ElementTree.parse(path).getroot().attrib["width"] == str(WIDTH)
    else:
        with Image.open(path) as picture:
            assert picture.width == 2 * WIDTH, "letters are drawn large enough to be read"


def test_a_picture_tells_passes_and_blocks_apart_and_names_its_unit() -> None:
    tight = cf.plan(
        "nvidia/Cosmos-Predict2-14B-Video2World",
        memory="8GiB",
        gpu="rtx4090-pcie4x8",
        size=(432, 768),
        num_frames=81,
    )
    drawn = tight.timeline("denoise")
    assert drawn.labels[0].text.endswith("through 2 slots of 750 MiB; the first two passes")
    assert "0.00 s" in [label.text for label in drawn.labels], "a pass takes 11 s"
    row = sorted((box.left, box.width) for box in drawn.boxes if ": " in box.tip and box.top == 60)
    assert len(row) == 2 * 37
    wide = [(left, width) for left, width in row if width > 2]
    gaps = [
        after[0] - sum(before) for before, after in itertools.pairwise(wide) if after[0] > before[0]
    ]
    assert min(gaps) >= 0.9, "uses that follow one another must not run together"
    kept = tight.timeline("encode")
    assert kept.labels[0].text == "encode, whole: 0 of 1 blocks are streamed"
    assert "0.0 ms" in [label.text for label in kept.labels]


def test_help_breaks_lines_for_its_terminal_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    code, out, _ = ran(capfd, ["plan", "--help"])
    assert code == 0
    paragraph = out[out.index("For each stage") : out.index("An example")]
    lines = [line.strip() for line in paragraph.splitlines()][:-1]
    assert len(lines) > 3
    assert all(len(line) > 60 for line in lines), "no line ends where the source's did"
    assert main(["plan", "--list_cards"]) == 0
