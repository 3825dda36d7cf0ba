"""Every flag of every command that is here: a wrong value ends with exit code 2 and says why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from cosmos_fast.cli import FLAGS_OF, build_app, main
from cosmos_fast.cli.exits import UsageError
from cosmos_fast.cli.flags import Text
from cosmos_fast.cli.resolve import resolve
from cosmos_fast.cli.settings import Origin, Settings
from cosmos_fast.cli.video2world_flags import EXCLUSIVE_FLAGS, VIDEO2WORLD_FLAGS
from test_cli_flag_values import RIGHT
from test_cli_flag_values import WRONG as WRONG_OF_VIDEO2WORLD

if TYPE_CHECKING:
    from cosmos_fast.cli.flags import Flag

BLANK = "is not empty"
SEED = "a whole number from 0 to 4294967295"
WRONG: dict[str, dict[str, tuple[str, str]]] = {
    "video2world": {
        name: (value, expected)
        for name, (value, expected) in WRONG_OF_VIDEO2WORLD.items()
        if isinstance(value, str)
    }
    | {"video_save_folder": ("", BLANK)},
    "demo": {
        "prompt": ("", BLANK),
        "scene": ("-1", "a whole number of at least 0"),
        "video_save_folder": ("", BLANK),
        "seed": ("4294967296", SEED),
        "num_steps": ("1001", "a whole number from 1 to 1000"),
        "device": ("gpu", "auto, cpu or cuda"),
    },
    "download": {
        "model_sizes": ("7B", "0.6B, 2B or 14B"),
        "model_types": ("image2world", "video2world, "),
        "fps": ("12", "10 or 16"),
        "resolution": ("1080", "480 or 720"),
        "checkpoint_dir": ("", BLANK),
    },
    "convert": {
        "to": ("onnx", "diffusers, nvidia or file"),
        "variant": ("", BLANK),
        "revision": ("", BLANK),
        "checkpoint_dir": ("", BLANK),
        "vae": ("", BLANK),
        "text_encoder": ("", BLANK),
        "tokenizer": ("", BLANK),
        "text_precision": ("fp16", "stored, bf16 or fp32"),
    },
    "doctor": {},
    "bench": {
        "only": ("decode", "kernels, attention, linear, forward, vae, text or run"),
        "shape": ("", BLANK),
        "seconds": ("0", "a number above 0"),
        "without": ("", BLANK),
        "save": ("", BLANK),
        "checkpoints": ("", BLANK),
    },
    "plan": {
        "model": ("", BLANK),
        "model_size": ("7B", "2B or 14B"),
        "variant": ("", BLANK),
        "gpu": ("", BLANK),
        "memory": ("lots", "auto, resident, or an amount such as 8GiB"),
        "host_memory": ("auto", "an amount such as 32GiB"),
        "reserved": ("auto", "an amount such as"),
        "height": ("0", "a whole number of at least 1"),
        "width": ("-16", "a whole number of at least 1"),
        "num_video_frames": ("80", "1 more than a multiple of 4"),
        "num_conditional_frames": ("2", "1 more than a multiple of 4"),
        "num_steps": ("1001", "a whole number from 1 to 1000"),
        "guidance": ("inf", "a number of at least 0"),
        "text_precision": ("fp16", "bf16, fp32 or none"),
        "picture": ("", BLANK),
        "picture_stage": ("write", "text, encode, denoise or decode"),
    },
}
"""Command, flag, a wrong value, and what has to be said of it. Any text is right for --prompt."""
WRONG["batch"] = WRONG["video2world"] | {"jobs": ("", BLANK), "out": ("", BLANK)}
WRONG["best-of-n"] = WRONG["video2world"] | {
    "num_generations": ("0", "a whole number of at least 1"),
    "num_critic_trials": ("x", "a whole number of at least 1"),
    "critic": ("", BLANK),
    "prompt_prefix": ("", BLANK),
    "gr00t_variant": ("gr2", "gr1 or droid"),
    "save_path": ("", BLANK),
}
WRONG["rollout"] = WRONG["video2world"] | {
    "num_chunks": ("0", "a whole number of at least 1"),
    "handover": ("disk", "memory, file or both"),
    "actions": ("", BLANK),
    "policy": ("", BLANK),
    "num_actions": ("0", "a whole number of at least 1"),
    "noise": ("numpy", "device or reference"),
    "samples": ("0", "a whole number of at least 1"),
    "stop_at": ("0", "a number above 0"),
    "episode": ("-1", "a whole number of at least 0"),
    "camera": ("", BLANK),
    "save_dataset": ("", BLANK),
}
WRONG["video2world-action"] = WRONG["rollout"] | {
    "input_video": ("", BLANK),
    "input_annotation": ("", BLANK),
    "chunk_size": ("0", "a whole number of at least 1"),
    "model_size": ("14B", "2B"),
    "num_conditional_frames": ("5", "1"),
}
POSITIONAL = {"convert": ["checkpoint", "destination"]}
ANY_TEXT = {"prompt", "negative_prompt", "task"}


def test_every_flag_of_every_command_has_its_wrong_value() -> None:
    offered = typer.main.get_command(build_app())
    assert isinstance(offered, typer.core.TyperGroup)
    visible = {name for name, command in offered.commands.items() if not command.hidden}
    assert set(WRONG) == set(FLAGS_OF) == visible | {"video2world-action"}
    for command, flags in FLAGS_OF.items():
        valued = {flag.name for flag in flags if flag.kind is not None and flag.kind != Text()}
        assert valued - set(WRONG[command]) == set(), command
        assert {flag.name for flag in flags if flag.kind == Text()} <= ANY_TEXT


@pytest.mark.parametrize(
    ("command", "name"),
    [
        pytest.param(command, flag.name, id=f"{command} {flag.name}")
        for command in WRONG
        for flag in FLAGS_OF[command]
        if flag.kind is not None and flag.name in WRONG[command]
    ],
)
def test_a_wrong_value_ends_with_2_and_what_was_expected(
    command: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    value, expected = WRONG[command][name]
    dashed = f"--{name.replace('_', '-')}={value}"
    assert main([command, *POSITIONAL.get(command, []), dashed]) == 2
    captured = capfd.readouterr()
    error = captured.err.splitlines()[-1]
    assert captured.out == ""
    assert error.startswith(f"error: --{name}: {value!r} is not ")
    assert expected in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "name"),
    [
        pytest.param(command, flag.name, id=f"{command} {flag.name}")
        for command in WRONG
        for flag in FLAGS_OF[command]
        if flag.kind is None and (command == "video2world" or flag not in VIDEO2WORLD_FLAGS)
    ],
)
def test_a_switch_takes_no_value(
    command: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *POSITIONAL.get(command, []), f"--{name}=yes"]) == 2
    assert f"--{name}" in capfd.readouterr().err


THIS_RUN = {"json", "debug", "config", "dry_run"}
"""Flags of how the command speaks, not of what it makes."""


def resolved(given: dict[str, object]) -> Settings:
    origins: dict[str, Origin] = dict.fromkeys(given, "command line")
    return resolve(given, origins)


@pytest.mark.parametrize(
    "flag",
    [flag for flag in VIDEO2WORLD_FLAGS if flag.name not in THIS_RUN],
    ids=lambda flag: flag.name,
)
def test_no_flag_of_either_generation_is_parsed_and_ignored(flag: Flag) -> None:
    """Each changes a setting, is noted as without effect, or refuses by the name of a part."""
    same = {name for group in EXCLUSIVE_FLAGS if flag.name in group for name in group}
    base: dict[str, object] = {"input_path": Path("a.png"), "prompt": "p"}
    base = {name: value for name, value in base.items() if name not in same | {flag.name}}
    given = {**base, flag.name: flag.value(RIGHT[flag.name])}
    try:
        without = resolved(base)
    except UsageError:
        resolved(given)  # the flag is what the command lacked
    else:
        told = resolved(given)
        assert told != without or told.missing
