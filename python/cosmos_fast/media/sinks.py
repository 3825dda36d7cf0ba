"""Where written frames go: one class for each kind of file, all with the same four doors."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from cosmos_fast._core import Encoder, capture, inspect
from cosmos_fast.errors import MediaError
from cosmos_fast.media import argv
from cosmos_fast.media.limits import MediaLimits
from cosmos_fast.media.reading import parse_packets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cosmos_fast._core import ProcessLimits
    from cosmos_fast.media.discovery import Ffmpeg
    from cosmos_fast.media.encoding import Encoding
    from cosmos_fast.media.publishing import Draft, FolderDraft
    from cosmos_fast.types import Size

RING: Final = 8
"""Frames that may wait for the encoder before the caller does."""

_LISTING_BYTES: Final = 256 << 20


class Sink(Protocol):
    """A file or folder being written."""

    @property
    def draft(self) -> Draft | FolderDraft:
        """What is written, not yet published."""

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Queues frames, uint8 (n, H, W, 3), C-contiguous, of the right size."""

    def finish(self, frames: int) -> None:
        """Waits for the end of writing, and verifies that ``frames`` frames are there."""

    def abort(self) -> None:
        """Stops and leaves nothing behind."""


class _Encoded:
    """What the files that ffmpeg writes have in common."""

    def __init__(
        self,
        draft: Draft | FolderDraft,
        command: Sequence[str],
        size: Size,
        limits: ProcessLimits,
        pixels: str = "rgb24",
    ) -> None:
        self.draft: Final = draft
        self._limits = limits
        try:
            self._encoder = Encoder(
                command,
                output=draft.descriptor,
                size=size,
                pixels=pixels,
                ring=RING,
                limits=limits,
            )
        except BaseException:
            draft.discard()
            raise

    def write(self, frames: NDArray[np.uint8]) -> None:
        self._encoder.write(frames)

    def finish(self, frames: int) -> None:
        self._encoder.finish()
        written = self._count()
        if written != frames:
            raise MediaError(f"ffmpeg wrote {written} of {frames} frames; is the disk full?")

    def abort(self) -> None:
        self._encoder.stop()
        self.draft.discard()

    def _count(self) -> int:
        """Frames in the finished file."""
        raise NotImplementedError


class VideoFile(_Encoded):
    """An .mp4 (from yuv420p, even sides) or .mkv (lossless, from rgb24) file."""

    def __init__(
        self,
        draft: Draft,
        ffmpeg: Ffmpeg,
        command: Sequence[str],
        encoding: Encoding,
        limits: ProcessLimits,
    ) -> None:
        pixels = "yuv420p" if encoding.kind == "mp4" else "rgb24"
        super().__init__(draft, command, encoding.size, limits, pixels)
        self._ffmpeg = ffmpeg

    def _count(self) -> int:
        # ffmpeg ends well after a cut last frame on its input: the file itself is asked.
        command = argv.packets(self._ffmpeg, MediaLimits(), tail_seconds=None)
        listing = capture(
            command, limits=self._limits, most_bytes=_LISTING_BYTES, source=self.draft.descriptor
        )
        return parse_packets(listing.decode(errors="replace")).number


class StillFile(_Encoded):
    """A .png file."""

    def _count(self) -> int:
        kind, *_ = inspect(self.draft.descriptor)
        return int(kind == "png")


class PictureFolder(_Encoded):
    """A folder of .png files, 00000.png onwards."""

    def _count(self) -> int:
        names = sorted(entry.name for entry in os.scandir(self.draft.descriptor))
        for index, name in enumerate(names):
            if name != f"{index:05d}.png":
                raise MediaError(f"{name} stands where {index:05d}.png was expected")
            picture = os.open(name, os.O_RDONLY, dir_fd=self.draft.descriptor)
            try:
                inspect(picture)
            finally:
                os.close(picture)
        return len(names)


class ArrayFile:
    """A .npy file: uint8 (T, H, W, 3)."""

    def __init__(self, draft: Draft, size: Size) -> None:
        self.draft: Final = draft
        self._size = size
        self._put(self._header(0))

    def write(self, frames: NDArray[np.uint8]) -> None:
        self._put(frames.data.cast("B"))

    def finish(self, frames: int) -> None:
        header = self._header(frames)
        expected = len(header) + frames * self._size.height * self._size.width * 3
        written = os.fstat(self.draft.descriptor).st_size
        if written != expected:
            raise MediaError(f"{written} bytes were written where {expected} were expected")
        os.lseek(self.draft.descriptor, 0, os.SEEK_SET)
        self._put(header)

    def abort(self) -> None:
        self.draft.discard()

    def _header(self, frames: int) -> bytes:
        """NumPy pads the header so that its length does not depend on the first axis."""
        buffer = io.BytesIO()
        shape = (frames, *self._size, 3)
        description = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, description)
        return buffer.getvalue()

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.draft.descriptor, view) :]
            except OSError as error:
                raise MediaError(
                    f"cannot be written ({error.strerror}); check the space on its disk"
                ) from error
