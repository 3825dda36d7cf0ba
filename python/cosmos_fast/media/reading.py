"""The last frames of a file."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, ParamSpec

import numpy as np

from cosmos_fast._core import Decoder, capture, inspect
from cosmos_fast.errors import InputError, MediaError
from cosmos_fast.media import argv
from cosmos_fast.media.discovery import Ffmpeg, find_ffmpeg
from cosmos_fast.media.limits import Fit, MediaLimits
from cosmos_fast.types import Frames, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_P = ParamSpec("_P")
_LOG = logging.getLogger(__name__)

_STILLS: Final = ("jpeg", "png", "webp")
_TURNS: Final = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "turned by 90 degrees to the right and mirrored",
    6: "turned by 90 degrees to the right",
    7: "turned by 90 degrees to the left and mirrored",
    8: "turned by 90 degrees to the left",
}
_LISTING_BYTES: Final = 64 << 20
"""Room for the packets of a day at 10 frames a second."""


def at_once(
    ahead: Callable[_P, contextlib.AbstractContextManager[Frames | Callable[[], Frames]]],
) -> Callable[_P, Frames]:
    """The frames that ``ahead`` gives its body, for who has nothing else to do meanwhile."""

    @functools.wraps(ahead)
    def frames(*args: _P.args, **options: _P.kwargs) -> Frames:
        with ahead(*args, **options) as found:
            return found if isinstance(found, Frames) else found()

    return frames


@contextlib.contextmanager
def reading(
    path: str | os.PathLike[str],
    *,
    size: Size,
    num_frames: int,
    fit: Fit = "cover",
    fps: float | None = None,
    ffmpeg: Ffmpeg | Path | None = None,
    limits: MediaLimits | None = None,
    notes: list[str] | None = None,
) -> Iterator[Frames | Callable[[], Frames]]:
    """The last ``num_frames`` frames of a video, or a picture, fitted to ``size``, beside a body.

    Pictures are JPEG, PNG or WebP, of any depth; transparency is shown on black, and the camera's
    orientation is honoured. Videos are MP4, MOV, MKV, WebM or AVI; only their tail is decoded, and
    the frames are the file's own: no frame is resampled in time. What a file is, its content says,
    not its name.

    A picture is being decoded when the body begins, which gets what waits for it: to be called at
    most once, and only in the body. Where it is not called, decoding is stopped at the end. A video
    has been read when the body begins.

    Args:
        path: the file.
        size: height and width of the result.
        num_frames: at least 1; a picture is 1.
        fit: "cover" or "stretch".
        fps: rate that the result is given; None is the file's own, 1 for a picture.
        ffmpeg: the binary to use; None searches.
        limits: what reading may cost.
        notes: gets a sentence for each thing done to the picture that the caller may want to
            know, such as a turn; the log gets it too.

    Returns:
        Frames on the host, uint8 (num_frames, H, W, 3).

    Raises:
        InputError: an argument is wrong.
        MediaError: the file is missing, damaged, of another kind, beyond ``limits``, or has too
            few frames; a picture has one. A picture whose content turns out to be damaged raises
            when it is waited for.
    """
    path, target = Path(path), _target(num_frames, size)
    with _reader(path, target, fit, ffmpeg, limits) as reader:
        begun = reader.begin(path, [] if notes is None else notes)

    def wait() -> Frames:
        assert begun is not None
        with _naming(path):
            begun()
        return Frames(target, fps or 1.0)

    try:
        yield Frames(target, fps or reader.rate) if begun is None else wait
    finally:
        reader.stop()


read_frames: Final = at_once(reading)
"""The frames of :func:`reading`, waited for; same arguments and errors."""


def read_span(
    path: str | os.PathLike[str],
    *,
    start: float,
    fps: float,
    size: Size,
    num_frames: int = 1,
    fit: Fit = "cover",
    ffmpeg: Ffmpeg | Path | None = None,
    limits: MediaLimits | None = None,
) -> Frames:
    """``num_frames`` frames of a video from ``start`` on: where several recordings are in one file.

    Args:
        path: a file as of :func:`read_frames`; a picture is one frame at 0 seconds.
        start: seconds from the beginning at which the first of them is shown.
        fps: of the file; the frame whose time is nearest to ``start`` is the first.
        size, num_frames, fit, ffmpeg, limits: as :func:`read_frames`.

    Returns:
        Frames on the host, uint8 (num_frames, H, W, 3), at ``fps``.

    Raises:
        InputError, MediaError: as :func:`read_frames`; also where the file ends before.
    """
    if not 0 <= start < float("inf") or not 0 < fps < float("inf"):
        raise InputError(f"{start = } seconds at {fps = }: from 0 on, and above 0, are needed")
    path, target = Path(path), _target(num_frames, size)
    with _reader(path, target, fit, ffmpeg, limits) as reader:
        # Half a frame early: times in a file are rounded, and what lies before is dropped.
        reader.read_from(path, max(0.0, start - 0.5 / fps))
    return Frames(target, fps)


def _target(num_frames: int, size: Size) -> NDArray[np.uint8]:
    if num_frames < 1:
        raise InputError(f"{num_frames = }: at least 1 is needed")
    return np.empty((num_frames, *size, 3), dtype=np.uint8)


@contextlib.contextmanager
def _reader(
    path: Path,
    target: NDArray[np.uint8],
    fit: Fit,
    ffmpeg: Ffmpeg | Path | None,
    limits: MediaLimits | None,
) -> Iterator[_Reader]:
    """Opens the file for as long as the block reads it; what goes wrong names it."""
    binary = ffmpeg if isinstance(ffmpeg, Ffmpeg) else find_ffmpeg(ffmpeg)
    source = _open(path)
    try:
        with _naming(path):
            yield _Reader(binary, source, target, fit, limits or MediaLimits())
    finally:
        os.close(source)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What goes wrong with a file names it."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{path}: {_explained(str(error))}") from error


def _explained(finding: str) -> str:
    if "matches no streams" in finding:
        return "it holds no moving pictures, only sound or a cover; pass a video"
    if "Option not found" in finding or "Unrecognized option" in finding:
        return f"{finding}; this ffmpeg is too old: pip install imageio-ffmpeg brings a newer one"
    if finding.startswith("ffmpeg failed"):
        return f"{finding}; if a player shows it, save it again as PNG or MP4"
    return finding


def _open(path: Path) -> int:
    """A descriptor; never waits, as opening a FIFO would."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MediaError(
            f"{path}: cannot be opened ({reason}); check the name and permissions"
        ) from error


