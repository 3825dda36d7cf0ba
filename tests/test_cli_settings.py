"""What a command line means: generation, defaults, contradictions, missing parts."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosmos_fast.cli import main
from cosmos_fast.cli.config_file import merge, read_config
from cosmos_fast.cli.exits import MissingPartError, UsageError
from cosmos_fast.cli.flags import Flag, in_flags, parse_flags, spread_values
from cosmos_fast.cli.resolve import generation_of, resolve
from cosmos_fast.cli.settings import Origin, Settings
from cosmos_fast.cli.settings_of_profile import with_profile
from cosmos_fast.cli.size_classes import FRAMES_OF_RATE, SIZES
from cosmos_fast.cli.video2world_flags import (
    EXCLUSIVE_FLAGS,
    ORIGINAL_GENERATION_FLAGS,
    VIDEO2WORLD_FLAGS,
)
from cosmos_fast.config import DiTConfig, Profile
from cosmos_fast.memory import Budget
from cosmos_fast.types import Size

LATER = "--input_path a.png --prompt p --disable_prompt_refiner"
ORIGINAL = "--input_image_or_video_path a.png --prompt p --disable_prompt_upsampler"


def given(line: str) -> dict[str, Any]:
    """The flags of a command line, read without the parser: ``--switch`` or ``--flag value``."""
    words = shlex.split(line)
    values: dict[str, object] = {}
    switches = {flag.name for flag in VIDEO2WORLD_FLAGS if flag.kind is None}
    while words:
        name = words.pop(0).removeprefix("--")
        values[name] = True if name in switches else words.pop(0)
    return parse_flags(VIDEO2WORLD_FLAGS, values)


def settings(line: str) -> Settings:
    flags = given(line)
    origins: dict[str, Origin] = dict.fromkeys(flags, "command line")
    return resolve(flags, origins)


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


@pytest.mark.parametrize("group", EXCLUSIVE_FLAGS, ids="-".join)
def test_flags_that_say_the_same_contradict_each_other(group: tuple[str, ...]) -> None:
    table = {flag.name: flag for flag in VIDEO2WORLD_FLAGS}
    values = {name: RIGHT[name] for name in group}
    flags = parse_flags(table.values(), values)
    with pytest.raises(UsageError, match="contradict"):
        resolve(flags, dict.fromkeys(flags, "command line"))


def test_aspect_ratio_of_a_named_model_needs_a_size_class() -> None:
    with pytest.raises(UsageError, match="--resolution"):
        settings(f"{LATER} --model some/model --aspect_ratio 1:1")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--natten --input_path a.png --prompt p", "sparse-attention part"),
        ("--benchmark --batch_input_json a.json", "benchmark-of-lists part"),
    ],
)
def test_a_flag_that_needs_a_missing_part_names_it(line: str, part: str) -> None:
    found = settings(f"{line} --disable_prompt_refiner")
    with pytest.raises(MissingPartError, match=f"{line.split()[0]} needs the {part}"):
        found.refuse_missing()


def test_the_quality_of_a_lossless_file_is_no_choice() -> None:
    assert settings(f"{LATER} --crf 20").notes == ()
    [note] = settings(f"{LATER} --crf 20 --save_path a.mkv").notes
    assert note == "--crf has no effect: .mkv is lossless"


def test_averaged_weights_and_a_bf16_text_encoder_can_be_asked_for() -> None:
    found = settings(f"{LATER} --load_ema --downcast_text_encoder")
    found.refuse_missing()
    assert found.load_ema
    assert found.downcast_text_encoder


@pytest.mark.parametrize("flag", ["batch_input_json", "batch_input_path"])
def test_a_list_needs_no_input_of_its_own_and_takes_several_gpus(flag: str) -> None:
    found = settings(f"--{flag} jobs --disable_prompt_refiner --num_gpus 4")
    found.refuse_missing()
    assert found.batch == Path("jobs")
    assert found.batch_folder == Path("outputs" if flag == "batch_input_path" else ".")
    assert found.num_gpus == 4


def test_one_gpu_needs_no_parallel_part() -> None:
    found = settings(f"{LATER} --num_gpus 1 --memory resident")
    found.refuse_missing()
    assert (found.num_gpus, found.memory, found.missing) == (1, "resident", ())


@pytest.mark.parametrize(
    ("line", "switch"),
    [
        ("--input_path a.png", "--disable_prompt_refiner"),
        ("--input_image_or_video_path a.png", "--disable_prompt_upsampler"),
    ],
)
def test_the_upsampler_is_on_unless_disabled(line: str, switch: str) -> None:
    found = settings(line)
    assert (found.upsampler, found.upsampler_model) == ("on", None)
    assert (found.prompt, found.upsampler_placement) == (None, "device")
    assert settings(f"{line} --prompt p {switch}").upsampler == "off"


@pytest.mark.parametrize("switch", ["--disable_prompt_upsampler", "--disable_prompt_refiner"])
@pytest.mark.parametrize("path", ["--input_path", "--input_image_or_video_path"])
def test_either_word_disables_the_upsampler_in_either_generation(path: str, switch: str) -> None:
    found = settings(f"{path} a.png --prompt p {switch}")
    assert found.upsampler == "off"
    found.refuse_missing()


@pytest.mark.parametrize(
    "line",
    [
        "--offload_prompt_upsampler",
        "--offload_prompt_refiner",
        "--prompt_upsampler_dir Qwen/Qwen2.5-VL-7B-Instruct",
        "--tokenizer_dir x",
        "--image_save_name x",
        "--image_save_folder x",
    ],
)
def test_a_flag_without_effect_is_accepted_and_reported(line: str) -> None:
    with_flag, without = settings(f"{LATER} {line}"), settings(LATER)
    assert replace(with_flag, notes=()) == without
    [note] = with_flag.notes
    assert note.startswith(f"{line.split()[0]} has no effect: ")


@pytest.mark.parametrize("flag", ["--offload_guardrail_models", "--offload_guardrail"])
def test_offloading_a_guardrail_that_is_off_has_no_effect(flag: str) -> None:
    off = f"{LATER} --disable_guardrail"
    assert replace(settings(f"{off} {flag}"), notes=()) == settings(off)
    assert settings(f"{off} {flag}").notes == (f"{flag} has no effect: the guardrail is off",)


@pytest.mark.parametrize(
    ("line", "guardrail", "placement"),
    [
        ("", "default", "device"),
        ("--offload_guardrail_models", "default", "disk"),
        ("--offload_guardrail", "default", "host"),
        ("--require_guardrail", "required", "device"),
        ("--disable_guardrail", "off", "device"),
    ],
)
def test_the_guardrail_is_on_unless_disabled(line: str, guardrail: str, placement: str) -> None:
    found = settings(f"{LATER} {line}")
    assert (found.guardrail, found.guardrail_placement) == (guardrail, placement)


@pytest.mark.parametrize("flag", ["--offload_prompt_upsampler", "--offload_prompt_refiner"])
def test_an_offloaded_upsampler_is_parked(flag: str) -> None:
    found = settings(f"--input_path a.png --prompt_upsampler_dir Qwen/x {flag}")
    assert (found.upsampler_model, found.upsampler_placement) == ("Qwen/x", "host")
    assert found.notes == ()


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("", ()),
        ("--offload_tokenizer", ("vae encoder", "vae decoder")),
        ("--offload_diffusion_transformer", ("dit",)),
        ("--offload_text_encoder_model --offload_text_encoder", ("text encoder",)),
    ],
)
def test_offloading_is_for_the_plan(line: str, parts: tuple[str, ...]) -> None:
    found = settings(f"{LATER} {line} --memory 12GiB")
    assert found.offload == parts
    assert found.notes == ()
    assert found.origins["offload"] == ("command line" if line else "default")
    found.refuse_missing()


def test_host_memory_is_the_other_half_of_the_budget(capfd: pytest.CaptureFixture[str]) -> None:
    from cosmos_fast.cli.video2world import memory

    assert memory(settings(LATER)) == "auto"
    assert memory(settings(f"{LATER} --memory 12GiB")) == "12gib"
    assert memory(settings(f"{LATER} --host_memory 32GiB")) == Budget(None, "32GiB")
    assert memory(settings(f"{LATER} --memory 12GiB --host_memory 8GB")) == Budget("12GiB", "8GB")
    found = settings(f"{ORIGINAL} --prompt p --host_memory 8GB")
    assert (found.host_memory, found.origins["host_memory"]) == ("8GB", "command line")
    with pytest.raises(UsageError, match="--host_memory and --memory resident contradict"):
        settings(f"{LATER} --memory Resident --host_memory 8GB")
    for command in ("video2world", "batch", "rollout", "best-of-n", "plan"):
        assert main([command, "--help"]) == 0
        assert "--host_memory" in capfd.readouterr().out, command


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


# One right and one wrong value of every flag that takes one.
RIGHT: dict[str, object] = {
    "input_path": "a.png",
    "input_image_or_video_path": "a.png",
    "prompt": "p",
    "negative_prompt": "",
    "num_conditional_frames": "5",
    "num_input_frames": "9",
    "fit": "stretch",
    "model": "owner/name",
    "variant": "480p-16fps",
    "vae": "vae.pth",
    "text_encoder": "t5",
    "tokenizer": "t5",
    "revision": "main",
    "model_size": "14B",
    "resolution": "480",
    "dit_path": "model.pt",
    "checkpoint_dir": "checkpoints",
    "diffusion_transformer_dir": "Cosmos-Predict2-14B-Video2World",
    "aspect_ratio": "9:16",
    "height": "432",
    "width": "768",
    "num_video_frames": "81",
    "fps": "10",
    "num_steps": "35",
    "guidance": "7",
    "seed": "4294967295",
    "save_path": "a.mp4",
    "video_save_name": "a",
    "video_save_folder": "b",
    "crf": "0",
    "batch_input_json": "a.json",
    "batch_input_path": "a.jsonl",
    "input_root": "a",
    "prompt_upsampler_dir": "x",
    "device": "cuda:1",
    "precision": "fp32",
    "memory": "12GiB",
    "host_memory": "32 gib",
    "rope_table": "float32",
    "num_gpus": "8",
    "config": "a.toml",
    "tokenizer_dir": "x",
    "image_save_name": "x",
    "image_save_folder": "x",
}
RIGHT |= {flag.name: True for flag in VIDEO2WORLD_FLAGS if flag.kind is None}

WRONG: dict[str, tuple[object, str]] = {
    "input_path": ("", "a path that is not empty"),
    "input_image_or_video_path": (" ", "a path that is not empty"),
    "prompt": (False, "a text"),
    "negative_prompt": (["a"], "a text"),
    "num_conditional_frames": ("9", "1 or 5"),
    "num_input_frames": ("2", "1, 5 or 9"),
    "fit": ("crop", "cover or stretch"),
    "model": ("", "a name that is not empty"),
    "variant": ("", "a name that is not empty"),
    "vae": ("", "a path that is not empty"),
    "text_encoder": ("", "a path that is not empty"),
    "tokenizer": ("", "a path that is not empty"),
    "revision": ("", "a name that is not empty"),
    "model_size": ("7B", "2B or 14B"),
    "resolution": ("1080", "480 or 720"),
    "dit_path": ("", "a path that is not empty"),
    "checkpoint_dir": ("", "a path that is not empty"),
    "diffusion_transformer_dir": ("", "a path that is not empty"),
    "aspect_ratio": ("2:1", "1:1, 4:3, 3:4, 16:9 or 9:16"),
    "height": ("0", "a whole number from 1 to 1920"),
    "width": ("1921", "a whole number from 1 to 1920"),
    "num_video_frames": ("80", "1 more than a multiple of 4"),
    "fps": ("0", "a number above 0"),
    "num_steps": ("0", "a whole number of at least 1"),
    "guidance": ("nan", "a number of at least 0"),
    "seed": ("-1", "a whole number from 0 to 4294967295"),
    "save_path": ("o/", "the name of a file to write"),
    "video_save_name": ("", "a name that is not empty"),
    "video_save_folder": ("a\0b", "a path that is not empty"),
    "crf": ("52", "a whole number from 0 to 51"),
    "batch_input_json": ("", "a path that is not empty"),
    "batch_input_path": ("", "a path that is not empty"),
    "input_root": ("", "a path that is not empty"),
    "prompt_upsampler_dir": ("", "a path that is not empty"),
    "device": ("gpu", "auto, cpu, cuda or cuda:N"),
    "precision": ("fp16", "auto, bf16 or fp32"),
    "memory": ("lots", "auto, resident, or an amount such as 12GiB"),
    "host_memory": ("auto", "an amount such as 32GiB"),
    "rope_table": ("exact", "reference or float32"),
    "num_gpus": ("0", "a whole number of at least 1"),
    "config": ("", "a path that is not empty"),
    "tokenizer_dir": ("", "a path that is not empty"),
    "image_save_name": ("", "a name that is not empty"),
    "image_save_folder": ("", "a path that is not empty"),
}
WRONG |= {flag.name: ("yes", "true or false") for flag in VIDEO2WORLD_FLAGS if flag.kind is None}


@pytest.mark.parametrize("flag", VIDEO2WORLD_FLAGS, ids=lambda flag: flag.name)
def test_every_flag_takes_a_right_value(flag: Flag) -> None:
    value = flag.value(RIGHT[flag.name])
    assert str(value) in (str(RIGHT[flag.name]), f"{RIGHT[flag.name]}.0")


@pytest.mark.parametrize("flag", VIDEO2WORLD_FLAGS, ids=lambda flag: flag.name)
def test_every_flag_refuses_a_wrong_value_and_says_what_it_expected(flag: Flag) -> None:
    value, expected = WRONG[flag.name]
    with pytest.raises(UsageError) as caught:
        flag.value(value)
    assert str(caught.value).startswith(f"--{flag.name}: {value!r} ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["1.5", "x", "", "1e3", "inf"])
def test_whole_numbers_are_whole(text: str) -> None:
    [steps] = [flag for flag in VIDEO2WORLD_FLAGS if flag.name == "num_steps"]
    with pytest.raises(UsageError):
        steps.value(text)


def test_choices_ignore_case() -> None:
    found = settings(f"{LATER} --model_size 14b --fit STRETCH --device CUDA:0")
    assert (found.standard, found.fit, found.device) == (("14B", 720, 16), "stretch", "cuda:0")


def test_config_file_is_read_under_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'input-path = "a.png"\nprompt = "from the file"\nnum_steps = 12\nguidance = 3\n'
        "disable_prompt_refiner = true\ndisable_guardrail = false\n"
    )
    config = read_config(path, VIDEO2WORLD_FLAGS)
    flags = given("--num_steps 20")
    values = merge(config, flags, EXCLUSIVE_FLAGS)
    origins: dict[str, Origin] = {
        name: "command line" if name in flags else "config file" for name in values
    }
    found = resolve(values, origins)
    assert (found.num_steps, found.prompt, found.guidance) == (20, "from the file", 3.0)
    assert (found.origins["num_steps"], found.origins["prompt"]) == ("command line", "config file")
    assert found.guardrail == "default"


def test_a_flag_displaces_its_other_word_in_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('input_path = "a.png"\nprompt = "p"\ndisable_prompt_refiner = true\n')
    flags = given("--input_image_or_video_path b.png")
    values = merge(read_config(path, VIDEO2WORLD_FLAGS), flags, EXCLUSIVE_FLAGS)
    found = resolve(values, dict.fromkeys(values, "config file"))
    assert (found.input, found.generation) == (Path("b.png"), "original")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1", "'nonsense', which is no flag here; --help lists them"),
        ("promt = 1", "'promt', which is no flag here; did you mean --prompt?"),
        ("seed = 1\nnum_steps = = 2", "cannot be read, line 2: Invalid value; a line reads"),
        ('prompt = "a', "cannot be read, at its end: "),
        ("[table]\na = 1", "'table', which is no flag"),
        ('config = "x"', "'config', which is no flag"),
        ("num_steps = 1.5", "--num_steps: 1.5 is not a whole number"),
        ("num_steps = true", "--num_steps: True is not a whole number"),
        ('json = "yes"', "--json: 'yes' is not expected; it is true or false"),
        ("prompt = 2021-01-01", "--prompt"),
        ("num-steps = 1\nnum_steps = 2", "twice"),
        ("a = ", "cannot be read"),
        ("\udcff", "cannot be read"),
        ("a" * (1 << 20) + " = 1", "over 1048576 bytes"),
    ],
    ids=lambda text: text[:24],
)
def test_wrong_config_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"--config: ") as caught:
        read_config(path, VIDEO2WORLD_FLAGS)
    assert message in str(caught.value)


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml.*No such file"):
        read_config(tmp_path / "none.toml", VIDEO2WORLD_FLAGS)


@pytest.mark.parametrize(
    ("line", "spread"),
    [
        ("d --sizes 2B 14B --dir x", "d --sizes 2B --sizes 14B --dir x"),
        ("d --sizes=2B 14B", "d --sizes=2B --sizes 14B"),
        ("d --the-sizes 2B 14B -q", "d --the-sizes 2B --the-sizes 14B -q"),
        ("d --dir x y", "d --dir x y"),
        ("d --sizes", "d --sizes"),
    ],
)
def test_flags_of_several_values(line: str, spread: str) -> None:
    assert spread_values(line.split(), ("sizes", "the_sizes")) == spread.split()


def test_the_table_names_every_flag_of_both_generations_once() -> None:
    names = [flag.name for flag in VIDEO2WORLD_FLAGS]
    assert len(names) == len(set(names))
    assert set(names) >= ORIGINAL_AND_LATER


_BOTH_GENERATIONS = """
    checkpoint_dir diffusion_transformer_dir input_image_or_video_path num_input_frames prompt
    negative_prompt height width num_video_frames num_steps guidance fps seed video_save_name
    video_save_folder batch_input_path disable_prompt_upsampler offload_prompt_upsampler
    prompt_upsampler_dir disable_guardrail offload_guardrail_models offload_tokenizer
    offload_diffusion_transformer offload_text_encoder_model num_gpus tokenizer_dir
    image_save_name image_save_folder
    model_size resolution dit_path load_ema input_path aspect_ratio num_conditional_frames
    batch_input_json save_path offload_guardrail disable_prompt_refiner offload_prompt_refiner
    offload_text_encoder downcast_text_encoder benchmark use_cuda_graphs natten
"""
ORIGINAL_AND_LATER = set(_BOTH_GENERATIONS.split())
"""The flags of the original document and its pre-release, and of the later tool."""
