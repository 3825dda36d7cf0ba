"""A guardrail, an upsampler and callbacks around an engine whose weights come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import cosmos_fast as cf
from guarded import Check
from random_world import make_random_world
from test_memory_engine import PROFILE, TIGHT, load, run, same, whole

LONG = 41
"""Frames: the guardrail looks at the first 29, then at the rest, while the decoder waits."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_world(tmp_path_factory.mktemp("world"), PROFILE)


@pytest.fixture(scope="module")
def plain(world: Path) -> cf.Clip:
    return run(load(world), num_frames=LONG)


@pytest.mark.parametrize("ending", ["a verdict", "an error"])
def test_a_blocked_video_leaves_the_engine_ready(ending: str, world: Path, plain: cf.Clip) -> None:
    pieces = []

    def answer(frames: Any) -> cf.Verdict:
        pieces.append(len(frames))
        if len(pieces) == 1 and ending == "an error":
            raise ValueError("no idea")
        return cf.Verdict(len(pieces) > 1)

    guardrail = cf.Guardrail([Check("texts")], [Check("frames", answer)])
    engine = load(world, TIGHT, guardrail=guardrail)
    with pytest.raises(cf.GuardrailBlocked) as kept:
        run(engine, num_frames=LONG)
    assert pieces[0] < LONG
    assert same(run(engine, num_frames=LONG), plain)
    assert whole(engine)
    engine.sleep()
    assert kept.value.record is not None  # the error is still held, with its traceback


def test_a_video_that_cannot_be_written_leaves_the_engine_ready(
    world: Path, plain: cf.Clip, tmp_path: Path
) -> None:
    engine = load(world, TIGHT)

    def vanish(stage: str, state: str, _: float | None) -> None:
        if (stage, state) == ("write", "start"):
            (tmp_path / "a.mp4").mkdir()

    with pytest.raises(cf.MediaError, match=r"a\.mp4") as kept:
        engine.generate_to(
            tmp_path / "a.mp4",
            Path(__file__).parent.parent / "docs" / "ballworld.png",
            "a cat sits",
            num_steps=1,
            num_frames=5,
            size=(32, 48),
            on_stage=vanish,
        )
    assert same(run(engine, num_frames=LONG), plain)
    assert kept.value is not None


def test_a_run_that_starts_again_keeps_its_words(world: Path) -> None:
    asked: list[str] = []

    def upsample(prompt: str, frames: cf.Frames, *, seed: int) -> str:
        asked.append(prompt)
        return f"{prompt}, take {len(asked)}"

    engine = load(world, 64 << 20, upsampler=upsample)

    def once(step: int, total: int, x0: torch.Tensor) -> None:
        if len(asked) == 1 and not failed:
            failed.append(step)
            raise torch.OutOfMemoryError("CUDA out of memory")

    failed: list[int] = []
    clip = run(engine, on_step=once)
    assert failed == [1]
    assert clip.report.upsampler["prompt"] == "a cat sits, take 1"
    assert asked == ["a cat sits"]


@pytest.mark.parametrize("wrong", [Path("bad words"), 7, None, ["bad words"]], ids=repr)
def test_what_is_no_prompt_is_embedded_by_no_one(wrong: Any, world: Path) -> None:
    texts = Check("texts")
    engine = load(world, guardrail=cf.Guardrail([texts], [Check("frames")]))
    with pytest.raises(cf.InputError, match="NO_TEXT"):
        engine.embed(wrong)
    assert texts.seen == []


def test_a_callback_that_calls_its_own_engine_is_told(world: Path, plain: cf.Clip) -> None:
    engine = load(world)
    with pytest.raises(cf.InputError, match="this thread has the engine"):
        run(engine, on_step=lambda *_: engine.embed("a dog"))
    assert same(run(engine, num_frames=LONG), plain)


def test_an_open_stream_in_the_same_thread_is_told(world: Path, plain: cf.Clip) -> None:
    engine = load(world)
    frames = engine.stream(plain.frames.to("pt")[0], cf.NO_TEXT, num_steps=1, num_frames=9)
    next(frames)
    with pytest.raises(cf.InputError, match="close the stream"):
        engine.embed("a dog")
    frames.close()  # type: ignore[attr-defined]
    assert same(run(engine, num_frames=LONG), plain)
