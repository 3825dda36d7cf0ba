"""Every setting: frozen, self-checking dataclasses, and the only reader of the environment."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cosmos_fast.errors import InputError
from cosmos_fast.types import (
    LATENT_CHANNELS,
    NO_TEXT,
    ActionSpec,
    Camera,
    LatentFrames,
    NoText,
    Size,
    latent_frames,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

RopeTable = Literal["reference", "float32"]
"""How the rotary angles are built: "reference" rounds every step to bfloat16, as NVIDIA's code does
(it casts the module's buffers); "float32" is the exact table, as diffusers builds it."""

SIZE_MULTIPLE: Final = 16
"""Pixels are a multiple of this: the VAE shrinks 8 times, a patch is 2 by 2."""


@dataclass(frozen=True)
class DiTConfig:
    """Architecture of the diffusion transformer (NVIDIA ``MinimalV1LVGDiT``)."""

    num_layers: int
    num_heads: int
    head_dim: int = 128
    mlp_ratio: float = 4.0
    adaln_rank: int = 256
    text_dim: int = 1024
    in_channels: int = LATENT_CHANNELS + 1
    """Latent channels and the condition mask; the padding mask is not counted."""
    out_channels: int = LATENT_CHANNELS
    concat_padding_mask: bool = True
    patch: int = 2
    rope_scale: tuple[float, float, float] = (1.0, 3.0, 3.0)
    """NTK extrapolation ratios along (t, h, w)."""
    max_size: tuple[int, int, int] = (128, 240, 240)
    """Largest latent grid (T, h, w)."""
    qk_norm_eps: float = 1e-6
    action_inputs: int = 0
    """Numbers of a chunk of actions that the network sees; 0: none are given."""

    def __post_init__(self) -> None:
        if self.action_inputs < 0:
            raise InputError(f"{self.action_inputs = }: 0 or more is needed")
        for name in ("num_layers", "num_heads", "head_dim", "adaln_rank", "text_dim", "patch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        if self.head_dim % 2 or self.head_dim < 6:
            raise InputError(f"{self.head_dim = }: an even number of at least 6 is needed")

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def action_hidden(self) -> int:
        """Width of the hidden layer of both action MLPs (NVIDIA's: four times the model's)."""
        return 4 * self.width

    @property
    def patch_features(self) -> int:
        """Values of one patch that enter the network: 72 for the released Video2World nets."""
        return (self.in_channels + self.concat_padding_mask) * self.patch**2


@dataclass(frozen=True)
class VAEConfig:
    """Architecture and latent statistics of the Wan2.1 video VAE."""

    base_dim: int = 96
    z_dim: int = LATENT_CHANNELS
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    latents_std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise InputError(
                f"{self.temporal_downsample = } must have one entry less than {self.dim_mult = }"
            )
        if not len(self.latents_mean) == len(self.latents_std) == self.z_dim:
            raise InputError(f"latents_mean and latents_std need {self.z_dim} values each")


@dataclass(frozen=True)
class T5Config:
    """Architecture of a T5 v1.0 encoder."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    buckets: int
    """Of distances between tokens, half of them for either direction."""
    max_distance: int = 128
    """From here on all distances share a bucket."""
    epsilon: float = 1e-6
    """Of the norms."""


@dataclass(frozen=True)
class Profile:
    """What a checkpoint implies: the defaults of ``generate`` and the limits it enforces."""

    name: str
    size: Size
    num_frames: int
    fps: float
    dit: DiTConfig
    vae: VAEConfig = field(default_factory=VAEConfig)
    num_steps: int = 35
    guidance: float = 7.0
    negative_prompt: str | NoText = NO_TEXT
    conditional_frames: tuple[int, ...] = (1, 5)
    """Pixel frames of conditioning that the checkpoint was trained with."""
    toy: bool = False
    """A small model that ships for trying out: guardrail and upsampler do not apply to it."""
    actions: ActionSpec | None = None
    """What the actions of an action-conditioned checkpoint mean; None: it takes none."""
    cameras: tuple[Camera, ...] = ()
    """Whose pictures make up the frames, where they are of several; empty: one picture."""

    def __post_init__(self) -> None:
        check_size(self.size, self.dit)
        latent_frames(self.num_frames)
        self._check_actions()
        self._check_cameras()

    def _check_cameras(self) -> None:
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names) or not all(name.strip() for name in names):
            raise InputError(f"cameras {names}: different names are needed")
        for name, top, left, height, width in self.cameras:
            fits = top + height <= self.size.height and left + width <= self.size.width
            if min(top, left) < 0 or min(height, width) < 1 or not fits:
                raise InputError(
                    f"camera {name!r}: {height}x{width} at {top}, {left} is not within frames of "
                    f"{self.size}"
                )

    def _check_actions(self) -> None:
        wanted, spec = self.dit.action_inputs, self.actions
        if spec is None and wanted == 0:
            return
        if spec is None:
            raise InputError(
                f"{wanted} numbers of action enter {self.name}, and nothing says how many values "
                f"an action has; describe them as an ActionSpec"
            )
        if spec.inputs != wanted:
            raise InputError(
                f"{spec.chunk} actions of {spec.dim} values are {spec.inputs} numbers; "
                f"{wanted} enter {self.name}"
            )
        if (self.num_frames, self.conditional_frames) != (spec.num_frames, (1,)):
            raise InputError(
                f"{self.num_frames} frames of which {self.conditional_frames} are given: a chunk "
                f"of {spec.chunk} actions is {spec.num_frames}, of which one is given"
            )

    @property
    def num_latent_frames(self) -> LatentFrames:
        return latent_frames(self.num_frames)


def whole_number(name: str, value: object) -> int:
    """
    Raises:
        InputError: ``value`` is none; a truth value is none either.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"{name} = {value!r}: a whole number is needed")
    return int(value.__index__())


def finite_number(name: str, value: object) -> float:
    """
    Raises:
        InputError: ``value`` is none; a truth value is none either.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} = {value!r}: a finite number is needed")
    return float(value)


def round_size(size: tuple[int, int]) -> Size:
    """``size`` (height, width) rounded up to multiples of 16, as the reference does.

    Raises:
        InputError: not two whole numbers.
    """
    try:
        sides = [whole_number("size", side) for side in size]
        height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in sides)
    except (TypeError, ValueError):
        raise InputError(f"{size = }: two whole numbers, (height, width), are needed") from None
    return Size(height, width)


def check_size(size: Size, dit: DiTConfig) -> None:
    """
    Raises:
        InputError: a side is not a positive multiple of 16, or beyond the position table.
    """
    limit = Size(dit.max_size[1] * 8, dit.max_size[2] * 8)
    for side, longest in zip(size, limit, strict=True):
        if side < SIZE_MULTIPLE or side % SIZE_MULTIPLE or side > longest:
            raise InputError(
                f"size {size}: each side must be a multiple of {SIZE_MULTIPLE} from "
                f"{SIZE_MULTIPLE} to {longest}"
            )


@dataclass(frozen=True)
class Environment:
    """What cosmos-fast takes from the environment of its process, read on demand, never written."""

    ffmpeg: Path | None = None
    """COSMOS_FAST_FFMPEG: the ffmpeg binary to use."""
    cache: Path = Path.home() / ".cache" / "cosmos-fast"
    """COSMOS_FAST_CACHE, or cosmos-fast below XDG_CACHE_HOME: prompt embeddings."""
    kernels: bool = True
    """COSMOS_FAST_KERNELS=off: plain torch in the place of our kernels and of CUDA graphs, to find
    out whether one of them is at fault."""
    direct_reads: bool = False
    """COSMOS_FAST_DIRECT_READS=on: checkpoints are loaded past the page cache (O_DIRECT), where the
    file system can: for files that are read once, and for machines whose cache others need."""

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Environment:
        """
        Raises:
            InputError: a switch that is neither "on" nor "off".
        """
        ffmpeg = variables.get("COSMOS_FAST_FFMPEG")
        cache = variables.get("COSMOS_FAST_CACHE")
        if not cache:
            base = variables.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
            cache = str(Path(base) / "cosmos-fast")
        return cls(
            Path(ffmpeg) if ffmpeg else None,
            Path(cache).expanduser(),
            kernels=_switch(variables, "COSMOS_FAST_KERNELS", "on"),
            direct_reads=_switch(variables, "COSMOS_FAST_DIRECT_READS", "off"),
        )


def _switch(variables: Mapping[str, str], name: str, default: str) -> bool:
    word = variables.get(name) or default
    if word not in ("on", "off"):
        raise InputError(f'{name} = {word!r}: "on" or "off" is needed')
    return word == "on"


@dataclass(frozen=True)
class Seat:
    """The place of this process among the ranks of one video."""

    rank: int
    size: int
    local_rank: int
    """Number among the ranks of this machine: which of its devices to take."""
    address: str
    port: int
    store_is_served: bool
    """Whether someone else serves the store at ``address`` and ``port``; else rank 0 does."""
    attempt: str = "0"
    """Ranks of different attempts do not meet."""

    @classmethod
    def from_torchrun(cls, variables: Mapping[str, str] = os.environ) -> Seat | None:
        """The place that torchrun gave this process; None where there is one process.

        Raises:
            InputError: torchrun's variables are there in part, or make no sense.
        """
        if "RANK" not in variables or "WORLD_SIZE" not in variables:
            return None
        try:
            seat = cls(
                rank=int(variables["RANK"]),
                size=int(variables["WORLD_SIZE"]),
                local_rank=int(variables.get("LOCAL_RANK", variables["RANK"])),
                address=variables["MASTER_ADDR"],
                port=int(variables["MASTER_PORT"]),
                store_is_served=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
                attempt=variables.get("TORCHELASTIC_RESTART_COUNT", "0"),
            )
        except (KeyError, ValueError) as error:
            raise InputError(
                f"RANK and WORLD_SIZE are set as by torchrun, but {error} is missing or no number: "
                f"start with torchrun, or unset both"
            ) from error
        if not 0 <= seat.rank < seat.size:
            raise InputError(f"RANK = {seat.rank}, WORLD_SIZE = {seat.size}: ranks count from 0")
        return seat if seat.size > 1 else None


def keep_multicast_off() -> None:
    """Tells the NCCL of this process, and of those it starts, not to use NVLink multicast.

    For processes of the command line alone. No exchange here gains by it, and it takes device-wide
    resources that other processes of the machine may depend on. A value that is there stays.
    """
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
