"""The ruler: where the balls of a video are, by their colours, and how far two videos disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cosmos_fast.ballworld.scene import PALETTE, SIZE, Scenes

_SOFTNESS: Final = 0.03
_CUT: Final = 0.25
LOST: Final = float(np.hypot(*SIZE))
"""The error, in pixels, of a ball whose colour is nowhere in a frame: the picture's diagonal."""
STILL: Final = 0.5
"""A simulated displacement below this many pixels has no direction to compare."""


def track(video: np.ndarray, scenes: Scenes) -> np.ndarray:
    """Follows every ball by its colour.

    Weights exp(-d²/0.03) of the squared RGB distance to the ball's colour (values in 0-1), cut
    below 0.25, and the centroid of what is left. The track follows the lit side of a ball, so only
    tracks may be compared with tracks.

    Args:
        video: uint8 (N, T, H, W, 3).
        scenes: the N scenes; only ``count`` and ``colour`` are read.

    Returns:
        float64 (N, T, K, 2): (x, y) in pixels; NaN where there is no second ball, or no pixel of
        the ball's colour.
    """
    number, frames, height, width, _ = video.shape
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    tracks = np.full((number, frames, 2, 2), np.nan)
    for n in range(number):
        clip = video[n].astype(np.float32) / 255
        for k in range(scenes.count[n]):
            distance = ((clip - PALETTE[scenes.colour[n, k]]) ** 2).sum(axis=-1)
            weight = np.exp(-distance / _SOFTNESS)
            weight[weight < _CUT] = 0
            total = weight.sum(axis=(1, 2), dtype=np.float64)
            seen = total > 0
            tracks[n, seen, k, 0] = (weight.sum(axis=1) @ x)[seen] / total[seen]
            tracks[n, seen, k, 1] = (weight.sum(axis=2) @ y)[seen] / total[seen]
    return tracks


@dataclass(frozen=True)
class Score:
    """How one video follows another, ball by ball. M balls in all."""

    error: np.ndarray
    """float64 (M, T): pixels between the tracks; :data:`LOST` where a ball cannot be found."""
    agrees: np.ndarray
    """bool (M,): displacements over frames 0-2 have a positive dot product; only where moving."""
    moving: np.ndarray
    """bool (M,): the simulated ball has moved by frame 2."""
    alone: np.ndarray
    """bool (M,): the only ball of its scene."""

    def median(self, frame: int, of: np.ndarray | None = None) -> float:
        """Median error in pixels at ``frame``, of all balls or those that ``of`` (bool) picks."""
        chosen = self.error[:, frame] if of is None else self.error[of, frame]
        return float(np.median(chosen)) if chosen.size else float("nan")

    @property
    def direction(self) -> float:
        """Share of the moving balls that start in the simulated direction."""
        return float(self.agrees[self.moving].mean()) if self.moving.any() else float("nan")


def compare_tracks(generated: np.ndarray, simulated: np.ndarray, scenes: Scenes) -> Score:
    """
    Args:
        generated, simulated: float64 (N, T, K, 2), as :func:`track` makes them, at least 3 frames.
        scenes: the N scenes.
    """
    there = np.arange(2)[None] < scenes.count[:, None]
    ours, theirs = (tracks.swapaxes(1, 2)[there] for tracks in (generated, simulated))
    error = np.linalg.norm(ours - theirs, axis=-1)
    error[np.isnan(error)] = LOST
    went, should = ours[:, 2] - ours[:, 0], theirs[:, 2] - theirs[:, 0]
    return Score(
        error=error,
        agrees=(went * should).sum(axis=-1) > 0,
        moving=np.linalg.norm(should, axis=-1) > STILL,
        alone=np.broadcast_to(scenes.count[:, None] == 1, there.shape)[there],
    )
