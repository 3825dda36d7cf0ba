"""What one ``video2world`` command means: a pure function from flags to frozen settings.

Two generations of the reference meet in this command. The path and name flags choose the
generation, the generation chooses the defaults, and every other flag is free in both. What only
the checkpoint knows stays None here ("profile") until :func:`with_profile`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from cosmos_fast.cli.exits import MissingPartError, UsageError
from cosmos_fast.cli.missing_parts import MissingPart, idle_notes, is_batch, missing_parts
from cosmos_fast.cli.size_classes import FRAMES_OF_RATE, SIZES
from cosmos_fast.cli.video2world_flags import EXCLUSIVE_FLAGS, ORIGINAL_GENERATION_FLAGS

if TYPE_CHECKING:
    from cosmos_fast.config import Profile

_T = TypeVar("_T")
Generation = Literal["original", "later"]
Origin = Literal[
    "command line", "config file", "original default", "later default", "default", "profile"
]
"""Where a value comes from; "profile" is the checkpoint's own."""

TOY_SOURCE: Final = "ballworld"


@dataclass(frozen=True)
class Settings:
    """A command, resolved. None is the profile's value, which only the checkpoint can tell."""

    generation: Generation
    source: str
    """Hub id, folder or file; folders are also looked up below ``checkpoint_root``."""
    variant: str | None
    revision: str | None
    checkpoint_root: Path | None
    standard: tuple[str, int, int] | None
    """(model size, resolution, fps) of the released checkpoint that the flags name, if they do."""
    vae: Path | None
    text_encoder: Path | None
    tokenizer: Path | None
    load_ema: bool
    local_files_only: bool
    input: Path | None
    prompt: str | None
    negative_prompt: str | None
    height: int | None
    width: int | None
    num_frames: int | None
    fps: float | None
    num_conditional_frames: int
    num_steps: int | None
    guidance: float | None
    seed: int
    fit: Literal["cover", "stretch"]
    crf: int
    sidecar: Literal["original", "later"]
    output: Path
    device: str
    num_gpus: int | None
    """GPUs that share one video; None is one, or as many as torchrun started processes."""
    precision: Literal["auto", "bf16", "fp32"]
    memory: str
    offload: tuple[str, ...]
    """Parts that leave the device when their stage ends."""
    rope_table: Literal["reference", "float32"]
    downcast_text_encoder: bool
    upsampler: Literal["on", "off", "not applicable"]
    upsampler_model: str | None
    """Folder or hub id; None is the generation's own."""
    upsampler_placement: Literal["device", "host"]
    guardrail: Literal["default", "required", "off", "not applicable"]
    guardrail_placement: Literal["device", "host", "disk"]
    dry_run: bool
    benchmark: bool = False
    """Three more runs after the video is written, which are timed."""
    batch: Path | None = None
    """The list of videos to make, where the command is for more than one."""
    batch_folder: Path | None = None
    """Folder of its videos."""
    input_root: Path = Path()
    """Folder that its inputs lie below."""
    resume: bool = False
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Where each field that a flag can set got its value."""
    follows_text: bool = True
    """False: the command carries out actions."""
    spelling: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The flag that set each field, where one did."""
    notes: tuple[str, ...] = ()
    """Flags that were accepted without effect, and why."""
    missing: tuple[MissingPart, ...] = ()
    """Parts of cosmos-fast that this command needs and that do not exist yet."""

    def refuse_missing(self, *more: str) -> None:
        """
        Args:
            more: what else is wrong with the command, to be told in the same breath.

        Raises:
            MissingPartError: a flag, or a default, needs a part that does not exist yet.
        """
        if self.missing:
            raise MissingPartError("; ".join([*map(str, self.missing), *more]))

    def flag(self, name: str) -> str:
        """The flag that sets field ``name``: the one given, else the generation's own word."""
        own = _OWN_WORDS.get(name, {}).get(self.generation, name)
        return f"--{self.spelling.get(name, own)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; ``origins`` and ``notes`` included."""
        plain = {name: _plain(value) for name, value in self.__dict__.items()}
        del plain["spelling"], plain["follows_text"]
        plain["missing"] = [str(part) for part in self.missing]
        plain["origins"] = dict(self.origins)
        return plain


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
    _refuse_contradictions(given)
    generation = generation_of(given)
    values = _Values(given, origins, generation)
    original = generation == "original"
    released, variant = _model(values)
    aspect = values.pick("aspect_ratio", "aspect_ratio", default="16:9")
    height, width = _size(values, released, aspect)
    fps = values.pick("fps", "fps", default=24.0 if original else released and released[2])
    off = _either(given, "disable_prompt_upsampler", "disable_prompt_refiner")
    settings = Settings(
        generation=generation,
        source=_source(values, released),
        variant=variant,
        revision=values.pick("revision", "revision", default=None),
        checkpoint_root=values.pick(
            "checkpoint_root", "checkpoint_dir", default=Path("checkpoints")
        ),
        standard=released,
        vae=values.pick("vae", "vae", default=None),
        text_encoder=values.pick("text_encoder", "text_encoder", default=None),
        tokenizer=values.pick("tokenizer", "tokenizer", default=None),
        load_ema=values.pick("load_ema", "load_ema", default=False),
        local_files_only=values.pick("local_files_only", "local_files_only", default=False),
        input=values.pick("input", "input_path", "input_image_or_video_path", default=None),
        prompt=values.pick("prompt", "prompt", default=None),
        negative_prompt=values.pick("negative_prompt", "negative_prompt", default=None),
        height=height,
        width=width,
        num_frames=_length(values, released),
        fps=fps,
        num_conditional_frames=values.pick(
            "num_conditional_frames", "num_conditional_frames", "num_input_frames", default=1
        ),
        num_steps=values.pick("num_steps", "num_steps", default=None),
        guidance=values.pick("guidance", "guidance", default=None),
        seed=values.pick("seed", "seed", default=1 if original else 0),
        fit=values.pick("fit", "fit", default="stretch" if original else "cover"),
        crf=values.pick("crf", "crf", default=25 if original else 15),
        sidecar="original" if original else "later",
        output=_output(values),
        device=values.pick("device", "device", default="auto").lower(),
        num_gpus=values.pick("num_gpus", "num_gpus", default=None),
        precision=values.pick("precision", "precision", default="auto"),
        memory=values.pick("memory", "memory", default="auto").lower(),
        offload=_offload(values),
        rope_table=values.pick("rope_table", "rope_table", default="reference"),
        downcast_text_encoder=values.pick(
            "downcast_text_encoder", "downcast_text_encoder", default=False
        ),
        upsampler="off" if off else "on",
        upsampler_model=None
        if off
        else _text(values.pick("upsampler_model", "prompt_upsampler_dir", default=None)),
        upsampler_placement="host"
        if _either(given, "offload_prompt_upsampler", "offload_prompt_refiner") and not off
        else "device",
        guardrail=_guardrail(given),
        guardrail_placement=_guardrail_placement(given),
        dry_run=bool(given.get("dry_run")),
        benchmark=bool(given.get("benchmark")),
        batch=values.pick("batch", "batch_input_path", "batch_input_json", default=None),
        batch_folder=_batch_folder(values),
        input_root=values.pick("input_root", "input_root", default=Path()),
        resume=values.pick("resume", "resume", default=False),
        notes=(*idle_notes(given, upsampler_is_off=off), *_quality_notes(given)),
        missing=missing_parts(given),
    )
    settings = replace(
        settings,
        origins=MappingProxyType(values.origins),
        spelling=MappingProxyType(values.spelling),
        follows_text=follows_text,
    )
    if settings.source == TOY_SOURCE:
        settings = _without_upsampler(settings)
    if follows_text:
        _require_input(settings, given)
    return settings


