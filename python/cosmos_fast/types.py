"""The values that travel between the rooms: one type an arrow, checked once, when it is made.

Axes: B batch, T frames (pixel or latent, as stated), H/W pixels, h/w latent positions, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, NewType, overload

import numpy as np
import torch

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

PixelFrames = NewType("PixelFrames", int)
"""A number of video frames, as a person counts them."""
LatentFrames = NewType("LatentFrames", int)
"""A number of latent frames: the first holds one pixel frame, each further one holds four."""

TEMPORAL_STRIDE: Final = 4
SPATIAL_STRIDE: Final = 8
LATENT_CHANNELS: Final = 16
TEXT_ROWS: Final = 512


def latent_frames(pixels: int) -> LatentFrames:
    """Latent frames of a clip of ``pixels`` frames.

    Raises:
        InputError: ``pixels`` is not of the form 4·n + 1.
    """
    if pixels < 1 or (pixels - 1) % TEMPORAL_STRIDE:
        below = max(1, (pixels - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1)
        raise InputError(
            f"{pixels} frames cannot be made: the VAE packs 1 frame and then 4 at a time; "
            f"use {below} or {below + TEMPORAL_STRIDE} frames"
        )
    return LatentFrames((pixels - 1) // TEMPORAL_STRIDE + 1)


def pixel_frames(latents: int) -> PixelFrames:
    """Pixel frames that ``latents`` latent frames decode to."""
    if latents < 1:
        raise InputError(f"{latents} latent frames: at least 1 is needed")
    return PixelFrames(TEMPORAL_STRIDE * (latents - 1) + 1)


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width} (height x width)"


class Camera(NamedTuple):
    """Where the picture of one camera lies in the one picture that a checkpoint makes of several.

    Checkpoints for robots with several cameras are trained on their pictures put together.
    """

    name: str
    top: int
    """Pixels from the upper edge of the whole."""
    left: int
    """Pixels from its left edge."""
    height: int
    width: int

    @property
    def size(self) -> Size:
        return Size(self.height, self.width)


class Frames:
    """A clip of pictures: uint8 RGB of shape (T, H, W, 3), on the host or on a device.

    Stays where it was made until someone asks: ``np.asarray(frames)`` and ``.to("np")`` bring the
    pixels to the host, ``__dlpack__`` and ``.to("pt")`` hand them over where they are.
    """

    def __init__(self, data: np.ndarray | torch.Tensor, fps: float) -> None:
        """
        Args:
            data: uint8, shape (T, H, W, 3), RGB.
            fps: frames per second, above 0.

        Raises:
            InputError: wrong dtype, shape or rate.
        """
        shape, dtype = tuple(data.shape), str(data.dtype).removeprefix("torch.")
        if dtype != "uint8" or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise InputError(
                f"frames must be uint8 of shape (T, H, W, 3), RGB, without an empty axis; "
                f"got {dtype} of shape {shape}"
            )
        if not 0 < fps < float("inf"):
            raise InputError(f"{fps = } frames per second: a number above 0 is needed")
        self.data: Final = data
        self.fps: Final = float(fps)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3)."""
        frames, height, width, channels = self.data.shape
        return int(frames), int(height), int(width), int(channels)

    @property
    def size(self) -> Size:
        return Size(self.shape[1], self.shape[2])

    @property
    def device(self) -> torch.device:
        return self.data.device if isinstance(self.data, torch.Tensor) else torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> Frames:
        return Frames(self.data[index], self.fps)

    def __repr__(self) -> str:
        return f"Frames(shape={self.shape}, fps={self.fps:g}, device={str(self.device)!r})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        host = self.data.cpu().numpy() if isinstance(self.data, torch.Tensor) else self.data
        if dtype is not None and np.dtype(dtype) != host.dtype:
            return host.astype(dtype)
        return host.copy() if copy else host

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.data.__dlpack_device__()

    @overload
    def to(self, form: Literal["np"]) -> np.ndarray: ...
    @overload
    def to(self, form: Literal["pt"]) -> torch.Tensor: ...
    @overload
    def to(self, form: Literal["pil"]) -> list[Image.Image]: ...
    def to(self, form: str) -> np.ndarray | torch.Tensor | list[Image.Image]:
        """The pixels as a NumPy array on the host, a torch tensor where they are, or PIL images."""
        if form == "np":
            return np.asarray(self)
        if form == "pt":
            return self.data if isinstance(self.data, torch.Tensor) else torch.from_numpy(self.data)
        if form == "pil":
            from PIL import Image  # optional: only people who ask for PIL images need it

            return [Image.fromarray(picture) for picture in np.asarray(self)]
        raise InputError(f'{form = }: frames come as "np", "pt" or "pil"')


