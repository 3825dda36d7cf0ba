"""What each flag of ``video2world`` takes, on the command line and in a config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_lines import LATER, given, settings
from cosmos_fast.cli.config_file import merge, read_config
from cosmos_fast.cli.demo import DEMO_FLAGS
from cosmos_fast.cli.exits import UsageError
from cosmos_fast.cli.flags import Flag, Integer, parse_flags, spread_values
from cosmos_fast.cli.plan import PLAN_FLAGS
from cosmos_fast.cli.resolve import resolve
from cosmos_fast.cli.settings import Origin
from cosmos_fast.cli.video2world_flags import EXCLUSIVE_FLAGS, VIDEO2WORLD_FLAGS
from cosmos_fast.sampling.schedule import MAX_STEPS

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
    "num_steps": ("1001", "a whole number from 1 to 1000"),
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


@pytest.mark.parametrize("group", EXCLUSIVE_FLAGS, ids="-".join)
def test_flags_that_say_the_same_contradict_each_other(group: tuple[str, ...]) -> None:
    table = {flag.name: flag for flag in VIDEO2WORLD_FLAGS}
    values = {name: RIGHT[name] for name in group}
    flags = parse_flags(table.values(), values)
    with pytest.raises(UsageError, match="contradict"):
        resolve(flags, dict.fromkeys(flags, "command line"))


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


def test_steps_are_those_that_the_schedule_takes() -> None:
    for flags in (VIDEO2WORLD_FLAGS, PLAN_FLAGS, DEMO_FLAGS):
        [steps] = [flag for flag in flags if flag.name == "num_steps"]
        assert isinstance(steps.kind, Integer)
        assert (steps.kind.least, steps.kind.most) == (1, MAX_STEPS)


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
