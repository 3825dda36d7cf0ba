"""From flags to settings: a pure function.

Two generations of the reference meet in this command. The path and name flags choose the
generation, the generation chooses the defaults, and every other flag is free in both. What only
the checkpoint knows stays None here ("profile") until ``settings_of_profile`` fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from cosmos_fast.cli.exits import UsageError
from cosmos_fast.cli.missing_parts import idle_notes, is_batch, missing_parts
from cosmos_fast.cli.settings import TOY_SOURCES, Generation, Origin, Settings
from cosmos_fast.cli.settings_checks import refuse_contradictions, require_input, writable
from cosmos_fast.cli.settings_of_profile import without_upsampler
from cosmos_fast.cli.settings_values import Values
from cosmos_fast.cli.size_classes import FRAMES_OF_RATE, SIZES
from cosmos_fast.cli.video2world_flags import ORIGINAL_GENERATION_FLAGS

Released = tuple[str, int, int] | None
"""(model size, resolution, fps) of a released checkpoint, if the flags name one."""

OFFLOADS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "offload_diffusion_transformer": ("dit",),
        "offload_tokenizer": ("vae encoder", "vae decoder"),
        "offload_text_encoder": ("text encoder",),
        "offload_text_encoder_model": ("text encoder",),
    }
)
"""What must leave the device by which flag; the original's "tokenizer" is the VAE."""


def resolve(
    given: Mapping[str, Any], origins: Mapping[str, Origin], *, follows_text: bool = True
) -> Settings:
    """The settings that the flags mean.

    Args:
        given: values by flag name; only those that were given.
        origins: for each of them, "command line" or "config file".
        follows_text: False: neither an input nor a prompt is required.

    Raises:
        UsageError: two flags contradict each other, or one is missing.
    """
    refuse_contradictions(given)
    generation = generation_of(given)
    values = Values(given, origins, generation)
    released, variant = _model(values)
    settings = Settings(
        generation=generation,
        variant=variant,
        standard=released,
        sidecar=generation,
        dry_run=bool(given.get("dry_run")),
        benchmark=bool(given.get("benchmark")),
        follows_text=follows_text,
        **_shape(values, released),
        **_networks(values, released),
        **_wish(values, released),
        **_machine(values),
        **_wording(values),
        **_list(values),
        notes=(*idle_notes(given, upsampler_is_off=_unrefined(given)), *_quality_notes(given)),
        missing=missing_parts(given),
        origins=MappingProxyType(values.origins),
        spelling=MappingProxyType(values.spelling),
    )
    if settings.source in TOY_SOURCES:
        settings = without_upsampler(settings)
    if follows_text:
        require_input(settings, given)
    return settings


def generation_of(given: Mapping[str, Any]) -> Generation:
    """Which generation of the reference a command with these flags belongs to."""
    return "original" if any(name in given for name in ORIGINAL_GENERATION_FLAGS) else "later"


def _model(values: Values) -> tuple[Released, str | None]:
    """(size, resolution, fps) of a released checkpoint, if the flags name one, and its variant."""
    given = values.given
    size = values.pick("model_size", default="2B")
    resolution = values.pick("resolution", default=720)
    variant = values.pick("variant", default=None)
    named = "model" in given or values.original
    if named:
        if variant is None:
            values.origins["variant"] = "default"
        return None, variant
    rate = given.get("fps", 16)
    standard = (size, resolution, int(rate) if rate in FRAMES_OF_RATE else 16)
    if variant is None:
        variant = f"{standard[1]}p-{standard[2]}fps"
        values.origins["variant"] = "later default"
    return standard, variant


def _shape(values: Values, released: Released) -> dict[str, Any]:
    """Size and rate of the video."""
    aspect = values.pick("aspect_ratio", default="16:9")
    height, width = _size(values, released, aspect)
    rate = 24.0 if values.original else released and released[2]
    return {"height": height, "width": width, "fps": values.pick("fps", default=rate)}


def _size(values: Values, released: Released, aspect: str) -> tuple[int | None, int | None]:
    height: int | None
    width: int | None
    asked = "resolution" in values.given or "aspect_ratio" in values.given
    if released is not None or asked:
        height, width = SIZES[values.given.get("resolution", 720)][aspect]
    elif values.original:
        height, width = 704, 1280
    else:
        height, width = None, None
    return (
        values.pick("height", default=height),
        values.pick("width", default=width),
    )


def _networks(values: Values, released: Released) -> dict[str, Any]:
    """Where the networks come from."""
    root = Path("checkpoints")
    return {
        "source": _source(values, released),
        "revision": values.pick("revision", default=None),
        "checkpoint_root": values.pick("checkpoint_root", "checkpoint_dir", default=root),
        "vae": values.pick("vae", default=None),
        "text_encoder": values.pick("text_encoder", default=None),
        "tokenizer": values.pick("tokenizer", default=None),
        "load_ema": values.pick("load_ema", default=False),
        "local_files_only": values.pick("local_files_only", default=False),
    }


def _source(values: Values, released: Released) -> str:
    given = values.given
    if "model" in given:
        return str(values.pick("source", "model", default=None))
    if "dit_path" in given:
        return str(values.pick("source", "dit_path", default=None))
    if released is not None:
        values.set_default("source", "released")
        return f"nvidia/Cosmos-Predict2-{released[0]}-Video2World"
    folder = values.pick(
        "source",
        "diffusion_transformer_dir",
        default=f"Cosmos-Predict2-{given.get('model_size', '2B')}-Video2World",
    )
    return str(folder)