@contextlib.contextmanager
def _first_bytes(file: int, length: int) -> Iterator[int]:
    """A descriptor of a file that ends after ``length`` bytes: what follows a picture, such as a
    second one, is none of the decoder's business."""
    os.lseek(file, 0, os.SEEK_SET)
    if os.fstat(file).st_size <= length:
        yield file
        return
    copy = os.memfd_create("picture")
    try:
        while length > 0 and (sent := os.sendfile(copy, file, None, length)):
            length -= sent
        os.lseek(copy, 0, os.SEEK_SET)
        yield copy
    finally:
        os.close(copy)


class Packets(NamedTuple):
    """What the packets of a video tell."""

    number: int
    fps: float
    """From the typical time between two; 1 where there are fewer."""


class _Reader:
    """One file on its way into ``target``."""

    def __init__(
        self, ffmpeg: Ffmpeg, source: int, target: NDArray[np.uint8], fit: Fit, limits: MediaLimits
    ) -> None:
        self._ffmpeg, self._source, self._target = ffmpeg, source, target
        self._fit, self._limits = fit, limits
        self._decoder: Decoder | None = None
        self.rate = 1.0
        """Frames per second of a video that has been read."""

    def begin(self, path: Path, notes: list[str]) -> Callable[[], None] | None:
        """Begins to decode a picture, and returns what fills the target with it; None: it is a
        video, and the target is filled."""
        kind, orientation, deep, length = inspect(self._source)
        if kind not in _STILLS:
            self.rate = self._read_video()
            return None
        wanted = len(self._target)
        if wanted > 1:
            raise MediaError(
                f"a picture is one frame where {wanted} are asked for; pass a video, or ask for 1"
            )
        # ffmpeg would apply some orientations in some versions: here it is told not to.
        command = argv.still(self._ffmpeg, self._limits, deep=deep, alpha=kind != "jpeg")
        with _first_bytes(self._source, length) as source:
            self._decoder = decoder = self._start(command, source)

        def finish() -> None:
            if decoder.finish(self._target, fit=self._fit, orientation=orientation) < 1:
                raise MediaError("it holds no picture that can be decoded; save it again")
            if orientation in _TURNS:
                note = f"{path.name}: {_TURNS[orientation]}, as its EXIF orientation says"
                _LOG.info(note)
                notes.append(note)

        return finish

    def stop(self) -> None:
        """Ends what :meth:`begin` has begun, wherever it is."""
        if self._decoder is not None:
            self._decoder.stop()

    def read_from(self, path: Path, start: float) -> None:
        """Fills the target with what is shown from ``start`` seconds on."""
        kind, *_ = inspect(self._source)
        if kind in _STILLS and start == 0:
            finish = self.begin(path, [])
            assert finish is not None
            finish()
            return
        wanted = len(self._target)
        command = argv.span(self._ffmpeg, self._limits, start=start, frames=wanted)
        seen = self._decode(command)
        if seen < wanted:
            raise MediaError(
                f"{seen} frames follow after {start:.3f} s where {wanted} are asked for; "
                f"is the file cut off?"
            )

    def _read_video(self) -> float:
        wanted, seen = len(self._target), 0
        for tail_seconds in self._look_backs():
            listed = self._list_packets(tail_seconds)
            if tail_seconds is not None:
                if listed.number < wanted:
                    continue
                tail_seconds = max(tail_seconds, (wanted + 1) / listed.fps)
            command = argv.video(self._ffmpeg, self._limits, tail_seconds=tail_seconds)
            seen = self._decode(command)
            if seen >= wanted:
                return listed.fps
        raise MediaError(f"it has {seen} frames where {wanted} are asked for; pass a longer video")

    def _look_backs(self) -> Iterator[float | None]:
        """Seconds before the end to start from, ever more, then None: from the beginning."""
        seconds = max(0.25, 0.08 * len(self._target))
        for _ in range(3):
            yield seconds
            seconds *= 6
        yield None

    def _list_packets(self, tail_seconds: float | None) -> Packets:
        command = argv.packets(self._ffmpeg, self._limits, tail_seconds=tail_seconds)
        listing = capture(
            command,
            limits=self._limits.process,
            most_bytes=_LISTING_BYTES,
            source=self._source,
        )
        return parse_packets(listing.decode(errors="replace"))

    def _decode(self, command: list[str]) -> int:
        """Fills the target with the last pictures of a video; how many there were."""
        return self._start(command, self._source).finish(self._target, fit=self._fit, orientation=1)

    def _start(self, command: list[str], source: int) -> Decoder:
        limits = self._limits
        return Decoder(
            command,
            source=source,
            max_side=limits.max_side,
            max_pixels=limits.max_pixels,
            limits=limits.process,
        )


def parse_packets(listing: str) -> Packets:
    """The number of packets in ffmpeg's ``framecrc`` form, and the frame rate they imply."""
    time_base, times, count = 1.0, set(), 0
    for line in listing.splitlines():
        if line.startswith("#tb 0:"):
            numerator, _, denominator = line.removeprefix("#tb 0:").strip().partition("/")
            time_base = int(numerator) / int(denominator)
        elif line and not line.startswith("#"):
            count += 1
            times.add(int(line.split(",")[2]))
    ordered = sorted(times)
    steps = [later - earlier for earlier, later in itertools.pairwise(ordered)]
    typical = statistics.median(steps) * time_base if steps else 0.0
    return Packets(count, 1.0 / typical if typical > 0 else 1.0)
