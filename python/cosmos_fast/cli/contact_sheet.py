"""A video at a glance: some of its frames side by side in one picture."""

from __future__ import annotations

import math

import numpy as np

GAP = 4
"""Dark pixels between the frames."""


def contact_sheet(frames: np.ndarray, *, count: int = 12, columns: int = 4) -> np.ndarray:
    """Evenly spaced frames, first and last included, in reading order.

    Args:
        frames: uint8 (T, H, W, 3).
        count: at most this many frames.
        columns: frames in a row.

    Returns:
        uint8 (rows · (H + 4) + 4, columns · (W + 4) + 4, 3).
    """
    total, height, width, _ = frames.shape
    chosen = frames[np.linspace(0, total - 1, min(count, total)).round().astype(int)]
    columns = min(columns, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    sheet = np.full(
        (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 24, dtype=np.uint8
    )
    for index, frame in enumerate(chosen):
        top = GAP + index // columns * (height + GAP)
        left = GAP + index % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = frame
    return sheet
