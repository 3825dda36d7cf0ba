"""Videos at a glance: a row of frames for each, labelled, in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

GAP: Final = 4
MARGIN: Final = 120
"""Pixels to the left of the frames, for the labels of the rows."""
FOOT: Final = 24
"""Pixels below the frames, for their numbers."""
_SCALE: Final = 2
_PAPER: Final = (24, 24, 24)
_INK: Final = (235, 235, 235)

_GLYPHS: Final = {
    " ": ("   ",) * 7,
    "0": (" ## ", "#  #", "#  #", "#  #", "#  #", "#  #", " ## "),
    "1": (" # ", "## ", " # ", " # ", " # ", " # ", "###"),
    "2": (" ## ", "#  #", "   #", "  # ", " #  ", "#   ", "####"),
    "3": ("### ", "   #", "   #", " ## ", "   #", "   #", "### "),
    "4": ("  # ", " ## ", "# # ", "# # ", "####", "  # ", "  # "),
    "5": ("####", "#   ", "### ", "   #", "   #", "#  #", " ## "),
    "6": (" ## ", "#   ", "#   ", "### ", "#  #", "#  #", " ## "),
    "7": ("####", "   #", "  # ", "  # ", " #  ", " #  ", " #  "),
    "8": (" ## ", "#  #", "#  #", " ## ", "#  #", "#  #", " ## "),
    "9": (" ## ", "#  #", "#  #", " ###", "   #", "   #", " ## "),
    "a": ("    ", "    ", " ## ", "   #", " ###", "#  #", " ###"),
    "d": ("   #", "   #", " ###", "#  #", "#  #", "#  #", " ###"),
    "e": ("    ", "    ", " ## ", "#  #", "####", "#   ", " ###"),
    "f": (" ##", "#  ", "#  ", "###", "#  ", "#  ", "#  "),
    "g": ("    ", " ###", "#  #", "#  #", " ###", "   #", " ## "),
    "i": ("#", " ", "#", "#", "#", "#", "#"),
    "l": ("#", "#", "#", "#", "#", "#", "#"),
    "m": ("     ", "     ", "#### ", "# # #", "# # #", "# # #", "# # #"),
    "n": ("    ", "    ", "### ", "#  #", "#  #", "#  #", "#  #"),
    "r": ("   ", "   ", "# #", "## ", "#  ", "#  ", "#  "),
    "s": ("    ", "    ", " ###", "#   ", " ## ", "   #", "### "),
    "t": (" # ", " # ", "###", " # ", " # ", " # ", "  #"),
    "u": ("    ", "    ", "#  #", "#  #", "#  #", "#  #", " ###"),
}
"""Seven rows each: the letters that labels need."""


def draw_sheet(videos: Mapping[str, np.ndarray], *, count: int = 7) -> np.ndarray:
    """Evenly spaced frames, first and last included: a row for each video, frames of one time
    below one another.

    Args:
        videos: label (in the letters of "generated", "simulated", "frame" and digits) to uint8
            (T, H, W, 3); all of one shape.
        count: at most this many frames.

    Returns:
        uint8 picture (height, width, 3).
    """
    frames, height, width, _ = next(iter(videos.values())).shape
    chosen = np.linspace(0, frames - 1, min(count, frames)).round().astype(int)
    sheet = np.full(
        (len(videos) * (height + GAP) + GAP + FOOT, MARGIN + len(chosen) * (width + GAP), 3),
        _PAPER,
        dtype=np.uint8,
    )
    for row, (label, video) in enumerate(videos.items()):
        top = GAP + row * (height + GAP)
        _write(sheet, label, top + height // 2 - 7, 8)
        for column, frame in enumerate(chosen):
            left = MARGIN + column * (width + GAP)
            sheet[top : top + height, left : left + width] = video[frame]
    for column, frame in enumerate(chosen):
        _write(sheet, f"frame {frame}", len(sheet) - FOOT + 3, MARGIN + column * (width + GAP))
    return sheet


def _write(picture: np.ndarray, text: str, top: int, left: int) -> None:
    for letter in text:
        dots = np.array([[dot == "#" for dot in row] for row in _GLYPHS[letter]])
        large = dots.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
        there = picture[top : top + large.shape[0], left : left + large.shape[1]]
        there[large] = _INK
        left += large.shape[1] + _SCALE
