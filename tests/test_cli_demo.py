"""``cosmos-fast demo``: prompts that the simulator understands, and others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from commands import ran
from cosmos_fast.ballworld import parse, render, stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

HEIGHT, WIDTH, MARGIN = 96, 160, 120


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the demo, one step long, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        return ran(capfd, ["demo", "--num_steps", "1", *arguments])

    return call


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.slow
def test_a_prompt_of_the_grammar_is_simulated_beside(run: Run, tmp_path: Path) -> None:
    given = "an ORANGE ball moves quickly to the left under gravity"
    code, out, err = run("--prompt", given, "--scene", "3", "--json")
    assert code == 0, err
    sentence = parse(given)
    assert sentence is not None
    simulated = render(stage(sentence, 3))[0]
    folder = tmp_path / "outputs"
    np.testing.assert_array_equal(picture(folder / "demo_start.png"), simulated[0])
    sheet = picture(folder / "demo_frames.png")
    np.testing.assert_array_equal(sheet[104 : 104 + HEIGHT, -WIDTH - 4 : -4], simulated[32])
    assert np.abs(sheet[4:100, MARGIN:280].astype(int) - simulated[0]).mean() < 3
    document = json.loads(out)
    read_as = "A orange ball moves quickly to the left under gravity."
    assert document["report"]["arguments"]["prompt"] == read_as
    assert document["contact_sheet"] == "outputs/demo_frames.png"
    pixels = document["tracking_error"]["frame_32"]
    assert f"{pixels} at frame 32, in pixels (toy model)" in err


@pytest.mark.slow
def test_any_other_text_makes_a_video_and_no_comparison(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--prompt", "Ein Ball — rollt 'davon'", "--json")
    assert code == 0, err
    assert "none that the simulator understands" in err
    assert "no simulation to compare with" in err
    document = json.loads(out)
    assert document["tracking_error"] is None
    assert document["report"]["arguments"]["prompt"] == "Ein Ball — rollt 'davon'"
    assert len(picture(tmp_path / "outputs" / "demo_frames.png")) == 4 + HEIGHT + 4 + 24
    assert (tmp_path / "outputs" / "demo.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [("--prompt", " ", "a text that is not empty"), ("--scene", "-1", "at least 0")],
)
def test_what_cannot_be_drawn_is_refused(
    flag: str, value: str, expected: str, run: Run, tmp_path: Path
) -> None:
    code, out, err = run(flag, value)
    assert (code, out) == (2, "")
    assert expected in err
    assert list(tmp_path.iterdir()) == []
