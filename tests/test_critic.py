"""The critic of best-of-N: a small Qwen2.5-VL of the real class, asked about videos."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tools.random_companions import VERDICTS, make_upsampler

import cosmos_fast as cf
from cosmos_fast.cli import main
from cosmos_fast.jobs import ReasoningCritic, generate_candidates
from cosmos_fast.prompt.critic import INSTRUCTION, QUESTION, QwenCritic, seen
from cosmos_fast.prompt.vision_language import load_processor, question
from cosmos_fast.types import Frames
from cosmos_fast.weights import read_tensors
from guarded import NOT_A_TOY, Check
from random_world import make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
REASON1 = "nvidia/Cosmos-Reason1-7B"
SMALL: dict[str, Any] = {"size": (32, 48), "num_frames": 9, "num_steps": 1, "guidance": 0}
SHORT = [
    "--height",
    "32",
    "--width",
    "48",
    "--num_video_frames",
    "9",
    "--num_steps",
    "1",
    "--guidance",
    "0",
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("critic")
    make_upsampler(root / REASON1, VERDICTS)
    make_random_world(root / "world", replace(NOT_A_TOY, name="critic's"))
    return root


def frames(count: int = 9, rate: float = 16.0) -> Frames:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 56, 84, 3)
    return Frames(pixels.contiguous(), rate)


def test_it_is_asked_as_often_as_wanted_and_counted(
    checkpoints: Path, unchanged_globals: Any
) -> None:
    critic = ReasoningCritic(checkpoint_root=checkpoints, device="cpu")
    with unchanged_globals():
        found = critic(frames(), trials=6, seed=3)
    assert set(found.answers) == set(VERDICTS), "one answer for all trials"
    sound = sum(answer.endswith("No </answer>") for answer in found.answers)
    assert (len(found.answers), found.score) == (6, sound / 6)
    torch.manual_seed(9)  # the process's own random state has no say
    assert critic(frames(), trials=6, seed=3) == found
    assert critic(frames(), trials=6, seed=4) != found
    assert len(critic(frames(1), trials=1, seed=0).answers) == 1
    with pytest.raises(cf.InputError, match="trials = 0"):
        critic(frames(), trials=0, seed=0)


@pytest.mark.parametrize(
    ("count", "rate", "kept", "shown"),
    [(93, 16, 92, 16), (48, 24, 32, 16), (61, 10, 60, 10), (2, 16, 2, 16), (1000, 16, 768, 12)],
)
def test_it_sees_an_even_number_of_frames_of_the_whole(
    count: int, rate: float, kept: int, shown: float
) -> None:
    video = Frames(
        torch.arange(count).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 16, 16, 3), rate
    )
    looked_at = seen(video)
    assert len(looked_at) == kept
    assert looked_at.fps == pytest.approx(shown, abs=0.5)
    pixels = looked_at.to("np")
    assert (pixels[0, 0, 0, 0], pixels[-1, 0, 0, 0]) == (0, (count - 1) % 256)


def test_a_long_video_is_made_smaller(checkpoints: Path) -> None:
    """8192 patches of 28 by 28 pixels over all pairs of frames."""
    processor = load_processor(checkpoints / REASON1)
    patches = []
    for count in (2, 92):
        video = Frames(torch.zeros(count, 432, 768, 3, dtype=torch.uint8), 16)
        asked = question(processor, INSTRUCTION, QUESTION, video, 8192 * 28 * 28)
        ((pairs, height, width),) = asked["video_grid_thw"].tolist()
        assert pairs == count // 2
        patches.append(pairs * height * width // 4)
    assert patches[0] == (432 // 28) * (768 // 28)  # as it is, to the nearest patch
    assert 7000 < patches[1] <= 8192


def test_a_critic_that_is_not_there_is_told_with_its_cures(tmp_path: Path) -> None:
    for wanted in (REASON1, "some/folder/of/mine"):
        with pytest.raises(cf.CheckpointError, match="--critic MODULE:NAME") as refused:
            ReasoningCritic(wanted, checkpoint_root=tmp_path, device="cpu", local_files_only=True)
        assert wanted in str(refused.value)
        assert "cosmos-fast download --prompt_refiner" in str(refused.value)


def test_a_damaged_critic_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / REASON1, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"?")
    with pytest.raises(cf.CheckpointError, match="damaged"):
        QwenCritic(folder, torch.device("cpu"), read_tensors).load()


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str],
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    Image.fromarray(PICTURE).save("start.png")

    def call(*arguments: str) -> tuple[int, str, str]:
        given = ["--model", "checkpoints/world", "--input_path", "start.png", "--prompt", "Steam."]
        off = ["--disable_guardrail", "--disable_prompt_refiner"]
        code = main(["video2world_bestofn", *given, *off, *SHORT, *arguments])
        sys.stdout.flush()
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_later_command_ranks_by_what_the_critic_says(run: Run, checkpoints: Path) -> None:
    code, out, err = run("--num_generations", "2", "--num_critic_trials", "3", "--seed", "7")
    assert code == 0, err
    folder = Path("output/best-of-n")
    ranked = [Path(line) for line in out.splitlines()]
    assert {path.name for path in ranked} == {"start_seed7.mp4", "start_seed8.mp4"}
    page = (folder / "best_of_n.html").read_text("utf-8")
    for path in ranked:
        [verdict] = folder.glob(f"{path.stem}_score[0-9][0-9][0-9].json")
        answers = json.loads(verdict.read_bytes())["answers"]
        assert len(answers) == 3
        assert set(answers) <= set(VERDICTS)
        assert path.with_suffix(".txt").read_text("utf-8").startswith("[Prompt]\nSteam.\n")
        own = verdict.with_suffix(".html").read_text("utf-8")
        assert own.count("&lt;overview&gt;A kettle boils.&lt;/overview&gt;") == 3
    assert page.count("&lt;overview&gt;A kettle boils.&lt;/overview&gt;") == 6
    assert page.count("<details>") == 2
    assert page.count("<h2>Answer ") == 6
    # The later tool's --checkpoint_dir is the folder of the critic.
    code, again, err = run("--skip_generation", "--checkpoint_dir", str(checkpoints / REASON1),
                           "--num_critic_trials", "3", "--seed", "7", "--json")  # fmt: skip
    assert code == 0, err
    assert [one["video"] for one in json.loads(again)["ranking"]] == [str(path) for path in ranked]


def test_a_critic_is_looked_for_before_anything_is_made(run: Run) -> None:
    Path("empty").mkdir()
    code, _, err = run("--critic", "gone:a")
    assert code == 2
    code, _, err = run("--gr00t_variant", "gr1")
    assert code == 2
    assert "GR00T part" in err
    assert not Path("output").exists()


def guarded(checkpoints: Path, check: Check, words: Check | None = None) -> cf.Video2World:
    return cf.Video2World.from_pretrained(
        checkpoints / "world", device="cpu",
        guardrail=cf.Guardrail([words or Check("words")], [check]),
    )  # fmt: skip


def test_a_blocked_video_is_left_out_and_the_others_are_judged(
    checkpoints: Path, tmp_path: Path
) -> None:
    answers = iter([cf.Verdict(True), cf.Verdict(False, "grim"), cf.Verdict(True)])
    engine = guarded(checkpoints, Check("frames", lambda _: next(answers)))
    refused: list[str] = []
    videos = generate_candidates(
        engine, PICTURE, "Steam.", out=tmp_path, name="a", num_generations=3,
        on_blocked=lambda path, error: refused.append(f"{path.name} {error.subject}"), **SMALL,
    )  # fmt: skip
    assert [path.name for path in videos] == ["a_seed0.mp4", "a_seed2.mp4"]
    assert refused == ["a_seed1.mp4 video"]
    assert not list(tmp_path.glob("a_seed1*"))


def test_best_of_n_is_blocked_where_nothing_is_left(checkpoints: Path, tmp_path: Path) -> None:
    frames = Check("frames", lambda _: cf.Verdict(False, "grim"))
    with pytest.raises(cf.GuardrailBlocked, match="grim"):
        generate_candidates(
            guarded(checkpoints, frames), PICTURE, "Steam.", out=tmp_path, num_generations=2,
            **SMALL,
        )  # fmt: skip
    assert len(frames.seen) == 2
    words = Check("words", lambda _: cf.Verdict(False, "rude"))
    with pytest.raises(cf.GuardrailBlocked, match="rude"):
        generate_candidates(
            guarded(checkpoints, Check("frames"), words), PICTURE, "Steam.", out=tmp_path,
            num_generations=2, **SMALL,
        )  # fmt: skip
    assert len(words.seen) == 1, "a blocked prompt is blocked for every seed"
    assert not list(tmp_path.iterdir())
