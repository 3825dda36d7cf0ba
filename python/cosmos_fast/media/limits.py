"""How a picture is fitted, and how much a file may cost."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from cosmos_fast._core import ProcessLimits
from cosmos_fast.errors import InputError

Fit = Literal["cover", "stretch"]
"""How a picture is brought to a size.

"cover": scaled until it covers the size (antialiased bilinear on floats in [0, 1]), cut at the
centre, times 255, truncated. "stretch": scaled straight to the size (antialiased bicubic), its
aspect not kept.
"""


@dataclass(frozen=True)
class MediaLimits:
    """What reading one file may cost. The file's size is no measure: 8 MB can hold 600 000 frames.

    The defaults let every picture and video up to 8192 x 4096, 10 bits a sample, through.
    """

    max_side: int = 8192
    """Longest side of a decoded picture, in pixels."""
    max_pixels: int = 8192 * 4096
    """Pixels of a decoded picture."""
    seconds: float = 60.0
    """How long ffmpeg may make the caller wait."""
    cpu_seconds: int = 120
    """Processor time of ffmpeg, all its threads together."""
    memory_bytes: int = 3 << 30
    """Address space of ffmpeg."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: a number above 0 is needed")

    @property
    def process(self) -> ProcessLimits:
        """The same for the Rust core. A reading process writes no file at all."""
        return ProcessLimits(
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            memory_bytes=self.memory_bytes,
            file_bytes=0,
        )
