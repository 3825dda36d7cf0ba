"""Worlds behind a guardrail: no text and no frame passes it, whoever made the state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import cosmos_fast as cf
from cosmos_fast.world import advance
from guarded import NOT_A_TOY, Check, inverted
from random_world import make_random_world

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
WORDS = "A kettle boils."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_world(tmp_path_factory.mktemp("world"), NOT_A_TOY)


def load(folder: Path, guardrail: cf.Guardrail | cf.NoGuardrail) -> cf.Video2World:
    return cf.Video2World.from_pretrained(
        folder, device="cpu", guardrail=guardrail, prompt_cache=False
    )


@pytest.fixture(scope="module")
def free(folder: Path) -> cf.Video2World:
    return load(folder, cf.NoGuardrail(reason="test"))


def guarded(folder: Path, text: Check, video: Check | None = None) -> cf.Video2World:
    return load(folder, cf.Guardrail([text], [video or Check("eyes")]))


def refusing(word: str) -> Check:
    return Check("words", lambda text: cf.Verdict(word not in text, f"it says {word}"))


def world_of(engine: cf.Video2World, prompt: cf.TextEmbedding | str = WORDS) -> cf.World:
    world = cf.World(engine, num_steps=1)
    world.reset(PICTURE[None], prompt, seed=5)
    return world


@pytest.mark.parametrize("way", ["advance", "snapshot", "file"])
def test_a_guarded_engine_reads_the_words_of_a_foreign_state(
    folder: Path, free: cf.Video2World, tmp_path: Path, way: str
) -> None:
    engine = guarded(folder, refusing("kettle"))
    theirs, ours = world_of(free), cf.World(engine, num_steps=1)
    snapshot = theirs.snapshot(tmp_path / "states.safetensors")
    takes = {
        "advance": lambda: advance(engine, theirs.states, num_steps=1),
        "snapshot": lambda: ours.restore(snapshot),
        "file": lambda: ours.restore(tmp_path / "states.safetensors"),
    }
    with pytest.raises(cf.GuardrailBlocked, match=r"the prompt was blocked.*it says kettle"):
        takes[way]()
    with pytest.raises(cf.InputError, match="no frames yet"):
        _ = ours.states


@pytest.mark.parametrize("way", ["advance", "file"])
def test_a_guarded_engine_refuses_a_state_of_an_embedding(
    folder: Path, free: cf.Video2World, tmp_path: Path, way: str
) -> None:
    engine = guarded(folder, Check("words"))
    theirs = world_of(free, free.embed(WORDS))
    theirs.snapshot(tmp_path / "states.safetensors")
    takes = {
        "advance": lambda: advance(engine, theirs.states, num_steps=1),
        "file": lambda: cf.World(engine).restore(tmp_path / "states.safetensors"),
    }
    with pytest.raises(cf.GuardrailBlocked, match="an embedding cannot be read"):
        takes[way]()
    assert advance(free, theirs.states, num_steps=1).verdict == "not checked"


def test_a_guarded_engine_follows_the_words_and_not_rows_beside_them(
    folder: Path, free: cf.Video2World, tmp_path: Path
) -> None:
    """A file can say one thing and hold the embedding of another."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "states.safetensors"
    world_of(free).snapshot(path)
    with safe_open(path, "pt") as file:
        names, metadata = list(file.keys()), file.metadata()
        tensors = {name: file.get_tensor(name) for name in names}
    tensors["text.0"] = tensors["text.0"].flip(0) * 3
    save_file(tensors, path, metadata)
    engine = guarded(folder, Check("words"))
    world = cf.World(engine, num_steps=1)
    world.restore(path)
    expected = world_of(engine).step().latents.tensor
    assert torch.equal(world.step().latents.tensor, expected)


def test_words_are_checked_once_and_stay_on_record(folder: Path, free: cf.Video2World) -> None:
    words = Check("words")
    engine = guarded(folder, words)
    state = advance(engine, world_of(free).states, num_steps=1).state
    made = advance(engine, state, num_steps=1)
    assert words.seen.count(WORDS) == 1
    checks = made.report.guardrail["checks"]
    found = {(one["check"], one["subject"]): one["verdict"] for one in checks}
    assert found["words", "prompt"] == "safe"
    assert found["eyes", "video"] == "safe"
    assert made.verdict == "safe"


def test_a_step_without_pictures_is_not_checked_and_shows_none(folder: Path) -> None:
    eyes = Check("eyes", lambda _: cf.Verdict(False, "grim"))
    world = world_of(guarded(folder, Check("words"), eyes))
    step = world.step(decode=False)
    assert (step.verdict, step.frames, eyes.seen) == ("not checked", None, [])
    world.step(decode=False)
    assert step.state[0].frames is None, "decoded for the model alone"
    with pytest.raises(cf.GuardrailBlocked, match="grim"):
        world.step()
    assert world.states[0].chunks == 2


def test_a_state_shows_what_was_published(
    folder: Path, free: cf.Video2World, tmp_path: Path
) -> None:
    world = world_of(guarded(folder, Check("words"), Check("blur", inverted)))
    plain = world_of(free).step()
    step = world.step()
    assert step.frames is not None
    assert plain.state[0].frames is not None
    shown = step.state[0].frames
    assert shown is not None
    assert np.array_equal(shown.to("np"), step.frames.to("np")[0, -len(shown) :])
    assert np.array_equal(shown.to("np"), 255 - plain.state[0].frames.to("np"))
    world.snapshot(tmp_path / "states.safetensors")
    goes_on = world.step().latents.tensor
    [back] = world.restore(tmp_path / "states.safetensors")
    assert back.frames is not None
    assert np.array_equal(back.frames.to("np"), shown.to("np"))
    assert torch.equal(world.step().latents.tensor, goes_on), "blurred frames are not continued"


def test_frames_of_a_file_are_checked(folder: Path, free: cf.Video2World, tmp_path: Path) -> None:
    theirs = world_of(free)
    theirs.step()
    theirs.snapshot(tmp_path / "states.safetensors")
    engine = guarded(folder, Check("words"), Check("eyes", lambda _: cf.Verdict(False, "grim")))
    with pytest.raises(cf.GuardrailBlocked, match="grim"):
        cf.World(engine).restore(tmp_path / "states.safetensors")
