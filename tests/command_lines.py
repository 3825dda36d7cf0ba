"""Command lines of ``video2world``, and what they mean."""

from __future__ import annotations

import shlex
from typing import Any

from cosmos_fast.cli.flags import parse_flags
from cosmos_fast.cli.resolve import resolve
from cosmos_fast.cli.settings import Origin, Settings
from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS

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
