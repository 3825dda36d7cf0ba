"""Long videos and the best of several: small random models, real files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cosmos_fast as cf
from cosmos_fast.config import VAEConfig
from cosmos_fast.jobs import (
    Candidate,
    Judgement,
    drift_table,
    generate_candidates,
    judge,
    judgement_of,
)
from cosmos_fast.jobs.best_of_n import whole_video
from cosmos_fast.jobs.drift import measure, psnr
from random_world import RANDOM_PROFILE, make_random_world

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
SMALL: dict[str, Any] = {"size": (32, 48), "num_frames": 9, "num_steps": 1}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> cf.Video2World:
    profile = replace(
        RANDOM_PROFILE,
        dit=replace(RANDOM_PROFILE.dit, num_layers=1, num_heads=1),
        vae=VAEConfig(base_dim=4),
    )
    folder = make_random_world(tmp_path_factory.mktemp("world"), profile)
    return cf.Video2World.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("given", [1, 5])
def test_each_clip_continues_the_last_frames_of_the_one_before(
    engine: cf.Video2World, given: int
) -> None:
    source = np.broadcast_to(PICTURE, (given, *PICTURE.shape)).copy()
    options: Any = {**SMALL, "num_conditional_frames": given}
    long = cf.rollout(engine, source, cf.NO_TEXT, num_chunks=3, seed=4, **options)
    expected, tail = [], source
    for chunk in range(3):
        clip = engine.generate(tail, cf.NO_TEXT, seed=4 + chunk, **options)
        frames = clip.frames.to("np")
        expected.append(frames if chunk == 0 else frames[given:])
        tail = frames[-given:]
    assert len(long.frames) == 9 + 2 * (9 - given)
    np.testing.assert_array_equal(np.asarray(long.frames), np.concatenate(expected))
    assert [row.seed for row in long.drift] == [4, 5, 6]
    assert [row.frames for row in long.drift] == [9, 9 - given, 9 - given]
    assert long.drift[0].seam_psnr is None
    assert all(row.seam_psnr is not None for row in long.drift[1:])


@pytest.mark.parametrize("given", [1, 5])
def test_the_file_route_loses_what_memory_keeps(engine: cf.Video2World, given: int) -> None:
    source = np.broadcast_to(PICTURE, (given, *PICTURE.shape)).copy()
    options: Any = {**SMALL, "num_conditional_frames": given, "num_chunks": 2}
    seen: list[np.ndarray] = []

    def watch(chunk: int, tail: cf.Frames | None) -> Any:
        if tail is not None:
            seen.append(np.asarray(tail))
        return cf.NO_TEXT

    kept = cf.rollout(engine, source, watch, **options)
    lossy = cf.rollout(engine, source, watch, handover="file", **options)
    np.testing.assert_array_equal(np.asarray(kept.frames)[:9], np.asarray(lossy.frames)[:9])
    np.testing.assert_array_equal(seen[0], np.asarray(kept.frames)[9 - given : 9])
    assert 10 < psnr(seen[0], seen[1]) < 60
    assert lossy.report.arguments["handover"] == "file"


def test_prompts_may_change_from_clip_to_clip_and_reach_the_files(
    engine: cf.Video2World, tmp_path: Path
) -> None:
    prompts = ["A heron stands.", "It flies."]
    long = cf.rollout(engine, PICTURE, prompts, "Fog.", num_chunks=2, **SMALL)
    path = long.save(tmp_path / "long.mp4")
    manifest = json.loads(path.with_suffix(".json").read_bytes())
    assert manifest["video"]["frames"] == 17
    assert manifest["arguments"]["num_chunks"] == 2
    assert manifest["arguments"]["chunk_prompts"] == prompts
    assert [row["chunk"] for row in manifest["arguments"]["drift"]] == [0, 1]
    assert path.with_suffix(".txt").read_text() == (
        "[Prompt]\nA heron stands.\n\n[Negative Prompt]\nFog.\n\n"
        "[Prompt for chunk 0]\nA heron stands.\n\n[Prompt for chunk 1]\nIt flies.\n"
    )
    assert len(whole_video(path)) == 17
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".mp4", ".txt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_chunks": 0}, "num_chunks"),
        ({"handover": "tape"}, "handover"),
        ({"prompts": ["one"], "num_chunks": 2}, "1 prompts for 2"),
    ],
    ids=str,
)
def test_a_rollout_that_cannot_be_is_refused(
    engine: cf.Video2World, options: dict[str, Any], words: str
) -> None:
    options = {"prompts": cf.NO_TEXT} | options
    with pytest.raises(cf.InputError, match=words):
        cf.rollout(engine, PICTURE, **options, **SMALL)


def test_drift_is_seen_where_it_is() -> None:
    sharp = np.zeros((3, 8, 8, 3), np.uint8)
    sharp[:, ::2, :, 0] = 200
    grey = np.full_like(sharp, 100)
    first, second = measure(0, 0, sharp, None), measure(1, 1, grey, (sharp[-1:], sharp[-1:]))
    assert (second.contrast, second.saturation, second.sharpness) == (0, 0, 0)
    assert first.contrast > 25
    assert first.saturation == 100
    assert second.seam_psnr == float("inf")
    assert second.as_dict()["seam_psnr"] == "infinite"
    assert "(  0%)" in drift_table([first, second])
    assert psnr(grey, grey + 1) == pytest.approx(48.13)


def brightness(frames: cf.Frames, *, trials: int, seed: int) -> Judgement:
    said = f"<answer>No</answer> after {trials} looks from {seed}"
    return Judgement(float(np.asarray(frames).mean()) / 255, (said, "<b>&"))


def test_the_best_comes_first_and_the_page_holds_all(
    engine: cf.Video2World, tmp_path: Path
) -> None:
    ranking = cf.best_of_n(
        engine, PICTURE, "A <grey> heron.", critic=brightness, out=tmp_path,
        num_generations=3, seed=7, **SMALL,
    )  # fmt: skip
    scores = [one.judgement.score for one in ranking]
    assert scores == sorted(scores, reverse=True)
    assert {one.video.name for one in ranking} == {f"video_seed{n}.mp4" for n in (7, 8, 9)}
    page = (tmp_path / "best_of_n.html").read_text()
    assert page.count("data:video/mp4;base64,") == 3
    assert "A &lt;grey&gt; heron." in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.index(ranking[0].video.name) < page.index(ranking[1].video.name)
    for one in ranking:
        base = f"{one.video.stem}_score{one.percent:03d}"
        verdict = json.loads((tmp_path / f"{base}.json").read_bytes())
        assert verdict["answers"] == ["<answer>No</answer> after 5 looks from 7", "<b>&"]
        assert "&lt;b&gt;&amp;" in (tmp_path / f"{base}.html").read_text()


def test_a_new_judgement_replaces_the_old(engine: cf.Video2World, tmp_path: Path) -> None:
    videos = generate_candidates(
        engine, PICTURE, cf.NO_TEXT, out=tmp_path, name="a", num_generations=2, **SMALL
    )
    for score in (0.2, 0.999):
        judge(videos, lambda frames, score=score, **_: Judgement(score))
    told = sorted(path.name for path in tmp_path.glob("*_score*"))
    assert told == [
        "a_seed0_score099.html", "a_seed0_score099.json",
        "a_seed1_score099.html", "a_seed1_score099.json",
    ]  # fmt: skip


def test_a_video_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"?")
    with pytest.raises(cf.InputError, match="no manifest"):
        judge([tmp_path / "a.mp4"], brightness)
    with pytest.raises(cf.InputError, match="no video"):
        judge([], brightness)


def test_a_critic_is_asked_when_all_videos_can_be_judged(
    engine: cf.Video2World, tmp_path: Path
) -> None:
    """And what it returns is looked at."""
    videos = generate_candidates(
        engine, PICTURE, cf.NO_TEXT, out=tmp_path, name="a", num_generations=1, **SMALL
    )
    (tmp_path / "b.mp4").write_bytes(b"?")
    asked: list[int] = []

    def number(*_: object, **__: object) -> Any:
        asked.append(1)
        return 0.5

    with pytest.raises(cf.InputError, match=r"b\.mp4: there is no manifest"):
        judge([*videos, tmp_path / "b.mp4"], number)
    assert not asked
    with pytest.raises(cf.InputError, match=r"returned 0\.5 for .*a_seed0\.mp4: a Judgement"):
        judge(videos, number)


def test_percents_are_those_of_the_score() -> None:
    for percent in range(101):
        assert Candidate(Path("a.mp4"), Judgement(percent / 100)).percent == percent


@pytest.mark.parametrize(
    ("answers", "score", "verdicts"),
    [
        (["<answer>No</answer>", "<answer>yes</answer>"], 0.5, (True, False)),
        (
            ["<think>Yes</think>\n<ANSWER> no </ANSWER>", "I am not sure", "<answer>"],
            1.0,
            (True, None, None),
        ),
        (["no", ""], 0.0, (None, None)),
        ([], 0.0, ()),
    ],
    ids=["half", "unreadable ones drop out", "none readable", "none"],
)
def test_answers_are_counted_as_the_reference_counts(
    answers: list[str], score: float, verdicts: tuple[bool | None, ...]
) -> None:
    assert judgement_of(answers) == Judgement(score, tuple(answers), verdicts)


def test_the_page_tells_how_every_answer_was_read(engine: cf.Video2World, tmp_path: Path) -> None:
    """Of a score of 0 it must show whether faults were found, or nothing could be read."""
    videos = generate_candidates(
        engine, PICTURE, "A heron.", out=tmp_path, name="a", num_generations=1, **SMALL
    )
    said = ["<answer>No</answer>", "<answer>Yes</answer>", "Hm.", "<answer>No</answer>"]
    [best] = judge(videos, lambda *_, **__: judgement_of(said))
    assert best.percent == 66
    verdict = json.loads((tmp_path / "a_seed0_score066.json").read_bytes())
    assert verdict["tally"] == {"no fault": 2, "fault": 1, "unreadable": 1}
    for name in ("a_seed0_score066.html", "best_of_n.html"):
        page = (tmp_path / name).read_text("utf-8")
        assert "4 answers: 2 no fault, 1 fault, 1 unreadable" in page
        read = [f"Answer {n + 1}: {w}" for n, w in enumerate(("no fault", "fault", "unreadable"))]
        assert [line for line in read if f"<h2>{line}</h2>" in page] == read


def test_a_score_beyond_one_is_refused() -> None:
    with pytest.raises(cf.InputError, match="0 to 1"):
        Judgement(1.5)


def test_a_verdict_for_some_answers_only_is_refused() -> None:
    with pytest.raises(cf.InputError, match="1 verdicts of 2 answers"):
        Judgement(0.5, ("a", "b"), (True,))
