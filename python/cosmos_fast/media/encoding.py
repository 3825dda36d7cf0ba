"""What kind of file is written, and how."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cosmos_fast.types import Size

Kind = Literal["mp4", "mkv", "npy", "png"]
"""H.264 (4:2:0), lossless FFV1, the array itself, a folder of pictures."""

_TAGS: Final = (
    "album", "artist", "comment", "composer", "copyright", "date", "description", "genre",
    "lyrics", "synopsis", "title",
)  # fmt: skip
"""What an MP4 file can say about itself; ffmpeg drops anything else without a word."""
_LONGEST_TAG: Final = 16_384
_LONGEST_SIDE: Final = 8192
_PATTERN: Final = re.compile(r"%05d\.png", re.IGNORECASE)


@dataclass(frozen=True)
class Encoding:
    """How frames become a file."""

    kind: Kind
    size: Size
    fps: float
    crf: int
    """Quality of H.264, 0 (best) to 51; the other kinds are lossless."""
    metadata: Mapping[str, str]

    def __post_init__(self) -> None:
        size, fps, crf = self.size, self.fps, self.crf
        if self.kind == "mp4" and (size.height % 2 or size.width % 2):
            raise InputError(f"{size = !s}: mp4 (4:2:0) needs even sides; use .mkv for odd ones")
        if min(size) < 1 or max(size) > _LONGEST_SIDE:
            raise InputError(f"{size = !s}: each side must be from 1 to {_LONGEST_SIDE}")
        if not 0.01 <= fps <= 1000:
            raise InputError(f"{fps = } frames per second: 0.01 to 1000 can be written")
        if not isinstance(crf, int) or not 0 <= crf <= 51:
            raise InputError(f"{crf = }: H.264 quality is a whole number from 0 (best) to 51")
        for key, value in self.metadata.items():
            if key not in _TAGS:
                raise InputError(f"metadata {key!r}: a video holds {', '.join(_TAGS)}")
            if "\0" in value or len(value) > _LONGEST_TAG:
                raise InputError(
                    f"metadata {key!r} of {len(value)} characters: at most {_LONGEST_TAG}, none "
                    "of them null"
                )


def kind_of(path: Path) -> Kind:
    """What the name asks for.

    Raises:
        InputError: it asks for nothing that is written.
    """
    if _PATTERN.fullmatch(path.name):
        return "png"
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        return "mp4"
    if suffix == ".mkv":
        return "mkv"
    if suffix == ".npy":
        return "npy"
    raise InputError(
        f"{str(path)!r}: the name must end in .mp4, .mkv (lossless), .npy (the array itself) or "
        "/%05d.png (a folder of pictures)"
    )
