"""Frames from whatever a program holds: paths, arrays, tensors, PIL images."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from cosmos_fast._core import resize
from cosmos_fast.errors import InputError
from cosmos_fast.media.fitting import fit_tensor
from cosmos_fast.media.limits import Fit, MediaLimits
from cosmos_fast.media.pil import is_pil, pixels_of
from cosmos_fast.media.reading import at_once, reading
from cosmos_fast.types import Frames, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cosmos_fast.media.discovery import Ffmpeg

_EXPECTED = (
    "a path, a Frames, a uint8 array or tensor of shape (H, W, 3) or (T, H, W, 3), a PIL image, "
    "or a list of pictures"
)


@contextlib.contextmanager
def frames_ahead(
    source: Any,
    *,
    size: Size,
    num_frames: int,
    fit: Fit,
    fps: float,
    ffmpeg: Ffmpeg | Path | None = None,
    limits: MediaLimits | None = None,
    notes: list[str] | None = None,
) -> Iterator[Frames | Callable[[], Frames]]:
    """The last ``num_frames`` frames of ``source``, fitted to ``size``, beside a body.

    Args:
        source: a path; ``Frames``; a PIL image; a NumPy array, a torch tensor on any device or
            anything else with ``__dlpack__``, uint8, RGB, shape (H, W, 3) or (T, H, W, 3); or a
            list of pictures of one size.
        size: height and width of the result.
        num_frames: at least 1; a single picture is 1.
        fit: "cover" or "stretch".
        fps: rate that the result is given.
        ffmpeg: the binary for a path; None searches.
        limits: what reading a path may cost.
        notes: gets a sentence for each thing done to a picture, such as a turn by its EXIF data.

    Gives the body:
        Frames where the source was: a device tensor is fitted on its device and never visits the
        host, everything else is on the host. Or, where ``source`` is the path of a picture, which
        ffmpeg then decodes beside the body, what waits for them: to be called at most once, and
        only in the body.

    Raises:
        InputError: wrong type, dtype, shape or value, or too few frames in an array.
        MediaError: as :func:`reading`, for a path.
    """
    if isinstance(source, str | os.PathLike):
        with reading(
            source,
            size=size,
            num_frames=num_frames,
            fit=fit,
            fps=fps,
            ffmpeg=ffmpeg,
            limits=limits,
            notes=notes,
        ) as frames:
            yield frames
    else:
        yield _fitted(source, size, num_frames, fit, fps, [] if notes is None else notes)


frames_from: Final = at_once(frames_ahead)
"""The frames of :func:`frames_ahead`, waited for; same arguments and errors."""


def _fitted(
    source: Any, size: Size, num_frames: int, fit: Fit, fps: float, notes: list[str]
) -> Frames:
    """The last frames of a source that is no path."""
    if num_frames < 1:
        raise InputError(f"{num_frames = }: at least 1 is needed")
    pixels = _clip(_array_of(source, notes), num_frames)
    if isinstance(pixels, torch.Tensor):
        return Frames(fit_tensor(pixels, size, fit), fps)
    target = np.empty((num_frames, *size, 3), dtype=np.uint8)
    resize(np.ascontiguousarray(pixels), target, fit=fit)
    return Frames(target, fps)


def _array_of(source: Any, notes: list[str]) -> np.ndarray | torch.Tensor:
    """The pixels of ``source``: a tensor where they are on a device, otherwise an array."""
    if isinstance(source, Frames):
        return _array_of(source.data, notes)
    if is_pil(source):
        return pixels_of(source, notes)
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, torch.Tensor):
        if source.layout != torch.strided:
            raise InputError(f"a tensor of layout {source.layout}: pass tensor.to_dense()")
        tensor = source.detach()
        return tensor.numpy() if tensor.device.type == "cpu" else tensor
    if isinstance(source, list | tuple):
        return _stacked([_array_of(picture, notes) for picture in source])
    if hasattr(source, "__dlpack__"):
        try:
            tensor = torch.utils.dlpack.from_dlpack(source)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{type(source).__name__} cannot be shared: {error}") from error
        return _array_of(tensor, notes)
    raise InputError(f"{type(source).__name__} holds no frames: {_EXPECTED} is needed")


def _stacked(pictures: list[np.ndarray | torch.Tensor]) -> np.ndarray | torch.Tensor:
    if not pictures:
        raise InputError(f"an empty list holds no frames: {_EXPECTED} is needed")
    shapes = {tuple(picture.shape) for picture in pictures}
    if len(shapes) > 1:
        raise InputError(f"pictures of several shapes in one list: {sorted(shapes)}; crop them")
    if all(isinstance(picture, torch.Tensor) for picture in pictures):
        return torch.stack([torch.as_tensor(picture) for picture in pictures])
    if any(isinstance(picture, torch.Tensor) for picture in pictures):
        raise InputError("pictures on the host and on a device in one list: bring them together")
    return np.stack([np.asarray(picture) for picture in pictures])


def _clip(pixels: np.ndarray | torch.Tensor, wanted: int) -> np.ndarray | torch.Tensor:
    """The last ``wanted`` pictures, (T, h, w, 3), after looking at them."""
    shape, dtype = tuple(pixels.shape), str(pixels.dtype).removeprefix("torch.")
    if dtype != "uint8" or len(shape) not in {3, 4} or shape[-1] != 3 or 0 in shape:
        raise InputError(
            f"{dtype} of shape {shape} where uint8 (H, W, 3) or (T, H, W, 3), RGB from 0 to 255, "
            "is needed"
        )
    if len(shape) == 3:
        pixels = pixels[None]
    if len(pixels) < wanted:
        count = "a picture is 1 frame" if len(shape) == 3 else f"{len(pixels)} frames"
        raise InputError(f"{count} where {wanted} are asked for; pass a longer clip")
    return pixels[len(pixels) - wanted :]