@dataclass(frozen=True)
class Latents:
    """Normalised latents of a clip, tied to the VAE that can decode them."""

    tensor: torch.Tensor
    """float32, shape (B, 16, T', H/8, W/8), about unit variance."""
    vae: str
    """Identity (digest) of the VAE they belong to."""

    def __post_init__(self) -> None:
        tensor = self.tensor
        if tensor.dtype != torch.float32 or tensor.ndim != 5 or tensor.shape[1] != LATENT_CHANNELS:
            raise InputError(
                f"latents must be float32 of shape (B, {LATENT_CHANNELS}, T, h, w); "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )

    def __repr__(self) -> str:
        return f"Latents(shape={tuple(self.tensor.shape)}, vae={self.vae[:12]!r})"


@dataclass(frozen=True)
class TextEmbedding:
    """What the transformer attends to in place of a prompt."""

    rows: torch.Tensor
    """bfloat16, shape (512, C). Rows from ``length`` on are zero and attended all the same."""
    length: int
    """Rows that belong to the prompt, its end token included; 0 for no text."""

    def __post_init__(self) -> None:
        rows = self.rows
        if rows.dtype != torch.bfloat16 or rows.ndim != 2 or rows.shape[0] != TEXT_ROWS:
            raise InputError(
                f"a text embedding must be bfloat16 of shape ({TEXT_ROWS}, C); "
                f"got {rows.dtype} of shape {tuple(rows.shape)}"
            )
        if not 0 <= self.length <= TEXT_ROWS:
            raise InputError(f"{self.length = } rows of text: 0 to {TEXT_ROWS} are possible")
        if rows[self.length :].any():
            raise InputError(f"rows from {self.length} on are padding and must be zero")

    @classmethod
    def zeros(cls, dim: int, device: torch.device | str = "cpu") -> TextEmbedding:
        """No text at all: 512 zero rows of width ``dim``."""
        return cls(torch.zeros(TEXT_ROWS, dim, dtype=torch.bfloat16, device=device), 0)

    def __repr__(self) -> str:
        return f"TextEmbedding(length={self.length}, dim={self.rows.shape[1]})"


class NoText:
    """The type of :data:`NO_TEXT`."""

    def __repr__(self) -> str:
        return "NO_TEXT"


NO_TEXT: Final = NoText()
"""In place of a prompt or negative prompt: 512 zero rows, as in training without text."""

Prompt = str | TextEmbedding | NoText
"""What may stand in place of a prompt."""


