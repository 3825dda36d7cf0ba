"""Finding the ffmpeg binary."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosmos_fast._core import ProcessLimits, capture
from cosmos_fast.config import Environment
from cosmos_fast.errors import MediaError

Source = Literal["argument", "COSMOS_FAST_FFMPEG", "imageio_ffmpeg", "PATH"]

_CURE = "pip install imageio-ffmpeg brings one, COSMOS_FAST_FFMPEG names another"


@dataclass(frozen=True)
class Ffmpeg:
    """An ffmpeg binary and how it was found."""

    path: Path
    source: Source

    @property
    def version(self) -> str:
        """As the binary says it, such as "7.1" or "n9.0.2-17-g2a571b6068"; asked once a process.

        Raises:
            MediaError: the binary does not run, or does not say.
        """
        return _version(self.path)


def find_ffmpeg(explicit: Path | None = None) -> Ffmpeg:
    """The ffmpeg to use: ``explicit``, COSMOS_FAST_FFMPEG, imageio_ffmpeg's, or the one on PATH.

    The first that is named decides: a name that leads nowhere is an error, not a reason to go on.

    Raises:
        MediaError: there is none, or the named one is no executable file.
    """
    if explicit is not None:
        return Ffmpeg(_executable(Path(explicit), "ffmpeg"), "argument")
    named = Environment.read().ffmpeg
    if named is not None:
        return Ffmpeg(_executable(named, "COSMOS_FAST_FFMPEG"), "COSMOS_FAST_FFMPEG")
    packaged = _packaged()
    if packaged is not None:
        return Ffmpeg(packaged, "imageio_ffmpeg")
    on_path = shutil.which("ffmpeg")
    if on_path is not None:
        return Ffmpeg(Path(on_path).absolute(), "PATH")
    raise MediaError(f"no ffmpeg was found: {_CURE}")


def _executable(path: Path, name: str) -> Path:
    found = shutil.which(path.expanduser())
    if found is None:
        raise MediaError(f"{name} = {str(path)!r} is no executable file: {_CURE}")
    return Path(found).absolute()


def _packaged() -> Path | None:
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    try:
        path = Path(imageio_ffmpeg.get_ffmpeg_exe()).absolute()
    except RuntimeError:  # its wheel for this platform holds no binary
        return None
    return path if os.access(path, os.X_OK) else None


@functools.cache
def _version(path: Path) -> str:
    limits = ProcessLimits(seconds=20.0)
    printed = capture([os.fspath(path), "-version"], limits=limits, most_bytes=1 << 16)
    words = printed.decode(errors="replace").split(maxsplit=3)
    if len(words) < 3 or words[:2] != ["ffmpeg", "version"]:
        raise MediaError(f"{path} does not say that it is ffmpeg: {_CURE}")
    return words[2]