OFFLOADS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "offload_diffusion_transformer": ("dit",),
        "offload_tokenizer": ("vae encoder", "vae decoder"),
        "offload_text_encoder": ("text encoder",),
        "offload_text_encoder_model": ("text encoder",),
    }
)
"""What must leave the device by which flag; the original's "tokenizer" is the VAE."""


def _offload(values: _Values) -> tuple[str, ...]:
    given = [name for name in OFFLOADS if values.given.get(name)]
    parts = [part for name in given for part in OFFLOADS[name]]
    values.pick("offload", *given, default=())
    return tuple(dict.fromkeys(parts))


def generation_of(given: Mapping[str, Any]) -> Generation:
    """Which generation of the reference a command with these flags belongs to."""
    return "original" if any(name in given for name in ORIGINAL_GENERATION_FLAGS) else "later"


def with_profile(settings: Settings, profile: Profile) -> Settings:
    """``settings`` for the checkpoint that ``profile`` describes: what is None becomes its value.

    A toy model is neither the original's nor the later tool's: its profile replaces every default
    of a generation, and upsampler and guardrail do not apply to it. What the user gave stays.
    """
    if profile.toy:
        settings = _as_toy(settings)
    negative = profile.negative_prompt

    def filled(value: _T | None, own: _T) -> _T:
        return own if value is None else value

    return replace(
        settings,
        negative_prompt=filled(settings.negative_prompt, negative)
        if isinstance(negative, str)
        else settings.negative_prompt,
        height=filled(settings.height, profile.size.height),
        width=filled(settings.width, profile.size.width),
        num_frames=filled(settings.num_frames, profile.num_frames),
        fps=filled(settings.fps, profile.fps),
        num_steps=filled(settings.num_steps, profile.num_steps),
        guidance=filled(settings.guidance, profile.guidance),
    )


def _as_toy(settings: Settings) -> Settings:
    """``settings`` without the defaults of a generation, and without upsampler and guardrail."""
    origins: dict[str, Origin] = dict(settings.origins)

    def unless_given(name: str, value: _T) -> _T | None:
        if origins.get(name) in ("command line", "config file"):
            return value
        origins[name] = "profile"
        return None

    return replace(
        _without_upsampler(settings),
        height=unless_given("height", settings.height),
        width=unless_given("width", settings.width),
        num_frames=unless_given("num_frames", settings.num_frames),
        fps=unless_given("fps", settings.fps),
        guardrail="required" if settings.guardrail == "required" else "not applicable",
        origins=MappingProxyType(origins),
    )


