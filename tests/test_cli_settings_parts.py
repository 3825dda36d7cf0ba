"""Which parts a command asks for, and where they rest: upsampler, guardrail, lists, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from command_lines import LATER, ORIGINAL, settings
from cosmos_fast.cli import main
from cosmos_fast.cli.exits import MissingPartError, UsageError
from cosmos_fast.memory import Budget


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
        "--resume",
        "--input_root x",
    ],
)
def test_a_flag_without_effect_is_accepted_and_reported(line: str) -> None:
    with_flag, without = settings(f"{LATER} {line}"), settings(LATER)
    held = {name: getattr(without, name) for name in ("input_root", "resume", "origins")}
    assert replace(with_flag, notes=(), **held) == replace(without, **held)
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