def _wish(values: Values, released: Released) -> dict[str, Any]:
    """The video that is asked for, but for its size and rate, and where it goes."""
    original = values.original
    return {
        "input": values.pick("input", "input_path", "input_image_or_video_path", default=None),
        "prompt": values.pick("prompt", default=None),
        "negative_prompt": values.pick("negative_prompt", default=None),
        "num_frames": _length(values, released),
        "num_conditional_frames": values.pick(
            "num_conditional_frames", "num_conditional_frames", "num_input_frames", default=1
        ),
        "num_steps": values.pick("num_steps", default=None),
        "guidance": values.pick("guidance", default=None),
        "seed": values.pick("seed", default=1 if original else 0),
        "fit": values.pick("fit", default="stretch" if original else "cover"),
        "crf": values.pick("crf", default=25 if original else 15),
        "output": _output(values),
    }


def _length(values: Values, released: Released) -> int | None:
    default = 121 if values.original else released and FRAMES_OF_RATE[released[2]]
    length: int | None = values.pick("num_frames", "num_video_frames", default=default)
    return length


def _output(values: Values) -> Path:
    given = values.given
    if "save_path" in given:
        path: Path = values.pick("output", "save_path", default=None)
        path = path if path.suffix or not path.name else path.with_name(f"{path.name}.mp4")
        return writable(path)
    if not values.original:
        values.set_default("output", "path")
        return Path("output/generated_video.mp4")
    folder = given.get("video_save_folder", Path("outputs"))
    name = values.pick("output", "video_save_name", "video_save_folder", default="output")
    name = given.get("video_save_name", "output")
    if "/" in name or name in (".", ".."):
        raise UsageError(
            f"--video_save_name: {name!r} is not a plain name; "
            "put the folder into --video_save_folder"
        )
    return Path(folder, f"{name}.mp4")


def _quality_notes(given: Mapping[str, Any]) -> tuple[str, ...]:
    suffix = given["save_path"].suffix.lower() if "save_path" in given else ""
    if "crf" not in given or suffix in ("", ".mp4"):
        return ()
    return (f"--crf has no effect: {suffix} is lossless",)


def _machine(values: Values) -> dict[str, Any]:
    """What computes, how exactly, and what it may hold."""
    return {
        "device": values.pick("device", default="auto").lower(),
        "num_gpus": values.pick("num_gpus", default=None),
        "precision": values.pick("precision", default="auto"),
        "memory": values.pick("memory", default="auto").lower(),
        "host_memory": values.pick("host_memory", default=None),
        "offload": _offload(values),
        "rope_table": values.pick("rope_table", default="reference"),
        "downcast_text_encoder": values.pick("downcast_text_encoder", default=False),
    }


def _offload(values: Values) -> tuple[str, ...]:
    given = [name for name in OFFLOADS if values.given.get(name)]
    parts = [part for name in given for part in OFFLOADS[name]]
    if given:
        values.pick("offload", *given, default=())
    else:
        values.set_default("offload", ())
    return tuple(dict.fromkeys(parts))


def _wording(values: Values) -> dict[str, Any]:
    """Who rewrites the prompt, and who looks at it and at the video."""
    given = values.given
    off = _unrefined(given)
    moved = _either(given, "offload_prompt_upsampler", "offload_prompt_refiner")
    model = None
    if not off:
        model = values.pick("upsampler_model", "prompt_upsampler_dir", default=None)
    return {
        "upsampler": "off" if off else "on",
        "upsampler_model": None if model is None else str(model),
        "upsampler_placement": "host" if moved and not off else "device",
        "guardrail": _guardrail(given),
        "guardrail_placement": _guardrail_placement(given),
    }


def _guardrail(given: Mapping[str, Any]) -> Literal["default", "required", "off"]:
    if given.get("disable_guardrail"):
        return "off"
    return "required" if given.get("require_guardrail") else "default"


def _guardrail_placement(given: Mapping[str, Any]) -> Literal["device", "host", "disk"]:
    """The original reads an offloaded guardrail anew for each use, the later tool parks it."""
    if given.get("disable_guardrail"):
        return "device"
    if given.get("offload_guardrail_models"):
        return "disk"
    return "host" if given.get("offload_guardrail") else "device"


def _unrefined(given: Mapping[str, Any]) -> bool:
    return _either(given, "disable_prompt_upsampler", "disable_prompt_refiner")


def _list(values: Values) -> dict[str, Any]:
    """Many videos of one command."""
    return {
        "batch": values.pick("batch", "batch_input_path", "batch_input_json", default=None),
        "batch_folder": _batch_folder(values),
        "input_root": values.pick("input_root", default=Path()),
        "resume": values.pick("resume", default=False),
    }


def _batch_folder(values: Values) -> Path | None:
    """The later tool's outputs are relative to the working directory."""
    if not is_batch(values.given):
        return None
    default = Path("outputs") if values.original else Path()
    folder: Path = values.pick("batch_folder", "out", "video_save_folder", default=default)
    return folder


def _either(given: Mapping[str, Any], *flags: str) -> bool:
    return any(given.get(flag) for flag in flags)
