"""What is reported of generated videos, and pictures to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cosmos_fast.ballworld.tracker import compare_tracks, track

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.ballworld.scene import Scenes

FRAMES: Final = (8, 16, 32)
LIMITS: Final = {8: 2.0, 16: 4.0, 32: 10.0}
"""Median tracking error, in pixels, that counts as good at these frames."""


def tracking(generated: np.ndarray, simulated: np.ndarray, scenes: Scenes) -> dict[str, Any]:
    """Tracking figures of videos (uint8 (N, T, H, W, 3)) against the simulator's."""
    return tracking_of(track(generated, scenes), track(simulated, scenes), scenes)


def tracking_of(generated: np.ndarray, simulated: np.ndarray, scenes: Scenes) -> dict[str, Any]:
    """:func:`tracking` of tracks made earlier."""
    score = compare_tracks(generated, simulated, scenes)
    figures: dict[str, Any] = {
        "balls": len(score.error),
        "moving_balls": int(score.moving.sum()),
        "direction": round(score.direction, 4),
    }
    groups = {"all": None, "one_ball": score.alone, "two_balls": ~score.alone}
    for name, chosen in groups.items():
        figures[name] = {f"frame_{n}": round(score.median(n, chosen), 3) for n in FRAMES}
    within = [score.error[:, n] <= limit for n, limit in LIMITS.items()]
    figures["within_limits"] = round(float(np.mean(np.logical_and.reduce(within))), 4)
    return figures


def shortfall(figures: dict[str, Any]) -> float:
    """One number to choose settings by: the worst share of its limit; below 1 is good."""
    return max(figures["all"][f"frame_{n}"] / limit for n, limit in LIMITS.items())


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean over videos of the PSNR in dB of uint8 (N, ...)."""
    difference = (ours.astype(np.float32) - theirs.astype(np.float32)) / 255
    errors = (difference**2).reshape(len(ours), -1).mean(axis=1)
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1e-10))))


def ssim(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean structural similarity of uint8 (N, T, H, W, 3), channel by channel.

    Wang et al. 2004: Gaussian window of 11 pixels and deviation 1.5, whole windows only.
    """
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def smooth(pictures: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            views = np.lib.stride_tricks.sliding_window_view(pictures, 11, axis)
            pictures = views @ window
        return pictures

    values = []
    for one, other in zip(ours, theirs, strict=True):
        a, b = one.astype(np.float64), other.astype(np.float64)
        mean_a, mean_b = smooth(a), smooth(b)
        variance_a, variance_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
        together = smooth(a * b) - mean_a * mean_b
        small, smaller = (0.03 * 255) ** 2, (0.01 * 255) ** 2
        likeness = (2 * mean_a * mean_b + smaller) * (2 * together + small)
        likeness /= (mean_a**2 + mean_b**2 + smaller) * (variance_a + variance_b + small)
        values.append(likeness.mean())
    return float(np.mean(values))


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean over N of the cosine between (N, ...) as vectors."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (ours, theirs))
    products = (a * b).sum(axis=1)
    return float(np.mean(products / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def write_sheet(
    path: Path, generated: np.ndarray, simulated: np.ndarray, *, scenes: int = 8, every: int = 4
) -> None:
    """A contact sheet: for each scene, generated frames above simulated ones."""
    from PIL import Image

    rows = []
    for n in range(min(scenes, len(generated))):
        pair = (generated[n], simulated[n])
        rows += [np.concatenate(list(video[::every]), axis=1) for video in pair]
        rows.append(np.full((4, rows[-1].shape[1], 3), 255, dtype=np.uint8))
    Image.fromarray(np.concatenate(rows)).save(path)
