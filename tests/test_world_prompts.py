"""Worlds that follow prompts: the first chunk is that of ``generate``, with a prompt or without."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import cosmos_fast as cf
from cosmos_fast.config import VAEConfig
from random_world import RANDOM_PROFILE, make_random_world

if TYPE_CHECKING:
    from cosmos_fast.types import Prompt

SIZE = cf.Size(32, 48)
PROFILE = replace(
    RANDOM_PROFILE,
    dit=replace(RANDOM_PROFILE.dit, num_layers=1, num_heads=1),
    vae=VAEConfig(base_dim=4),
    size=SIZE,
    num_frames=9,
    num_steps=2,
)
PICTURE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> cf.Video2World:
    folder = make_random_world(tmp_path_factory.mktemp("world"), PROFILE)
    return cf.Video2World.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("prompt", ["A red ball.", cf.NO_TEXT], ids=["text", "no text"])
def test_the_first_chunk_is_that_of_generate(engine: cf.Video2World, prompt: Prompt) -> None:
    clip = engine.generate(PICTURE, prompt, seed=5, num_conditional_frames=1)
    world = cf.World(engine, noise="reference")
    world.reset(PICTURE[None], prompt, seed=5)
    step = world.step()
    # AdaLN vectors are made step by step here and in one table there: equal but for rounding.
    torch.testing.assert_close(step.latents.tensor, clip.latents.tensor, rtol=1e-5, atol=1e-5)
    assert step.frames is not None
    apart = step.frames.to("np")[0].astype(int) - clip.frames.to("np")[1:]
    assert np.abs(apart).max() <= 1
