"""How far a long video has come from how it began: plain measures of its pictures, chunk by chunk.

They know nothing of what is shown. A video that greys, darkens or blurs as it goes, as chained
generation does, shows in them; one that changes on purpose does as well.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601."""


@dataclass(frozen=True)
class ChunkDrift:
    """One chunk; levels are those of 8 bit pictures."""

    chunk: int
    seed: int
    frames: int
    """New ones, that the video holds."""
    seam_psnr: float | None
    """Decibels between the frames handed over and what the chunk makes of them; None for the
    first chunk. Infinite where they are equal."""
    brightness: float
    """Mean luma, 0 to 255."""
    contrast: float
    """Standard deviation of the luma of a picture."""
    saturation: float
    """Mean difference of a pixel's largest and smallest channel."""
    sharpness: float
    """Mean step from a pixel's luma to its right and lower neighbour's."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, which knows no infinity."""
        plain = asdict(self)
        if self.seam_psnr is not None and math.isinf(self.seam_psnr):
            plain["seam_psnr"] = "infinite"
        return plain


def measure(
    chunk: int, seed: int, frames: np.ndarray, seam: tuple[np.ndarray, np.ndarray] | None
) -> ChunkDrift:
    """
    Args:
        frames: uint8 (T, H, W, 3), the new frames of the chunk.
        seam: what was handed over, and the chunk's own copy of it.
    """
    brightness, contrast, saturation, sharpness = np.mean([_levels(one) for one in frames], axis=0)
    return ChunkDrift(
        chunk=chunk,
        seed=seed,
        frames=len(frames),
        seam_psnr=None if seam is None else psnr(*seam),
        brightness=round(float(brightness), 2),
        contrast=round(float(contrast), 2),
        saturation=round(float(saturation), 2),
        sharpness=round(float(sharpness), 3),
    )


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 arrays of one shape, in decibels."""
    error = float(np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2))
    return math.inf if error == 0 else round(10 * math.log10(255**2 / error), 2)


def drift_table(rows: Sequence[ChunkDrift]) -> str:
    """The measures as text, each beside its share of the first chunk's."""
    head = ("chunk", "seed", "frames", "seam PSNR", "brightness", "contrast", "saturation",
            "sharpness")  # fmt: skip
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        told = (
            _share(getattr(row, name), getattr(rows[0], name))
            for name in ("brightness", "contrast", "saturation", "sharpness")
        )
        seam = "" if row.seam_psnr is None else f"{row.seam_psnr:.2f} dB"
        lines.append((str(row.chunk), str(row.seed), str(row.frames), seam, *told))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _levels(picture: np.ndarray) -> tuple[float, float, float, float]:
    luma = picture.astype(np.float32) @ _LUMA
    spread = picture.max(axis=-1).astype(np.float32) - picture.min(axis=-1)
    steps = np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()
    return float(luma.mean()), float(luma.std()), float(spread.mean()), float(steps) / 2


def _share(value: float, first: float) -> str:
    return f"{value:.1f} ({value / first:4.0%})" if first else f"{value:.1f}"
