"""What is made of paired scores: correlations, rank violation, and bootstrap intervals.

Intervals are percentiles of 1000 resamples of a fixed seed: 95 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

DRAWS: Final = 1000


class Figure(NamedTuple):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def bootstrap(measure: Callable[..., float], *samples: np.ndarray) -> Figure:
    """``measure(*samples)``, and where it falls when the rows of all samples are drawn anew.

    Args:
        samples: of one length; rows of one number stay together.
    """
    rng = np.random.default_rng(0)
    rows = rng.integers(len(samples[0]), size=(DRAWS, len(samples[0])))
    return _figure(measure(*samples), [measure(*(each[row] for each in samples)) for row in rows])


def bootstrap_scores(
    measure: Callable[[np.ndarray, np.ndarray], float], ours: np.ndarray, theirs: np.ndarray
) -> Figure:
    """``measure`` of the mean scores of policies; policies and episodes are both drawn anew.

    Args:
        ours, theirs: bool or float (policies, episodes), of the same episodes.
    """
    rng = np.random.default_rng(0)
    policies, episodes = ours.shape
    drawn = []
    for _ in range(DRAWS):
        row = rng.integers(policies, size=policies)
        column = rng.integers(episodes, size=episodes)
        a, b = (each[np.ix_(row, column)].mean(axis=1) for each in (ours, theirs))
        drawn.append(measure(a, b))
    return _figure(measure(ours.mean(axis=1), theirs.mean(axis=1)), drawn)


def ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of theirs."""
    below = (values[:, None] > values).sum(axis=1)
    return below + ((values[:, None] == values).sum(axis=1) + 1) / 2


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation; 0 where one side is constant and ranks nothing."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the ranks."""
    return pearson(ranks(a), ranks(b))


def rank_violation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean over policies of the worst true gap to one that is ranked on the wrong side of it
    (mean maximum rank violation of SIMPLER, arXiv 2405.05941)."""
    wrong = (ours[:, None] < ours) != (theirs[:, None] < theirs)
    return float((np.abs(theirs[:, None] - theirs) * wrong).max(axis=1).mean())


def ratio(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the means; infinite where theirs is 0 and ours is not, 0 where both are."""
    below = float(theirs.mean())
    above = float(ours.mean())
    if below:
        return above / below
    return float("inf") if above else 0.0


def _figure(value: float, drawn: list[float]) -> Figure:
    # The nearest of the values drawn: between an infinite one and another there is nothing.
    low, high = np.percentile(drawn, (2.5, 97.5), method="nearest")
    return Figure(*(round(float(each), 4) for each in (value, low, high)))
