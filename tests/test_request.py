"""Arguments of generate: None becomes the profile's value, nonsense becomes one clear error."""

import pytest
import torch

from cosmos_fast.config import DiTConfig, Profile
from cosmos_fast.errors import InputError
from cosmos_fast.request import resolve
from cosmos_fast.types import NO_TEXT, Size, TextEmbedding

PROFILE = Profile(
    name="test model",
    size=Size(432, 768),
    num_frames=93,
    fps=16,
    dit=DiTConfig(num_layers=2, num_heads=2),
    negative_prompt="ugly",
)


def test_none_is_the_profiles_value():
    request = resolve(PROFILE, "a cat", None)
    assert request.size == (432, 768)
    assert request.num_frames == 93
    assert request.fps == 16
    assert request.num_steps == 35
    assert request.guidance == 7
    assert request.negative_prompt == "ugly"
    assert request.num_conditional_frames == 1
    assert request.latent_shape == (1, 16, 24, 54, 96)
    assert request.uses_guidance
    assert request.notes == ()
    assert len(request.sigmas) == 36


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (10_000, 768)}, "10000x768"),
        ({"size": (0, 768)}, "0x768"),
        ({"size": (432.5, 768)}, "whole number"),
        ({"num_frames": 92}, "92 frames"),
        ({"num_frames": 1}, "more than the 1"),
        ({"num_frames": 4 * 128 + 1}, "position table"),
        ({"num_frames": True}, "num_frames"),
        ({"num_frames": 5, "num_conditional_frames": 5}, "more than the 5"),
        ({"num_conditional_frames": 3}, "takes 1, 5"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 3.5}, "whole number"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": "7"}, "guidance"),
        ({"fps": 0}, "fps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"fit": "pad"}, "cover, stretch"),
        ({"recipe": "fast"}, "lossless"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"]}, "list"),
        ({"negative_prompt": 3}, "negative_prompt"),
    ],
    ids=str,
)
def test_nonsense_is_refused_by_name(options, words):
    prompts = {"prompt": "a", "negative_prompt": None} | {
        key: value for key, value in options.items() if "prompt" in key
    }
    rest = {key: value for key, value in options.items() if "prompt" not in key}
    with pytest.raises(InputError, match=words):
        resolve(PROFILE, **prompts, **rest)


def test_a_size_is_rounded_up_and_said_so():
    request = resolve(PROFILE, "a", None, size=(425, 768))
    assert request.size == (432, 768)
    assert "rounded up" in request.notes[0]


def test_an_empty_negative_prompt_turns_guidance_off_and_says_so():
    request = resolve(PROFILE, "a", "")
    assert not request.uses_guidance
    assert "skipped" in request.notes[0]
    assert resolve(PROFILE, "a", NO_TEXT).uses_guidance
    assert not resolve(PROFILE, "a", "b", guidance=0).uses_guidance


def test_nine_frames_are_taken_with_a_warning(caplog):
    request = resolve(PROFILE, "a", None, num_conditional_frames=9)
    assert request.num_conditional_frames == 9
    assert "not trained" in caplog.text


def test_another_length_is_noted():
    assert "trained for 93" in resolve(PROFILE, "a", None, num_frames=81).notes[0]


def test_the_manifest_names_prompts_of_every_kind():
    embedding = TextEmbedding(torch.zeros(512, 4, dtype=torch.bfloat16), 7)
    arguments = resolve(PROFILE, embedding, NO_TEXT).arguments()
    assert arguments["prompt"] == "<embedding of 7 rows>"
    assert arguments["negative_prompt"] == "<no text>"
