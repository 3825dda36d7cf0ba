"""What one ``video2world`` command means, as one frozen value: :class:`Settings`.

Where they come from: ``resolve`` makes them of flags, ``settings_of_profile`` fills them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from cosmos_fast.cli.exits import MissingPartError
from cosmos_fast.cli.missing_parts import MissingPart

Generation = Literal["original", "later"]
Origin = Literal[
    "command line", "config file", "original default", "later default", "default", "profile"
]
"""Where a value comes from; "profile" is the checkpoint's own."""

TOY_SOURCE: Final = "ballworld"
TOY_SOURCES: Final = (TOY_SOURCE, "pusherworld")
"""The worlds that ship, as ``weights.packaged_worlds`` finds them."""
_OWN_WORDS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "input": {"original": "input_image_or_video_path", "later": "input_path"},
        "output": {"original": "video_save_folder", "later": "save_path"},
        "batch_folder": {"original": "video_save_folder", "later": "video_save_folder"},
        "source": {"original": "diffusion_transformer_dir", "later": "model"},
    }
)
"""Flags that set a field of another name."""


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
    host_memory: str | None
    """RAM that the engine may take; None is what is free."""
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


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
