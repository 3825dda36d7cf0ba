"""Frames of several worlds at once, where the decoder left them."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final, Literal, SupportsIndex, overload

import numpy as np

from cosmos_fast.errors import InputError
from cosmos_fast.types import Frames
from cosmos_fast.world.cameras import camera_named, cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from cosmos_fast.types import Camera


class BatchFrames:
    """uint8 RGB of shape (N, T, H, W, 3), or (N, K, T, H, W, 3) with K samples a world.

    A sequence of worlds: ``frames[k]`` is world k's ``Frames``, or with samples the ``BatchFrames``
    of its K futures; ``frames[k:m]`` are several worlds. Neither copies anything.

    Stays on the device until someone asks: ``np.asarray(frames)`` and ``.to("np")`` bring the
    pixels to the host, ``__dlpack__`` and ``.to("pt")`` hand them over where they are.
    """

    def __init__(self, data: torch.Tensor, fps: float, cameras: tuple[Camera, ...] = ()) -> None:
        """
        Args:
            cameras: whose pictures these are put together of; empty: one picture.

        Raises:
            InputError: another dtype or shape.
        """
        if str(data.dtype) != "torch.uint8" or data.ndim not in (5, 6) or data.shape[-1] != 3:
            raise InputError(
                f"{data.dtype} of shape {tuple(data.shape)}: uint8 (N, T, H, W, 3) or "
                f"(N, K, T, H, W, 3) is needed"
            )
        self.data: Final = data
        self.fps: Final = fps
        self.cameras: Final = cameras

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def device(self) -> torch.device:
        return self.data.device

    def __len__(self) -> int:
        return int(self.data.shape[0])

    @overload
    def __getitem__(self, index: slice) -> BatchFrames: ...
    @overload
    def __getitem__(self, index: SupportsIndex) -> Frames | BatchFrames: ...
    def __getitem__(self, index: slice | SupportsIndex) -> Frames | BatchFrames:
        """One world's frames, counted from the end where ``index`` is negative, or several worlds'.

        Raises:
            IndexError: no such world.
            InputError: no whole number and no slice, or a slice of negative stride.
        """
        if isinstance(index, slice):
            if index.step is not None and index.step < 1:
                raise InputError(f"{index}: worlds are taken in ascending order")
            return BatchFrames(self.data[index], self.fps, self.cameras)
        try:
            world = operator.index(index)
        except TypeError as error:  # arrays too have __index__, and refuse
            raise InputError(f"{index!r}: a world's number, or a slice, is needed") from error
        if not -len(self) <= world < len(self):
            raise IndexError(f"world {world}: {len(self)} are there")
        one = self.data[world]
        return Frames(one, self.fps) if one.ndim == 4 else BatchFrames(one, self.fps, self.cameras)

    def __iter__(self) -> Iterator[Frames | BatchFrames]:
        return (self[world] for world in range(len(self)))

    def of(self, world: int, sample: int = 0) -> Frames:
        """The frames of one world.

        Raises:
            InputError: another sample than the first, where there is one a world.
        """
        if self.data.ndim == 5 and sample:
            raise InputError(f"{sample = }: of these frames there is one a world; see futures")
        one = self.data[world] if self.data.ndim == 5 else self.data[world, sample]
        return Frames(one, self.fps)

    def camera(self, name: str) -> BatchFrames:
        """The frames of one camera, where they are; nothing is copied.

        Raises:
            InputError: the checkpoint has no such camera.
        """
        return BatchFrames(cut(self.data, camera_named(self.cameras, name)), self.fps)

    def by_camera(self) -> dict[str, BatchFrames]:
        """The frames of every camera by its name; empty for a checkpoint of one picture."""
        return {camera.name: self.camera(camera.name) for camera in self.cameras}

    def __repr__(self) -> str:
        return f"BatchFrames(shape={self.shape}, fps={self.fps:g}, device={str(self.device)!r})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        host = self.data.cpu().numpy()
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
    def to(self, form: str) -> np.ndarray | torch.Tensor:
        """The pixels as a NumPy array on the host, or as a torch tensor where they are."""
        if form not in ("np", "pt"):
            raise InputError(f'{form = }: frames of several worlds come as "np" or "pt"')
        return np.asarray(self) if form == "np" else self.data
