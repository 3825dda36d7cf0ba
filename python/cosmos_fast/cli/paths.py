"""Every path of a command, looked at before anything heavy is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosmos_fast.cli.settings import TOY_SOURCE

if TYPE_CHECKING:
    from cosmos_fast.cli.settings import Settings

PICTURE_ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_ADDRESS: Final = re.compile(r"[a-zA-Z][a-zA-Z+.-]+:/.*", re.DOTALL)
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


def local_model(settings: Settings) -> Path | None:
    """Where on this machine the model lies, or None; the places that the loader looks at.

    Both generations' downloads are looked through: the original's ``ROOT/NAME`` and the later
    tool's ``ROOT/nvidia/NAME``.
    """
    source, root = Path(settings.source).expanduser(), settings.checkpoint_root
    places = [source]
    if root is not None and not source.is_absolute():
        places = [root / source, root / "nvidia" / source, source]
    return next((place for place in places if place.exists()), None)


def may_be_on_the_hub(settings: Settings) -> bool:
    """Whether the source may name a repository; the original's flags always name folders."""
    return settings.generation == "later" and bool(_HUB_ID.fullmatch(settings.source))


def path_problems(settings: Settings, *, needs_input: bool = True) -> list[str]:
    """What is wrong with the paths of a command, one line each; empty if nothing is."""
    return [
        *model_problems(settings),
        *upsampler_problems(settings),
        *(_input_problems(settings) if needs_input else ()),
        *_output_problems(settings),
    ]


def model_problems(settings: Settings) -> list[str]:
    """What is wrong with the paths of the model's parts, one line each."""
    return _source_problems(settings) + [
        f"{name}: {str(path)!r} is not there"
        for name in ("vae", "text_encoder", "tokenizer")
        if (path := getattr(settings, name)) is not None and not path.exists()
    ]


def upsampler_model(settings: Settings) -> str:
    """The upsampler of the settings: given, or the generation's own.

    The later tool's is Cosmos-Reason1-7B; where that is not on this machine, the original's does.
    """
    from cosmos_fast.weights.companions import QWEN, REASON1

    if settings.upsampler_model is not None:
        return settings.upsampler_model
    if settings.generation == "original":
        return QWEN
    found = (model for model in (REASON1, QWEN) if not _upsampler_missing(settings, model))
    return next(found, QWEN)


def guardrail_problems(settings: Settings) -> list[str]:
    """What is missing of the guardrail of a model on this machine, one line; empty if nothing is.

    Apart from the other paths: a guardrail that is not there blocks, with an exit code of its own.
    """
    from cosmos_fast.errors import CheckpointError
    from cosmos_fast.weights import find_guardrail

    if settings.guardrail in ("off", "not applicable") or not (roots := _companion_roots(settings)):
        return []
    try:
        find_guardrail(roots, None)
    except CheckpointError as error:
        return [
            f"guardrail: {error}; fetch it with cosmos-fast download --guardrail "
            f"--checkpoint_dir {settings.checkpoint_root}, or go without it: --disable_guardrail"
        ]
    return []


def upsampler_problems(settings: Settings) -> list[str]:
    """What is missing of the upsampler beside a local model, one line; empty if nothing is."""
    if settings.upsampler != "on":
        return []
    missing = _upsampler_missing(settings, upsampler_model(settings))
    switch = "upsampler" if settings.generation == "original" else "refiner"
    return [
        f"{missing}; fetch it with cosmos-fast download --prompt_upsampler --checkpoint_dir "
        f"{settings.checkpoint_root}, or write the prompt in full and add --disable_prompt_{switch}"
    ] if missing else []  # fmt: skip


def _upsampler_missing(settings: Settings, model: str) -> str | None:
    """Why ``model`` cannot be used, or None; one that the hub may have is not missing."""
    from cosmos_fast.errors import CheckpointError
    from cosmos_fast.weights import find_upsampler

    if not (roots := _companion_roots(settings)):
        return None
    try:
        find_upsampler(model, roots, None)
    except CheckpointError as error:
        return str(error)
    return None


def _companion_roots(settings: Settings) -> tuple[Path, ...]:
    """Where a local model's companions may lie; empty for one from the hub."""
    from cosmos_fast.weights.layout import helper_roots

    place = local_model(settings)
    if place is None:
        return ()
    home = place if place.is_dir() else place.parent
    return helper_roots(home, settings.checkpoint_root)


def _source_problems(settings: Settings) -> list[str]:
    source = settings.source
    if source == TOY_SOURCE or local_model(settings) or may_be_on_the_hub(settings):
        return []
    if settings.generation == "later":
        cure = f"a hub id reads owner/name, and the small world that ships is called {TOY_SOURCE}"
        return [f"model: {source!r} is not there; {cure}"]
    size = "14B" if "14B" in source else "2B"
    return [
        f"model: {str(Path(settings.checkpoint_root or '.', source))!r} is not there; fetch it "
        f"with cosmos-fast download --model_sizes {size} --model_types Video2World "
        f"--checkpoint_dir {settings.checkpoint_root}"
    ]


def _input_problems(settings: Settings) -> list[str]:
    path = settings.input
    if path is None:
        return ["input: none is given; name a picture or a video with --input_path"]
    if not path.exists():
        cure = "; addresses are not read: fetch the file and name it here"
        return [f"input: {str(path)!r} is not there{cure if _ADDRESS.match(str(path)) else ''}"]
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
    pictures = path.parent if path.suffix.lower() == ".png" else None
    if pictures is not None and pictures.is_dir() and any(pictures.iterdir()):
        return [f"output: {str(pictures)!r} holds files; name a folder that is new or empty"]
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