class _Values:
    """Picks values by flag name and remembers where each came from."""

    def __init__(
        self, given: Mapping[str, Any], origins: Mapping[str, Origin], generation: Generation
    ) -> None:
        self.given = given
        self.generation = generation
        self.origins: dict[str, Origin] = {}
        self.spelling: dict[str, str] = {}
        self._given_by = origins

    def pick(self, field_name: str, *flags: str, default: Any) -> Any:
        """The value of whichever of ``flags`` was given, or ``default``."""
        for flag in flags:
            if flag in self.given:
                self.origins[field_name] = self._given_by[flag]
                self.spelling[field_name] = flag
                return self.given[flag]
        self.set_default(field_name, default)
        return default

    def set_default(self, field_name: str, default: object) -> None:
        if field_name in _FROM_PROFILE and default is None:
            self.origins[field_name] = "profile"
        elif field_name in _DIFFERS:
            original = self.generation == "original"
            self.origins[field_name] = "original default" if original else "later default"
        else:
            self.origins[field_name] = "default"


_OWN_WORDS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "input": {"original": "input_image_or_video_path", "later": "input_path"},
        "output": {"original": "video_save_folder", "later": "save_path"},
        "source": {"original": "diffusion_transformer_dir", "later": "model"},
    }
)
"""Flags that set a field of another name."""
_FROM_PROFILE: Final = frozenset(
    {"negative_prompt", "height", "width", "num_frames", "fps", "num_steps", "guidance"}
)
"""Fields that the checkpoint's profile fills where nothing else does."""
_DIFFERS: Final = frozenset(
    {"source", "height", "width", "num_frames", "fps", "seed", "fit", "crf", "output"}
)
"""Fields whose default depends on the generation."""


def _either(given: Mapping[str, Any], *flags: str) -> bool:
    return any(given.get(flag) for flag in flags)


def _refuse_contradictions(given: Mapping[str, Any]) -> None:
    for group in EXCLUSIVE_FLAGS:
        found = [f"--{name}" for name in group if given.get(name) not in (None, False)]
        if len(found) > 1:
            raise UsageError(f"{' and '.join(found)} contradict each other; give one of them")
    if "model" in given and "aspect_ratio" in given and "resolution" not in given:
        raise UsageError(
            "--aspect_ratio with --model needs --resolution 480 or 720; "
            "or give --height and --width"
        )


def _model(values: _Values) -> tuple[tuple[str, int, int] | None, str | None]:
    """(size, resolution, fps) of a released checkpoint, if the flags name one, and its variant."""
    given = values.given
    size = values.pick("model_size", "model_size", default="2B")
    resolution = values.pick("resolution", "resolution", default=720)
    variant = values.pick("variant", "variant", default=None)
    named = "model" in given or values.generation == "original"
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


def _source(values: _Values, released: tuple[str, int, int] | None) -> str:
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


def _size(
    values: _Values, released: tuple[str, int, int] | None, aspect: str
) -> tuple[int | None, int | None]:
    height: int | None
    width: int | None
    asked = "resolution" in values.given or "aspect_ratio" in values.given
    if released is not None or asked:
        height, width = SIZES[values.given.get("resolution", 720)][aspect]
    elif values.generation == "original":
        height, width = 704, 1280
    else:
        height, width = None, None
    return (
        values.pick("height", "height", default=height),
        values.pick("width", "width", default=width),
    )


def _length(values: _Values, released: tuple[str, int, int] | None) -> int | None:
    default = 121 if values.generation == "original" else released and FRAMES_OF_RATE[released[2]]
    length: int | None = values.pick("num_frames", "num_video_frames", default=default)
    return length


def _output(values: _Values) -> Path:
    given = values.given
    if "save_path" in given:
        path: Path = values.pick("output", "save_path", default=None)
        path = path if path.suffix or not path.name else path.with_name(f"{path.name}.mp4")
        return _writable(path)
    if values.generation == "later":
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


def _batch_folder(values: _Values) -> Path | None:
    """The later tool's outputs are relative to the working directory."""
    if not is_batch(values.given):
        return None
    default = Path("outputs") if values.generation == "original" else Path()
    folder: Path = values.pick("batch_folder", "out", "video_save_folder", default=default)
    return folder


def _writable(path: Path) -> Path:
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


def _without_upsampler(settings: Settings) -> Settings:
    return replace(settings, upsampler="not applicable")


def _quality_notes(given: Mapping[str, Any]) -> tuple[str, ...]:
    suffix = given["save_path"].suffix.lower() if "save_path" in given else ""
    if "crf" not in given or suffix in ("", ".mp4"):
        return ()
    return (f"--crf has no effect: {suffix} is lossless",)


def _require_input(settings: Settings, given: Mapping[str, Any]) -> None:
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


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
