"""One world of a Gymnasium environment between two resets: which actions its chunk follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cosmos_fast.world.state import WorldState


class Episode:
    """One world between two resets."""

    def __init__(self, state: WorldState, frame: np.ndarray) -> None:
        self.state = state
        """At the start of the chunk."""
        self.frame = frame
        self.age = 0
        self.at = 0
        """Actions of the chunk that have been taken."""
        self.announced: np.ndarray | None = None
        self.followed: Any = None
        """The action that the newest frame follows from, float32 (dim,); None at the start."""
        self.assumed = np.zeros((0, 0), np.float32)
        """The chunk's actions: those taken, then those it was predicted with."""
        self.ahead: WorldState | None = None
        self.frames = np.zeros((0,), np.uint8)

    def surprised_by(self, action: np.ndarray, chunk: int, hold: int) -> np.ndarray | None:
        """Looks at the action if it is time to: what the chunk has to be predicted (again) with,
        float32 (chunk, dim), or None."""
        coming = self.announced
        if coming is not None and len(coming) and np.array_equal(coming[0], action):
            rest = np.concatenate([coming, np.repeat(coming[-1:], chunk, axis=0)])
        elif self.ahead is not None and self.at % hold:
            return None
        else:
            rest = np.repeat(action[None], chunk, axis=0)
        told = np.concatenate([self.assumed[: self.at], rest] if self.at else [rest])[:chunk]
        if self.ahead is not None and np.array_equal(told, self.assumed):
            return None
        return told

    def advance(self, execute: int) -> None:
        self.announced = None
        self.frame = self.frames[self.at].copy()
        self.followed = self.assumed[self.at]
        self.at += 1
        self.age += 1
        if self.at == execute:
            assert self.ahead is not None
            self.state, self.ahead, self.at = self.ahead, None, 0
