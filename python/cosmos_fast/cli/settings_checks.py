"""What a ``video2world`` command must not say, and what it must."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosmos_fast.cli.exits import UsageError
from cosmos_fast.cli.missing_parts import is_batch
from cosmos_fast.cli.settings import Settings
from cosmos_fast.cli.video2world_flags import EXCLUSIVE_FLAGS


def refuse_contradictions(given: Mapping[str, Any]) -> None:
    for group in EXCLUSIVE_FLAGS:
        found = [f"--{name}" for name in group if given.get(name) not in (None, False)]
        if len(found) > 1:
            raise UsageError(f"{' and '.join(found)} contradict each other; give one of them")
    if "host_memory" in given and str(given.get("memory")).lower() == "resident":
        raise UsageError(
            "--host_memory and --memory resident contradict each other: no weights rest in RAM "
            "where all stay on the device; leave one of them out"
        )
    if "model" in given and "aspect_ratio" in given and "resolution" not in given:
        raise UsageError(
            "--aspect_ratio with --model needs --resolution 480 or 720; "
            "or give --height and --width"
        )


def writable(path: Path) -> Path:
    """``path``, whose name says a kind of video.

    Raises:
        UsageError: it does not.
    """
    from cosmos_fast.errors import InputError
    from cosmos_fast.media.encoding import kind_of

    try:
        if path.name.startswith("."):
            raise InputError(f"{str(path)!r} is an ending without a name")
        kind_of(path)
    except InputError as error:
        raise UsageError(f"--save_path: {error}") from None
    return path


def require_input(settings: Settings, given: Mapping[str, Any]) -> None:
    if is_batch(given):
        return  # each job brings its own
    if settings.input is None:
        raise UsageError("no input: give a picture or a video with --input_path")
    require_prompt(settings)


def require_prompt(settings: Settings) -> None:
    """
    Raises:
        UsageError: nobody writes a prompt.
    """
    if settings.upsampler == "on" or (settings.prompt or "").strip():
        return
    if settings.generation == "later" and settings.guardrail == "off":
        return
    why = "is off" if settings.upsampler == "off" else "does not apply to a toy model"
    raise UsageError(f"no prompt: --prompt is required, since the prompt upsampler {why}")
