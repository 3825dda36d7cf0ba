"""A picture to look at: what the world showed above what MuJoCo showed, and the error's course."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from tools.pusherworld.accuracy import Rollout

EPISODES: Final = 8
EVERY: Final = 6
_GAP: Final = 6
_EDGE: Final = ((0, 0), (0, 2), (0, 2), (0, 0))
"""White pixels below and to the right of each frame."""
_CHART: Final = (480, 192)
_WORLD, _STILL, _FRAME = (30, 90, 200), (150, 150, 150), (60, 60, 60)


def write_sheet(path: Path, rollout: Rollout, truth: np.ndarray) -> None:
    """The first episodes, every sixth frame; below them the error in pixels by frame.

    Args:
        truth: uint8 (E, T, 96, 96, 3): MuJoCo's frames of the same actions.
    """
    from PIL import Image

    rows: list[np.ndarray] = []
    for made, simulated in zip(rollout.made[:EPISODES], truth[:EPISODES], strict=True):
        for video in (made, simulated):
            shown = np.pad(video[EVERY - 1 :: EVERY], _EDGE, constant_values=255)
            rows.append(np.concatenate(list(shown), axis=1))
        rows.append(np.full((_GAP, rows[-1].shape[1], 3), 255, np.uint8))
    pictures = Image.fromarray(np.concatenate(rows))
    chart = _chart(rollout)
    width = max(pictures.width, chart.width)
    sheet = Image.new("RGB", (width, pictures.height + chart.height), "white")
    sheet.paste(pictures, (0, 0))
    sheet.paste(chart, (0, pictures.height))
    partial = path.with_name(f"{path.name}.partial")
    sheet.save(partial, format="PNG")
    partial.replace(path)


def _chart(rollout: Rollout) -> Image:
    """Medians over episodes, with the middle half of the world's as a band."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", _CHART, "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 40, 20, _CHART[0] - 10, _CHART[1] - 24
    low, middle, high = np.percentile(rollout.error, (25, 50, 75), axis=0)
    still = np.median(rollout.still, axis=0)
    most = max(1.0, float(np.max([high, still])))

    def line(values: np.ndarray) -> list[tuple[float, float]]:
        across = np.linspace(left, right, len(values))
        return [
            (float(x), bottom - v / most * (bottom - top))
            for x, v in zip(across, values, strict=True)
        ]

    draw.polygon([*line(low), *line(high)[::-1]], fill=(205, 218, 245))
    draw.line(line(still), fill=_STILL, width=2)
    draw.line(line(middle), fill=_WORLD, width=2)
    draw.rectangle((left, top, right, bottom), outline=_FRAME)
    draw.text((4, top - 6), f"{most:.0f} px", fill=_FRAME)
    draw.text((4, bottom - 6), "0", fill=_FRAME)
    draw.text((left, bottom + 6), f"frames 1 to {len(middle)}", fill=_FRAME)
    draw.text((left + 8, top + 4), "block error: world (median, middle half)", fill=_WORLD)
    draw.text((left + 8, top + 16), "still picture", fill=_STILL)
    return image
