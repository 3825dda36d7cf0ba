"""What a command line means: generation, defaults, contradictions, missing parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from command_lines import LATER, ORIGINAL, settings
from cosmos_fast.cli.exits import UsageError
from cosmos_fast.cli.flags import in_flags
from cosmos_fast.cli.resolve import generation_of
from cosmos_fast.cli.settings_of_profile import with_profile
from cosmos_fast.cli.size_classes import FRAMES_OF_RATE, SIZES
from cosmos_fast.cli.video2world_flags import ORIGINAL_GENERATION_FLAGS, VIDEO2WORLD_FLAGS
from cosmos_fast.config import DiTConfig, Profile
from cosmos_fast.types import Size


@pytest.mark.parametrize("flag", ORIGINAL_GENERATION_FLAGS)
def test_a_path_or_name_flag_of_the_original_chooses_the_original(flag: str) -> None:
    assert generation_of({flag: "x", "prompt": "p", "num_steps": 3}) == "original"


@pytest.mark.parametrize(
    "flag",
    [flag.name for flag in VIDEO2WORLD_FLAGS if flag.name not in ORIGINAL_GENERATION_FLAGS],
)
def test_every_other_flag_leaves_the_later_generation(flag: str) -> None:
    assert generation_of({flag: "x"}) == "later"


def test_defaults_of_the_original() -> None:
    found = settings(ORIGINAL)
    assert (found.height, found.width, found.num_frames) == (704, 1280, 121)
    assert (found.fps, found.seed, found.crf) == (24, 1, 25)
    assert (found.fit, found.sidecar) == ("stretch", "original")
    assert found.output == Path("outputs/output.mp4")
    assert found.source == "Cosmos-Predict2-2B-Video2World"
    assert found.checkpoint_root == Path("checkpoints")
    assert found.num_conditional_frames == 1
    assert found.standard is None
    assert found.origins["seed"] == found.origins["fps"] == "original default"


def test_defaults_of_the_later_tool() -> None:
    found = settings(LATER)
    assert (found.height, found.width, found.num_frames) == (704, 1280, 93)
    assert (found.fps, found.seed, found.crf) == (16, 0, 15)
    assert (found.fit, found.sidecar) == ("cover", "later")
    assert found.output == Path("output/generated_video.mp4")
    assert (found.source, found.variant) == (
        "nvidia/Cosmos-Predict2-2B-Video2World",
        "720p-16fps",
    )
    assert found.standard == ("2B", 720, 16)
    assert found.num_steps is None
    assert found.guidance is None
    assert found.negative_prompt is None
    assert found.origins["seed"] == "later default"
    assert found.origins["num_steps"] == "profile"
    assert found.origins["prompt"] == "command line"


@pytest.mark.parametrize("generation", [ORIGINAL, LATER], ids=["original", "later"])
def test_numbers_are_free_in_both_generations(generation: str) -> None:
    found = settings(
        f"{generation} --height 432 --width 768 --num_video_frames 81 --num_steps 20 "
        "--guidance 3.5 --seed 42 --fps 30 --crf 18 --fit cover"
    )
    assert (found.height, found.width, found.num_frames) == (432, 768, 81)
    assert (found.num_steps, found.guidance, found.seed) == (20, 3.5, 42)
    assert (found.fps, found.crf, found.fit) == (30, 18, "cover")
    assert found.origins["fps"] == "command line"


@pytest.mark.parametrize("rate", FRAMES_OF_RATE)
@pytest.mark.parametrize("resolution", SIZES)
@pytest.mark.parametrize("size", ["2B", "14B"])
def test_later_flags_name_a_released_checkpoint(size: str, resolution: int, rate: int) -> None:
    found = settings(f"{LATER} --model_size {size} --resolution {resolution} --fps {rate}")
    assert found.source == f"nvidia/Cosmos-Predict2-{size}-Video2World"
    assert found.variant == f"{resolution}p-{rate}fps"
    assert (found.fps, found.num_frames) == (rate, FRAMES_OF_RATE[rate])
    assert (found.height, found.width) == SIZES[resolution]["16:9"]


@pytest.mark.parametrize(
    ("resolution", "aspect", "height", "width"),
    [
        (720, "1:1", 960, 960),
        (720, "4:3", 704, 960),
        (720, "3:4", 960, 704),
        (720, "9:16", 1280, 704),
        (480, "1:1", 480, 480),
        (480, "4:3", 480, 640),
        (480, "3:4", 640, 480),
        (480, "16:9", 432, 768),
        (480, "9:16", 768, 432),
    ],
)
def test_aspect_ratio_is_width_to_height(
    resolution: int, aspect: str, height: int, width: int
) -> None:
    found = settings(f"{LATER} --resolution {resolution} --aspect_ratio {aspect}")
    assert (found.height, found.width) == (height, width)


def test_another_rate_is_the_rate_of_the_file_alone() -> None:
    found = settings(f"{LATER} --fps 12")
    assert (found.fps, found.variant, found.num_frames) == (12, "720p-16fps", 93)


def test_a_named_model_brings_its_own_values() -> None:
    found = settings(f"{LATER} --model some/model")
    assert found.source == "some/model"
    assert found.variant is found.height is found.width is found.num_frames is found.fps is None
    assert found.origins["height"] == found.origins["fps"] == "profile"
    assert found.standard is None


def test_a_transformer_file_keeps_the_released_values() -> None:
    found = settings(f"{LATER} --dit_path my/model.pt --resolution 480 --fps 10")
    assert found.source == "my/model.pt"
    assert found.standard == ("2B", 480, 10)
    assert found.num_frames == 61


def test_one_given_side_leaves_the_other_to_the_size_class() -> None:
    found = settings(f"{LATER} --height 512")
    assert (found.height, found.width) == (512, 1280)


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("--save_path a/b.mp4", "a/b.mp4"),
        ("--save_path a/b.MP4", "a/b.MP4"),
        ("--save_path a/b", "a/b.mp4"),
        ("--save_path a/b.mkv", "a/b.mkv"),
        ("--save_path a/b.NPY", "a/b.NPY"),
        ("--save_path a/%05d.png", "a/%05d.png"),
        ("--video_save_name x", "outputs/x.mp4"),
        ("--video_save_folder d", "d/output.mp4"),
        ("--video_save_folder d --video_save_name a.b", "d/a.b.mp4"),
    ],
)
def test_output_naming(line: str, path: str) -> None:
    assert settings(f"{LATER} {line}").output == Path(path)


@pytest.mark.parametrize(
    "line",
    [
        "--save_path a.avi",
        "--save_path a/frame.png",
        "--video_save_name a/b",
        "--save_path .mp4",
        "--save_path /",
    ],
)
def test_refused_output_names(line: str) -> None:
    with pytest.raises(UsageError, match=line.split()[0]):
        settings(f"{LATER} {line}")


def test_aspect_ratio_of_a_named_model_needs_a_size_class() -> None:
    with pytest.raises(UsageError, match="--resolution"):
        settings(f"{LATER} --model some/model --aspect_ratio 1:1")


def test_the_quality_of_a_lossless_file_is_no_choice() -> None:
    assert settings(f"{LATER} --crf 20").notes == ()
    [note] = settings(f"{LATER} --crf 20 --save_path a.mkv").notes
    assert note == "--crf has no effect: .mkv is lossless"


def test_averaged_weights_and_a_bf16_text_encoder_can_be_asked_for() -> None:
    found = settings(f"{LATER} --load_ema --downcast_text_encoder")
    found.refuse_missing()
    assert found.load_ema
    assert found.downcast_text_encoder


def test_a_prompt_is_required() -> None:
    with pytest.raises(UsageError, match="--prompt is required"):
        settings("--input_path a.png --disable_prompt_refiner")
    with pytest.raises(UsageError, match="--prompt is required"):
        settings(f"{ORIGINAL} --prompt ' ' --disable_guardrail")


def test_the_later_tool_takes_an_empty_prompt_without_guardrail() -> None:
    found = settings("--input_path a.png --disable_prompt_refiner --disable_guardrail")
    assert found.prompt is None
    assert found.guardrail == "off"


def test_an_input_is_required() -> None:
    with pytest.raises(UsageError, match="--input_path"):
        settings("--prompt p --disable_prompt_refiner")


def toy() -> Profile:
    return Profile("toy", Size(96, 160), 33, 16, DiTConfig(2, 2, 16), toy=True)


@pytest.mark.parametrize("generation", [ORIGINAL, LATER], ids=["original", "later"])
def test_a_toy_profile_wins_over_the_defaults_of_a_generation(generation: str) -> None:
    found = with_profile(settings(f"{generation} --num_video_frames 17"), toy())
    assert (found.height, found.width, found.fps) == (96, 160, 16)
    assert found.num_frames == 17
    assert found.origins["height"] == "profile"
    assert found.upsampler == found.guardrail == "not applicable"
    asked_for = with_profile(settings(f"{generation} --require_guardrail"), toy())
    assert asked_for.guardrail == "required"


def test_a_toy_needs_no_upsampler() -> None:
    found = settings("--input_image_or_video_path a.png --prompt p")
    as_toy = with_profile(found, toy())
    as_toy.refuse_missing()
    assert as_toy.upsampler == "not applicable"
    by_name = settings("--model ballworld --input_path a.png --prompt p")
    by_name.refuse_missing()
    with_profile(settings("--batch_input_path a.jsonl"), toy()).refuse_missing()


def test_a_profile_fills_what_is_open_and_nothing_else() -> None:
    released = replace(toy(), toy=False, num_steps=35, guidance=7.0, negative_prompt="blurred")
    found = with_profile(settings(ORIGINAL), released)
    assert (found.height, found.num_frames, found.fps) == (704, 121, 24)
    assert (found.num_steps, found.guidance, found.negative_prompt) == (35, 7, "blurred")
    assert found.origins["num_steps"] == "profile"
    assert (found.upsampler, found.guardrail) == ("off", "default")
    given = with_profile(settings(f"{LATER} --negative_prompt '' --model a/b --fps 5"), released)
    assert (given.negative_prompt, given.fps, given.height) == ("", 5, 96)


def test_messages_of_the_library_speak_in_flags() -> None:
    told = in_flags(
        "give variant= or vae=, text_encoder= (a folder); variant='x'; or local_files_only=True",
        VIDEO2WORLD_FLAGS,
    )
    assert told == (
        "give --variant or --vae, --text_encoder (a folder); variant='x'; or --local_files_only"
    )


def test_settings_as_plain_values() -> None:
    plain = settings(f"{LATER} --disable_guardrail --offload_guardrail").as_dict()
    assert plain["output"] == "output/generated_video.mp4"
    assert plain["origins"]["input"] == "command line"
    assert plain["standard"] == ["2B", 720, 16]
    assert len(plain["notes"]) == 1
