"""Frames to files."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import torch

from cosmos_fast.errors import InputError, MediaError
from cosmos_fast.media import argv
from cosmos_fast.media.discovery import Ffmpeg, find_ffmpeg
from cosmos_fast.media.publishing import Draft, FolderDraft
from cosmos_fast.media.sinks import ArrayFile, PictureFolder, Sink, StillFile, VideoFile
from cosmos_fast.types import Frames, Size

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from cosmos_fast.media.argv import Kind

_TAGS: Final = (
    "album", "artist", "comment", "composer", "copyright", "date", "description", "genre",
    "lyrics", "synopsis", "title",
)  # fmt: skip
"""What an MP4 file can say about itself; ffmpeg drops anything else without a word."""
_LONGEST_TAG: Final = 16_384
_LONGEST_SIDE: Final = 8192
_PATTERN: Final = re.compile(r"%05d\.png", re.IGNORECASE)


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
    ) -> None:
        """
        Args:
            path: missing folders are made, an existing file is replaced.
            size: height and width; even numbers for ``.mp4``.
            fps: frames per second of the file, above 0.
            crf: quality of H.264, 0 (lossless but for colour) to 51; 15 as the reference.
            metadata: what the file says about itself, such as {"comment": "AI-generated"}.
            ffmpeg: the binary to use; None searches.

        Raises:
            InputError: an argument is wrong.
            MediaError: the folder cannot be written, or there is no ffmpeg.
        """
        self._path, self._size = Path(path), Size(*size)
        _check(self._path, self._size, fps, crf, metadata or {})
        self._frames = 0
        self._state = "open"
        self._sink = self._open_sink(fps, crf, metadata or {}, ffmpeg)

    def _open_sink(
        self, fps: float, crf: int, metadata: Mapping[str, str], ffmpeg: Ffmpeg | Path | None
    ) -> Sink:
        kind, size = _kind(self._path), self._size
        if kind is None:
            return ArrayFile(Draft(self._path), size)
        binary = ffmpeg if isinstance(ffmpeg, Ffmpeg) else find_ffmpeg(ffmpeg)
        command = argv.encode(binary, size, fps, kind, crf, metadata)
        if kind == "png":
            return PictureFolder(FolderDraft(self._path.parent), command, size)
        return VideoFile(Draft(self._path), binary, command, size, even=kind == "mp4")

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
        array = _host_array(frames)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (*self._size, 3):
            raise InputError(
                f"{array.dtype} frames of shape {array.shape} for a video of {self._size}: uint8 "
                f"of shape (n, {self._size.height}, {self._size.width}, 3) is needed"
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

    def publish(self) -> Path:
        """Gives the finished file its name, which is returned.

        Raises:
            MediaError: the disk is full or the folder has gone; nothing is left behind.
        """
        self._require("finished")
        self._state = "published"
        self._sink.draft.publish()
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
    sink = StillFile(Draft(path), binary, Size(*pixels.shape[:2]))
    try:
        sink.write(np.ascontiguousarray(pixels[None]))
        sink.finish(1)
        sink.draft.publish()
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


def _check(path: Path, size: Size, fps: float, crf: int, metadata: Mapping[str, str]) -> None:
    kind = _kind(path)
    if kind == "mp4" and (size.height % 2 or size.width % 2):
        raise InputError(f"{size = !s}: mp4 (4:2:0) needs even sides; use .mkv for odd ones")
    if min(size) < 1 or max(size) > _LONGEST_SIDE:
        raise InputError(f"{size = !s}: each side must be from 1 to {_LONGEST_SIDE}")
    if not 0.01 <= fps <= 1000:
        raise InputError(f"{fps = } frames per second: 0.01 to 1000 can be written")
    if not isinstance(crf, int) or not 0 <= crf <= 51:
        raise InputError(f"{crf = }: H.264 quality is a whole number from 0 (best) to 51")
    for key, value in metadata.items():
        if key not in _TAGS:
            raise InputError(f"metadata {key!r}: an mp4 file holds {', '.join(_TAGS)}")
        if "\0" in value or len(value) > _LONGEST_TAG:
            raise InputError(
                f"metadata {key!r} of {len(value)} characters: at most {_LONGEST_TAG}, none null"
            )


def _kind(path: Path) -> Kind | None:
    """What the name asks for; None is an array."""
    if _PATTERN.fullmatch(path.name):
        return "png"
    suffix = path.suffix.lower().removeprefix(".")
    if suffix == "mp4":
        return "mp4"
    if suffix == "mkv":
        return "mkv"
    if suffix == "npy":
        return None
    raise InputError(
        f"{str(path)!r}: the name must end in .mp4, .mkv (lossless), .npy (the array itself) or "
        "/%05d.png (a folder of pictures)"
    )
