"""Statistics of features, per episode and of all episodes together, by LeRobot's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_QUANTILES: Final = (0.01, 0.10, 0.50, 0.90, 0.99)
_PICTURES: Final = 100
"""Frames of an episode that its statistics look at, evenly spread."""
_SIDE: Final = 150
"""Pixels along the longer side of a frame that they look at, about."""

Statistics = dict[str, np.ndarray]
"""``min``, ``max``, ``mean``, ``std``, ``q01`` to ``q99`` of each value, and ``count``."""


def of_values(values: np.ndarray) -> Statistics:
    """Of (T,) or (T, dim): arrays of (1,) or (dim,)."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    return _of_rows(rows, len(rows))


def of_frames(frames: np.ndarray) -> Statistics:
    """Of uint8 (T, H, W, 3): arrays of (3, 1, 1), a channel each, from 0 to 1."""
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), _PICTURES)).round().astype(int)
    stride = max(1, max(frames.shape[1:3]) // _SIDE)
    rows = frames[chosen, ::stride, ::stride].reshape(-1, 3) / 255.0
    found = _of_rows(rows, len(chosen))
    return {
        name: value if name == "count" else value.reshape(3, 1, 1) for name, value in found.items()
    }


def together(parts: Sequence[Statistics]) -> Statistics:
    """Of several episodes: mean and deviation exactly (Chan et al. 1979), quantiles about.

    As LeRobot adds its own up: quantiles are means weighted with the counts.
    """
    counts = np.array([float(part["count"][0]) for part in parts])
    shares = counts / counts.sum()

    def weighted(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.tensordot(shares, np.stack(arrays), axes=1)

    mean = weighted([part["mean"] for part in parts])
    variance = weighted([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])
    return {
        "min": np.stack([part["min"] for part in parts]).min(axis=0),
        "max": np.stack([part["max"] for part in parts]).max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([int(counts.sum())]),
    } | {name: weighted([part[name] for part in parts]) for name in map(_name, _QUANTILES)}


def _of_rows(rows: np.ndarray, count: int) -> Statistics:
    quantiles = np.quantile(rows, _QUANTILES, axis=0)
    return {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        "count": np.array([count]),
    } | {_name(q): value for q, value in zip(_QUANTILES, quantiles, strict=True)}


def _name(quantile: float) -> str:
    return f"q{round(quantile * 100):02d}"
