"""A list whose prompts are checked and rewritten, killed in the middle and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tools.random_companions import SENTENCES

import cosmos_fast as cf
from bad_jobs import job
from cosmos_fast.cli import main
from cosmos_fast.jobs import run_batch
from cosmos_fast.jobs.ledger import verified
from cosmos_fast.media import write_png
from guarded import MODEL, Check, copied, guarded_world, sleeping

if TYPE_CHECKING:
    from cosmos_fast.jobs import BatchSummary

COMMAND = [
    "video2world", "--checkpoint_dir", "checkpoints", "--diffusion_transformer_dir", MODEL,
    "--batch_input_path", "jobs.jsonl", "--video_save_folder", "made",
    "--height", "32", "--width", "48", "--num_video_frames", "5", "--num_steps", "1",
]  # fmt: skip
ENDINGS = (".json", ".mp4", ".txt")


@pytest.fixture
def place(companions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    copied(companions, tmp_path / "checkpoints")
    guarded_world(tmp_path / "checkpoints")
    write_png("start.png", np.full((32, 48, 3), 90, np.uint8))
    prompts: list[Any] = ["A crane turns.", "He lifts the rifle from it.", ..., "A ferry leaves."]
    lines = [job(prompt=prompt) for prompt in prompts]
    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return tmp_path


def told_until(word: str, *more: str) -> str:
    """What the command says up to ``word``, at which it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cosmos_fast", *COMMAND, *more],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if word in line:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, said
    process.stderr.close()
    return said


@pytest.mark.slow
def test_a_guarded_list_is_killed_twice_and_finishes(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """While a prompt is rewritten, and when one line was blocked and another is under way."""
    assert "made" not in told_until("s  upsample")
    said = told_until("2/4 ", "--resume")
    assert "GuardrailBlocked" in said
    before = {path: path.stat().st_mtime_ns for path in Path("made").glob("*.mp4")}
    assert Path("made/0.mp4") in before
    assert main([*COMMAND, "--resume", "--json"]) == 4
    summary = json.loads(capfd.readouterr().out)["summary"]
    assert (summary["made"] + summary["kept"], summary["failed"], summary["left"]) == (3, 1, 0)
    assert summary["kept"] == len(before)
    [row] = summary["failures"]
    assert (row["index"], row["code"], row["error"]) == (1, 3, "GuardrailBlocked")
    assert sorted(path.name for path in Path("made").iterdir()) == sorted(
        [f"{n}{ending}" for n in (0, 2, 3) for ending in ENDINGS]
        + ["jobs.jsonl.journal", "jobs.jsonl.summary.json"]
    )
    for n in (0, 2, 3):
        video = Path(f"made/{n}.mp4")
        found = json.loads(video.with_suffix(".json").read_bytes())
        assert verified(video, found["job"]["key"]) is not None
        assert found["guardrail"]["verdict"] == "safe"
        used = video.with_suffix(".txt").read_text("utf-8")
        assert used == found["upsampler"]["prompt"]
        assert used in SENTENCES
    assert all(path.stat().st_mtime_ns == at for path, at in before.items()), "made again"


def test_a_negative_prompt_blocks_its_line_alone(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [job(negative_prompt="a rifle"), job(prompt="", seed=9)]
    (place / "jobs.jsonl").write_bytes(b"\n".join(lines))
    code = main([*COMMAND, "--json"])
    captured = capfd.readouterr()
    assert code == 4, captured.err
    summary = json.loads(captured.out)["summary"]
    assert (summary["made"], summary["failed"]) == (1, 1)
    [row] = summary["failures"]
    assert "the negative prompt was blocked" in row["message"]
    assert not list(Path("made").glob("0.*"))
    assert json.loads(Path("made/1.json").read_bytes())["arguments"]["seed"] == 9


@pytest.fixture
def unguarded(tmp_path: Path) -> Path:
    """A list of three beside a model that is no toy."""
    guarded_world(tmp_path)
    write_png(tmp_path / "start.png", np.full((32, 48, 3), 90, np.uint8))
    lines = [job(prompt=f"A crane turns {n}.", num_frames=5, num_steps=1) for n in range(3)]
    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return tmp_path


NONE = cf.NoGuardrail(reason="test")


def listed(
    place: Path, guardrail: cf.Guardrail | cf.NoGuardrail, *, resume: bool = False
) -> BatchSummary:
    engine = cf.Video2World.from_pretrained(place / MODEL, device="cpu", guardrail=guardrail)
    return run_batch(engine, place / "jobs.jsonl", place / "out", input_root=place, resume=resume)


def own(name: str = "words", answer: Any = lambda _: cf.Verdict(True), **options: Any) -> Any:
    return cf.Guardrail([Check(name, answer)], [Check("eyes")], **options)


def test_videos_that_nobody_checked_are_made_again_behind_a_guardrail(unguarded: Path) -> None:
    assert listed(unguarded, NONE).made == 3
    summary = listed(unguarded, own(answer=lambda text: cf.Verdict("2" not in text)), resume=True)
    assert (summary.made, summary.kept, summary.failed) == (2, 0, 1)
    assert not list((unguarded / "out").glob("2.*")), "an unchecked video stays"
    told = json.loads((unguarded / "out/0.json").read_bytes())
    assert told["guardrail"]["verdict"] == "safe"
    assert listed(unguarded, own(), resume=True).kept == 2, "the same checks"
    assert listed(unguarded, own("other words"), resume=True).kept == 0, "other checks"


def test_a_check_that_hangs_ends_the_run_which_resumes(unguarded: Path) -> None:
    with pytest.raises(cf.GuardrailBlocked, match=r"did not answer within.*resume the run"):
        listed(unguarded, own(answer=sleeping, timeout_s=0.2))
    summary = listed(unguarded, own(), resume=True)
    assert (summary.made + summary.kept, summary.failed, summary.left) == (3, 0, 0)


def test_workers_that_are_all_blocked_end_with_exit_code_3(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for weights in (place / "checkpoints/nvidia").rglob("*.pt*"):
        weights.unlink()
    code = main([*COMMAND, "--num_gpus", "2", "--device", "cpu"])
    told = capfd.readouterr().err
    assert code == 3, told
    assert "the guardrail blocked all 2 workers" in told
    assert not list(Path("made").glob("*.mp4"))
