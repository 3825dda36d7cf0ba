"""Who moves the disc: wandering, and pushing the block to a goal with more or less skill."""

from __future__ import annotations

from typing import Final

import numpy as np

_BEHIND: Final = 0.36
"""Distance behind the block, seen from the goal, from which a push starts."""
_TOUCH: Final = 0.28
"""Between the centres of disc and block when they meet, the block's side on."""
SUCCESS: Final = 0.22
"""The block is at the goal when its centre is this close, on the table."""


class Wander:
    """A velocity that turns slowly and, now and then, heads for the block."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._velocity = rng.uniform(-1, 1, 2)
        self._seeking = rng.random() < 0.6

    def __call__(self, disc: np.ndarray, block: np.ndarray) -> np.ndarray:
        if self._rng.random() < 0.05:
            self._seeking = not self._seeking
        self._velocity = 0.8 * self._velocity + 0.45 * self._rng.standard_normal(2)
        if self._seeking:
            way = block - disc
            self._velocity += 0.35 * way / (np.linalg.norm(way) + 1e-6)
        self._velocity = np.clip(self._velocity, -1, 1)
        return self._velocity.copy()


class Push:
    """Goes behind the block and pushes it to ``goal``; ``skill`` 1 knows how, 0 only wanders."""

    def __init__(self, goal: np.ndarray, skill: float, rng: np.random.Generator) -> None:
        self.goal, self.skill = np.asarray(goal, dtype=float), skill
        self._wander, self._rng = Wander(rng), rng

    def __call__(self, disc: np.ndarray, block: np.ndarray) -> np.ndarray:
        wandering = self._wander(disc, block)
        if self._rng.random() >= self.skill:
            return wandering
        return expert(disc, block, self.goal)


def expert(disc: np.ndarray, block: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The velocity of a competent pusher, -1 to 1."""
    way = goal - block
    far = np.linalg.norm(way)
    if far < 0.06:
        return np.zeros(2)
    ahead = way / far
    station = block - _BEHIND * ahead
    offset = disc - block
    along, across = offset @ ahead, offset - (offset @ ahead) * ahead
    if along < -0.12 and np.linalg.norm(across) < 0.10:
        velocity = 1.6 * (block + 0.05 * ahead - disc) + 0.5 * ahead - 2.0 * across
    elif along > -0.15 and np.linalg.norm(across) < 0.42:
        # Around the block, not through it.
        side = across if np.linalg.norm(across) > 1e-3 else np.array([-ahead[1], ahead[0]])
        velocity = 3 * (side / np.linalg.norm(side) - 0.6 * ahead)
    else:
        velocity = 4 * (station - disc)
    return np.clip(velocity, -1, 1)


def foresee(policy: Push, disc: np.ndarray, block: np.ndarray, actions: int) -> np.ndarray:
    """What a policy does after one look: it guesses what its own actions lead to.

    The disc goes where it is driven, a tenth of a second an action, and a block in its way is
    shoved aside; nothing turns.

    Returns:
        float32 (actions, 2).
    """
    disc, block, rows = disc.copy(), block.copy(), []
    for _ in range(actions):
        rows.append(policy(disc, block))
        disc = disc + 0.1 * rows[-1]
        between = block - disc
        far = float(np.linalg.norm(between))
        if far < _TOUCH:
            block = block + between / max(far, 1e-6) * (_TOUCH - far)
    return np.array(rows, np.float32)


def at_goal(block: np.ndarray, goal: np.ndarray) -> bool:
    return bool(np.linalg.norm(block - goal) < SUCCESS)