@dataclass(frozen=True)
class ActionSpec:
    """What the actions of an action-conditioned checkpoint mean.

    Its weights tell only how many numbers a chunk of actions has, not whether 84 of them are 12
    actions of 7 values or 14 of 6. The network sees ``(action - mean) / std * scale``, value by
    value; without statistics ``action * scale``.
    """

    dim: int
    """Values of one action."""
    chunk: int
    """Actions, and new frames, of one evaluation of the world: a multiple of 4."""
    names: tuple[str, ...]
    """What each value is."""
    units: tuple[str, ...]
    """What each value is measured in; "1" for a plain number."""
    scale: tuple[float, ...]
    """Factor of each value; finite and positive."""
    frame: str
    """Frame of reference that the values are given in."""
    fps: float
    """Actions, and frames, a second."""
    mean: tuple[float, ...] | None = None
    """Of the actions trained on, in their units; finite."""
    std: tuple[float, ...] | None = None
    """Of the actions trained on, in their units; finite and positive. With ``mean``, or neither."""

    FARTHEST: ClassVar[float] = 20.0
    """Largest magnitude of a value as the network sees it; beyond it a unit must be wrong."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.chunk < 1 or self.chunk % TEMPORAL_STRIDE:
            raise InputError(
                f"actions of {self.dim} values in chunks of {self.chunk}: at least one value and a "
                f"multiple of {TEMPORAL_STRIDE} actions are needed"
            )
        if (self.mean is None) != (self.std is None):
            raise InputError("an action's mean and std are given together or not at all")
        for name in ("names", "units", "scale", "mean", "std"):
            values = getattr(self, name)
            if values is not None and (isinstance(values, str) or len(values) != self.dim):
                raise InputError(f"{name} = {values}: {self.dim} are needed, one a value")
        for name in ("scale", "mean", "std"):
            for number, value in enumerate(getattr(self, name) or ()):
                where = f"{name}[{number}] ({self.names[number]})"
                _check_number(where, value, positive=name != "mean")
        _check_number("fps", self.fps, positive=True)

    @property
    def inputs(self) -> int:
        """Numbers that enter the network with a chunk."""
        return self.chunk * self.dim

    @property
    def num_frames(self) -> PixelFrames:
        """Frames of a chunk with the given one."""
        return PixelFrames(self.chunk + 1)


def _check_number(name: str, value: object, *, positive: bool) -> None:
    """
    Raises:
        InputError: no finite number, or one that should be positive and is not.
    """
    try:
        fine = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        fine = False
    if not fine or (positive and not value > 0):  # type: ignore[operator]
        needed = "a finite number above 0" if positive else "a finite number"
        raise InputError(f"{name} = {value!r}: {needed} is needed")


@dataclass(frozen=True)
class Conditioning:
    """What is known of the clip beforehand: given latents, where they hold, and how clean they are.

    One or five given pixel frames, goal frames and policies that keep actions in latent slots are
    all this value. The denoiser puts ``latents`` wherever ``mask`` is 1 (frame replacement,
    NVIDIA Cosmos-Predict2's Video2World conditioning).
    """

    latents: torch.Tensor
    """float32, shape (B, 16, T, h, w); arbitrary where the mask is 0."""
    mask: torch.Tensor
    """float32 of 0 and 1, shape (T,) for whole frames or (T, h, w)."""
    sigma: torch.Tensor
    """float32, shape (T,): noise level the network is told for given frames (1e-4 by default)."""

    DEFAULT_SIGMA = 1e-4

    def __post_init__(self) -> None:
        if self.latents.ndim != 5 or self.latents.dtype != torch.float32:
            raise InputError(
                f"conditioning latents must be float32 (B, 16, T, h, w); got {self.latents.dtype} "
                f"of shape {tuple(self.latents.shape)}"
            )
        frames, grid = self.latents.shape[2], tuple(self.latents.shape[2:])
        if tuple(self.mask.shape) not in {(frames,), grid}:
            raise InputError(
                f"conditioning mask of shape {tuple(self.mask.shape)}: ({frames},) or {grid} fits "
                f"latents of shape {tuple(self.latents.shape)}"
            )
        if tuple(self.sigma.shape) != (frames,):
            raise InputError(f"conditioning sigma of shape {tuple(self.sigma.shape)}: ({frames},)")

    @classmethod
    def from_first_frames(
        cls, given: torch.Tensor, total: LatentFrames, sigma: float = DEFAULT_SIGMA
    ) -> Conditioning:
        """The first latent frames of a clip are given, the rest is to be predicted.

        Args:
            given: float32, shape (B, 16, n, h, w), n of 1 to ``total``.
            total: latent frames of the whole clip.
            sigma: noise level the network is told for the given frames.
        """
        batch, channels, known, height, width = given.shape
        if not 1 <= known <= total:
            raise InputError(f"{known} given latent frames do not fit a clip of {total}")
        latents = given.new_zeros((batch, channels, total, height, width))
        latents[:, :, :known] = given
        mask = given.new_zeros(total)
        mask[:known] = 1
        return cls(latents, mask, given.new_full((total,), sigma))

    @property
    def mask_11THW(self) -> torch.Tensor:
        """The mask as (1, 1, T, h, w) or, for whole frames, (1, 1, T, 1, 1)."""
        mask = self.mask if self.mask.ndim == 3 else self.mask[:, None, None]
        return mask[None, None]


@dataclass(frozen=True)
class TokenLayout:
    """Which patch of the clip each token is.

    RoPE, per-frame modulation, sharding and unpatchify index through this value, so that tiled
    orders and shards of a clip need no change in the network.
    """

    grid: tuple[int, int, int]
    """Patches of the whole clip along (T, h, w)."""
    raster_index: torch.Tensor | None = None
    """int64 (N,): position in raster order (t slowest, w fastest) of each token of this run;
    None is the whole clip in raster order."""

    @property
    def tokens(self) -> int:
        if self.raster_index is not None:
            return int(self.raster_index.numel())
        return self.grid[0] * self.grid[1] * self.grid[2]

    def to(self, device: torch.device | str) -> TokenLayout:
        """The same with its index on ``device``: a copy at each use would wait for the device."""
        index = self.raster_index
        return self if index is None else replace(self, raster_index=index.to(device))

    def positions(self, device: torch.device | str) -> torch.Tensor:
        """int64 (N, 3): the (t, h, w) patch coordinates of each token."""
        _, rows, columns = self.grid
        index = (
            torch.arange(self.tokens, device=device)
            if self.raster_index is None
            else self.raster_index.to(device)
        )
        return torch.stack(
            (index // (rows * columns), index // columns % rows, index % columns), dim=1
        )
