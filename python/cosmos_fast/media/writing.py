"""Frames to files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from cosmos_fast._core import ProcessLimits
from cosmos_fast.errors import InputError, MediaError
from cosmos_fast.media import argv
from cosmos_fast.media.discovery import Ffmpeg, find_ffmpeg
from cosmos_fast.media.encoding import Encoding, kind_of
from cosmos_fast.media.publishing import Draft, FolderDraft, publish
from cosmos_fast.media.sinks import ArrayFile, PictureFolder, Sink, StillFile, VideoFile
from cosmos_fast.types import Frames, Size

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from types import TracebackType


class VideoWriter:
    """Writes frames as they come, encoded beside the caller; the file appears when all is well.

    What the name ends in says what is written: ``.mp4`` H.264 (4:2:0, BT.709), ``.mkv`` lossless
    FFV1, ``.npy`` the array itself, ``folder/%05d.png`` a new folder of pictures from 00000 on.

    Use it as a context manager: a clean end publishes the file, an exception leaves nothing. Or
    call ``finish``, look at what ``finish`` returns, and ``publish``. One thread at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: Size,
        fps: float,
        crf: int = 15,
        metadata: Mapping[str, str] | None = None,
        ffmpeg: Ffmpeg | Path | None = None,
        seconds: float = 120.0,
    ) -> None:
        """
        Args:
            path: missing folders are made, an existing file is replaced.
            size: height and width; even numbers for ``.mp4``.
            fps: frames per second of the file, above 0.
            crf: quality of H.264, 0 (lossless but for colour) to 51; 15 as the reference.
            metadata: what the file says about itself, such as {"comment": "AI-generated"}.
            ffmpeg: the binary to use; None searches.
            seconds: how long ffmpeg may make the caller wait with any one frame, or with its end.

        Raises:
            InputError: an argument is wrong.
            MediaError: the folder cannot be written, or there is no ffmpeg.
        """
        self._path = Path(path)
        kind = kind_of(self._path)
        self._encoding = Encoding(kind, Size(*size), fps, crf, metadata or {})
        self._frames = 0
        self._state = "open"
        self._sink = _open_sink(self._path, self._encoding, ffmpeg, ProcessLimits(seconds=seconds))

    def write(self, frames: Frames | np.ndarray | torch.Tensor) -> None:
        """Queues frames; waits where the encoder is behind.

        Args:
            frames: uint8, shape (n, H, W, 3), on the host or a device; not changed by the caller
                until this returns.

        Raises:
            InputError: wrong dtype or shape, or the writer is closed.
            MediaError: the encoder failed; the writer leaves nothing behind.
        """
        self._require("open")
        size = self._encoding.size
        array = _host_array(frames)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (*size, 3):
            raise InputError(
                f"{array.dtype} frames of shape {array.shape} for a video of {size}: uint8 of "
                f"shape (n, {size.height}, {size.width}, 3) is needed"
            )
        with self._leaving_nothing_on_error():
            self._sink.write(np.ascontiguousarray(array))
        self._frames += len(array)

    def finish(self) -> Path:
        """Waits for the encoder and verifies what it wrote.

        Returns:
            A path under which this process can read the file, which has no name yet.

        Raises:
            MediaError: the encoder failed, or the file does not hold every frame; nothing is left.
        """
        self._require("open")
        with self._leaving_nothing_on_error():
            if self._frames == 0:
                raise MediaError("no frame was written; a video needs at least one")
            self._sink.finish(self._frames)
        self._state = "finished"
        return self._sink.draft.readable

    def publish(self, companions: Mapping[Path, bytes] = MappingProxyType({})) -> Path:
        """Gives the finished file its name, which is returned.

        Args:
            companions: files that appear just before it; with it, or not at all.

        Raises:
            MediaError: the disk is full or the folder has gone; nothing is left behind, and what
                was there before is there again.
        """
        self._require("finished")
        drafts: list[Draft | FolderDraft] = []
        try:
            for path, data in companions.items():
                companion = Draft(path)
                drafts.append(companion)
                companion.write(data)
        except BaseException:
            for draft in drafts:
                draft.discard()
            self.abort()
            raise
        self._state = "published"
        publish([*drafts, self._sink.draft])
        return self._path

    def close(self) -> Path:
        """``finish`` and ``publish`` in one; does nothing where the file is published already."""
        if self._state == "published":
            return self._path
        if self._state != "finished":
            self.finish()
        return self.publish()

    def abort(self) -> None:
        """Stops the encoder and leaves nothing behind; does nothing after ``publish``."""
        if self._state in {"open", "finished"}:
            self._state = "aborted"
            self._sink.abort()

    def __del__(self) -> None:
        if hasattr(self, "_sink"):  # not where the arguments were refused
            self.abort()

    def _require(self, state: str) -> None:
        if self._state != state:
            raise InputError(f"{self._path}: the writer is {self._state}, it must be {state}")

    @contextlib.contextmanager
    def _leaving_nothing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.abort()
            if isinstance(error, MediaError):
                raise MediaError(f"{self._path}: {error}") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abort()
        elif self._state != "aborted":
            self.close()


def write_png(
    path: str | os.PathLike[str],
    picture: np.ndarray | torch.Tensor,
    *,
    ffmpeg: Ffmpeg | Path | None = None,
) -> Path:
    """Writes a picture as PNG; the file appears whole or not at all.

    Args:
        path: missing folders are made, an existing file is replaced.
        picture: uint8, shape (H, W, 3), RGB, on the host or a device.
        ffmpeg: the binary to use; None searches.

    Raises:
        InputError: wrong dtype or shape.
        MediaError: ffmpeg failed, or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    pixels = _host_array(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(
            f"a {pixels.dtype} picture of shape {pixels.shape}: uint8 (H, W, 3), RGB, is needed"
        )
    binary = ffmpeg if isinstance(ffmpeg, Ffmpeg) else find_ffmpeg(ffmpeg)
    size = Size(*pixels.shape[:2])
    limits = ProcessLimits(seconds=60.0)
    sink = StillFile(Draft(path), argv.encode_picture(binary, size), size, limits)
    try:
        sink.write(np.ascontiguousarray(pixels[None]))
        sink.finish(1)
        publish([sink.draft])
    except BaseException as error:
        sink.abort()
        if isinstance(error, MediaError):
            raise MediaError(f"{path}: {error}") from error
        raise
    return path


def _host_array(frames: Frames | np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(frames, torch.Tensor):
        return frames.detach().cpu().numpy()
    return np.asarray(frames)


def _open_sink(
    path: Path, encoding: Encoding, ffmpeg: Ffmpeg | Path | None, limits: ProcessLimits
) -> Sink:
    size = encoding.size
    if encoding.kind == "npy":
        return ArrayFile(Draft(path), size)
    binary = ffmpeg if isinstance(ffmpeg, Ffmpeg) else find_ffmpeg(ffmpeg)
    command = argv.encode(binary, encoding)
    if encoding.kind == "png":
        return PictureFolder(FolderDraft(path.parent), command, size, limits)
    return VideoFile(Draft(path), binary, command, encoding, limits)
