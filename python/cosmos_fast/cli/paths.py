"""What a command needs, looked at before anything heavy is loaded: the model and what stands
beside it, the device, and every path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosmos_fast.cli.media_paths import input_problems, output_problems
from cosmos_fast.cli.settings import TOY_SOURCES

if TYPE_CHECKING:
    from cosmos_fast.cli.settings import Settings
    from cosmos_fast.weights import CheckpointFiles

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
        *loading_problems(settings),
        *(input_problems(settings) if needs_input else ()),
        *output_problems(settings),
    ]


def loading_problems(settings: Settings) -> list[str]:
    """What would keep the engine from being loaded, one line each; the guardrail is apart."""
    return [
        *model_problems(settings),
        *_text_problems(settings),
        *upsampler_problems(settings),
        *_device_problems(settings),
        *_offline_problems(settings),
    ]


def local_checkpoint(settings: Settings) -> CheckpointFiles | None:
    """The files of a checkpoint on this machine; None where it is not, or not all, here.

    Raises:
        CheckpointError: it is here and cannot be used.
    """
    if settings.source not in TOY_SOURCES and local_model(settings) is None:
        return None
    return None if model_problems(settings) else _find(settings)


def absent_parts(settings: Settings) -> list[str]:
    """What of a model on the hub is not on this machine, in words; empty for a local one.

    Looked for below the checkpoint root and in the hub client's cache; makes no connection.
    """
    from cosmos_fast.errors import CheckpointError
    from cosmos_fast.weights import find_guardrail, find_upsampler
    from cosmos_fast.weights.hub import HubAccess
    from cosmos_fast.weights.layout import find_text

    if settings.source in TOY_SOURCES or local_model(settings) is not None:
        return []
    if model_problems(settings):
        return []
    cache, absent = HubAccess(local_files_only=True), []
    roots = tuple(root for root in (settings.checkpoint_root,) if root is not None)
    try:
        encoder = _find(settings).text_encoder
    except CheckpointError:
        absent.append(f"model {settings.source}")
        places = [find_text(root, roots).encoder for root in roots]
        encoder = settings.text_encoder or next(filter(None, places), None)
    if encoder is None and settings.follows_text:
        absent.append("text encoder T5")
    if settings.guardrail not in ("off", "not applicable"):
        try:
            find_guardrail(roots, cache)
        except CheckpointError:
            absent.append("guardrail Cosmos-Guardrail1 with Llama-Guard-3-8B")
    if settings.upsampler == "on":
        model = upsampler_model(settings)
        try:
            find_upsampler(model, roots, cache)
        except CheckpointError:
            absent.append(f"prompt upsampler {model}")
    return absent


def fetch_notes(settings: Settings) -> tuple[str, ...]:
    """A line for each part that the run would fetch first."""
    if settings.local_files_only:
        return ()
    return tuple(
        f"{part} is not on this machine; it would be fetched" for part in absent_parts(settings)
    )


def download_command(settings: Settings, *flags: str) -> str:
    """The command that fetches what stands beside the model of the settings, into its root."""
    size = "14B" if "14B" in settings.source else "2B"
    words = ["cosmos-fast download", *flags, f"--model_sizes {size}"]
    root = settings.checkpoint_root
    return " ".join([*words, f"--checkpoint_dir {root}" if root is not None else ""]).rstrip()


def _find(settings: Settings) -> CheckpointFiles:
    from cosmos_fast.weights import find_checkpoint

    return find_checkpoint(
        settings.source,
        variant=settings.variant,
        revision=settings.revision,
        local_files_only=True,
        checkpoint_root=settings.checkpoint_root,
        vae=settings.vae,
        text_encoder=settings.text_encoder,
        tokenizer=settings.tokenizer,
        ema=settings.load_ema,
    )


def _text_problems(settings: Settings) -> list[str]:
    if not settings.follows_text or (files := local_checkpoint(settings)) is None:
        return []
    if files.profile.actions is not None:
        return [
            f"{settings.flag('source')}: {files.profile.name} follows actions, not a prompt: use "
            f"cosmos-fast rollout with --actions or --policy"
        ]
    if files.text_encoder is not None:
        return []
    return [
        f"--text_encoder: none is given, and beside {settings.source!r} there is no T5 to read the "
        f"prompt with; name its folder, or fetch it with {download_command(settings)}"
    ]


def _device_problems(settings: Settings) -> list[str]:
    if settings.device in ("auto", "cpu") or (settings.num_gpus or 1) > 1:
        return []  # several ranks or workers take a device each, and look for themselves
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = int(settings.device.partition(":")[2] or 0)
    if wanted < there:
        return []
    cure = "use --device cpu or auto; cosmos-fast doctor says what is amiss with a GPU"
    return [f"--device {settings.device}: torch sees {there or 'no'} CUDA devices; {cure}"]


def _offline_problems(settings: Settings) -> list[str]:
    if not settings.local_files_only:
        return []
    return [
        f"{part} is not on this machine, and --local_files_only forbids fetching it; leave that "
        f"out, or fetch it first with {download_command(settings)}"
        for part in absent_parts(settings)
    ]


def model_problems(settings: Settings) -> list[str]:
    """What is wrong with the paths of the model's parts, one line each."""
    return _source_problems(settings) + [
        f"--{name}: {str(path)!r} is not there; check the name"
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
            f"guardrail: {error}; fetch it with {download_command(settings, '--guardrail')}, or go "
            f"without it: --disable_guardrail"
        ]
    return []


def upsampler_problems(settings: Settings) -> list[str]:
    """What is missing of the upsampler beside a local model, one line; empty if nothing is."""
    if settings.upsampler != "on":
        return []
    missing = _upsampler_missing(settings, upsampler_model(settings))
    switch = "upsampler" if settings.generation == "original" else "refiner"
    fetching = download_command(settings, "--prompt_upsampler")
    return [
        f"{missing}; fetch it with {fetching}, or write the prompt in full and add "
        f"--disable_prompt_{switch}"
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
    source, flag = settings.source, settings.flag("source")
    if source in TOY_SOURCES or local_model(settings) or may_be_on_the_hub(settings):
        return []
    if settings.generation == "later":
        shipped = " and ".join(TOY_SOURCES)
        cure = f"a hub id reads owner/name, and the small worlds that ship are called {shipped}"
        return [f"{flag}: {source!r} is not there; {cure}"]
    place = Path(settings.checkpoint_root or ".", source)
    fetching = download_command(settings, "--model_types Video2World")
    return [f"{flag}: {str(place)!r} is not there; fetch it with {fetching}"]
