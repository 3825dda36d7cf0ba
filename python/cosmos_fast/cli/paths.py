"""Every path of a command, looked at before anything heavy is loaded."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosmos_fast.cli.settings import TOY_SOURCE

if TYPE_CHECKING:
    from cosmos_fast.cli.settings import Settings

PICTURE_ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


def locate_model(settings: Settings) -> Settings:
    """``settings`` with the place where the model lies.

    Both generations' downloads are looked through: the original's ``ROOT/NAME``, the later tool's
    ``ROOT/nvidia/NAME``. A released model that is not there stays a hub id.
    """
    root = settings.checkpoint_root or Path("checkpoints")
    source = Path(settings.source)
    if settings.generation == "original" and settings.origins.get("source") != "command line":
        source = root / source.name if source.parent == root else source
    candidates = [source]
    if settings.generation == "original" and not source.is_absolute():
        candidates.append(source.parent / "nvidia" / source.name)
    elif settings.standard is not None and settings.origins.get("source") == "later default":
        candidates = [root / settings.source]
    found = next((place for place in candidates if place.exists()), None)
    return settings if found is None else replace(settings, source=str(found))


def is_local(source: str) -> bool:
    """Whether ``source`` means a place on this machine, there or not, and not a hub id."""
    return Path(source).exists() or not _HUB_ID.fullmatch(source)


def path_problems(settings: Settings) -> list[str]:
    """What is wrong with the paths of a command, one line each; empty if nothing is."""
    found = [*_model_problems(settings), *_input_problems(settings), *_output_problems(settings)]
    return list(dict.fromkeys(found))


def _model_problems(settings: Settings) -> list[str]:
    source = settings.source
    if source == TOY_SOURCE or not is_local(source) or Path(source).exists():
        return []
    if settings.origins.get("source") == "command line" and settings.generation == "later":
        return [f"model: {source!r} is not there; a hub id reads owner/name"]
    size = "14B" if "14B" in source else "2B"
    return [
        f"model: {source!r} is not there; download it with "
        f"cosmos-fast download --model_sizes {size} --model_types Video2World "
        f"--checkpoint_dir {settings.checkpoint_root}"
    ]


def _input_problems(settings: Settings) -> list[str]:
    path = settings.input
    if path is None:
        return ["input: none is given; name a picture or a video with --input_path"]
    if not path.exists():
        return [f"input: {str(path)!r} is not there"]
    if not path.is_file():
        return [f"input: {str(path)!r} is not a file"]
    if not os.access(path, os.R_OK):
        return [f"input: {str(path)!r} may not be read"]
    if path.stat().st_size == 0:
        return [f"input: {str(path)!r} is empty"]
    if settings.num_conditional_frames > 1 and path.suffix.lower() in PICTURE_ENDINGS:
        return [
            f"input: {str(path)!r} is one picture; "
            f"{settings.num_conditional_frames} frames need a video"
        ]
    return []


def _output_problems(settings: Settings) -> list[str]:
    path = settings.output
    if path.is_dir():
        return [f"output: {str(path)!r} is a folder"]
    if settings.input is not None and path.resolve() == settings.input.resolve():
        return [f"output: {str(path)!r} would replace the input"]
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return [f"output: {str(folder)!r} is not a folder"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"output: nothing may be written to {str(folder)!r}"]
    return []
