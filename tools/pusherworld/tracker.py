"""The ruler: where disc and block are in a picture, by their colours. Needs no simulator."""

from __future__ import annotations

from typing import Final

import numpy as np

COLOURS: Final = {"disc": (0.10, 0.35, 0.90), "block": (0.90, 0.25, 0.10)}
_SOFTNESS: Final = 0.06
_CUT: Final = 0.25
LOST: Final = 96 * 2**0.5
"""Error in pixels of something whose colour is nowhere: the picture's diagonal."""


def track(frames: np.ndarray, what: str = "block") -> np.ndarray:
    """Centroid of the pixels of a colour.

    Args:
        frames: uint8 (..., H, W, 3).
        what: "block" or "disc".

    Returns:
        float64 (..., 2): (x, y) in pixels; NaN where it is nowhere.
    """
    lead, (height, width) = frames.shape[:-3], frames.shape[-3:-1]
    flat = frames.reshape(-1, height, width, 3)
    found = np.full((len(flat), 2), np.nan)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for n, frame in enumerate(flat):
        distance = ((frame.astype(np.float32) / 255 - COLOURS[what]) ** 2).sum(axis=-1)
        weight = np.exp(-distance / _SOFTNESS)
        weight[weight < _CUT] = 0
        total = weight.sum(dtype=np.float64)
        if total > 4:
            found[n] = weight.sum(axis=0) @ x / total, weight.sum(axis=1) @ y / total
    return found.reshape(*lead, 2)


def distances(ours: np.ndarray, theirs: np.ndarray, what: str = "block") -> np.ndarray:
    """Pixels between what two sets of frames (..., H, W, 3) show; :data:`LOST` where it is gone."""
    apart = np.linalg.norm(track(ours, what) - track(theirs, what), axis=-1)
    return np.where(np.isnan(apart), LOST, apart)
