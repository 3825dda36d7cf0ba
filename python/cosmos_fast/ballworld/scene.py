"""What there is in the ball world, and how scenes are drawn at random.

Axes: N scenes, K balls (two slots, the second may be empty), T frames. Positions are (x, y) pixels,
x to the right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Literal, NamedTuple

import numpy as np

from cosmos_fast.errors import InputError
from cosmos_fast.types import PixelFrames, Size

SIZE: Final = Size(96, 160)
FPS: Final = 16.0
NUM_FRAMES: Final = PixelFrames(33)
FLOOR: Final = 86.0
"""The y of the floor line."""

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (220, 50, 47),
    "green": (64, 180, 75),
    "blue": (55, 110, 230),
    "yellow": (235, 205, 60),
    "purple": (150, 70, 190),
    "orange": (240, 140, 40),
    "white": (240, 240, 240),
}
PALETTE: Final = np.array(list(COLOURS.values()), dtype=np.float32) / 255
"""float32 (7, 3), RGB in 0-1, in the order of :data:`COLOURS`."""


class Motion(NamedTuple):
    """How a ball moves at the start."""

    phrase: str
    velocity: tuple[float, float]
    """Pixels per second."""


SLOW: Final = 35.0
QUICK: Final = 95.0
_DIRECTIONS: Final = (
    ("to the left", (-1.0, 0.0)),
    ("to the right", (1.0, 0.0)),
    ("upwards", (0.0, -1.0)),
    ("downwards", (0.0, 1.0)),
)
MOTIONS: Final[tuple[Motion, ...]] = (
    Motion("is at rest", (0.0, 0.0)),
    *(
        Motion(f"moves {how} {where}", (x * speed, y * speed))
        for how, speed in (("slowly", SLOW), ("quickly", QUICK))
        for where, (x, y) in _DIRECTIONS
    ),
)
VELOCITIES: Final = np.array([motion.velocity for motion in MOTIONS])
REST_SHARE: Final = 0.15

Split = Literal["train", "validation", "held-out"]
_STREAMS: Final[dict[Split, int]] = {"train": 1, "validation": 2, "held-out": 3}


@dataclass(frozen=True)
class Scenes:
    """N scenes, as arrays over N. The second ball's slot is meaningless where ``count`` is 1."""

    count: np.ndarray
    """int64 (N,): balls, 1 or 2."""
    colour: np.ndarray
    """int64 (N, K): index into :data:`COLOURS`."""
    motion: np.ndarray
    """int64 (N, K): index into :data:`MOTIONS`."""
    radius: np.ndarray
    """float64 (N, K): pixels."""
    position: np.ndarray
    """float64 (N, K, 2): centre at frame 0."""
    gravity: np.ndarray
    """bool (N,)."""
    background: np.ndarray
    """float32 (N, 3): RGB in 0-1 at the bottom edge."""

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: slice | np.ndarray) -> Scenes:
        return Scenes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def velocity(self) -> np.ndarray:
        """float64 (N, K, 2): pixels per second at frame 0."""
        velocity: np.ndarray = VELOCITIES[self.motion]
        return velocity


def sample(number: int, seed: int, split: Split = "train") -> Scenes:
    """Draws scenes. The splits never share a random stream.

    Args:
        number: how many scenes, at least 1.
        seed: 0 or above; the same seed and split give the same scenes.
        split: what the scenes are for.

    Raises:
        InputError: ``number`` or ``seed`` is out of range.
    """
    if number < 1 or seed < 0:
        raise InputError(f"{number = }, {seed = }: at least 1 scene and a seed of 0 or above")
    random = np.random.default_rng([_STREAMS[split], seed])
    scenes = _draw(number, random)
    while (bad := np.flatnonzero(_overlap(scenes))).size:
        again = _draw(bad.size, random)
        for field in fields(Scenes):
            getattr(scenes, field.name)[bad] = getattr(again, field.name)
    return scenes


def _draw(number: int, random: np.random.Generator) -> Scenes:
    left_then_right = np.stack(
        (random.uniform(16, 68, number), random.uniform(92, 144, number)), axis=1
    )
    swapped = random.random(number) < 0.5
    x = np.where(swapped[:, None], left_then_right[:, ::-1], left_then_right)
    y = random.uniform(18, 68, (number, 2))
    moving = random.random((number, 2)) >= REST_SHARE
    return Scenes(
        count=random.integers(1, 3, number),
        colour=random.random((number, len(COLOURS))).argsort(axis=1)[:, :2],
        motion=np.where(moving, random.integers(1, len(MOTIONS), (number, 2)), 0),
        radius=random.uniform(7, 13, (number, 2)),
        position=np.stack((x, y), axis=2),
        gravity=random.random(number) < 0.5,
        background=random.uniform(0.08, 0.30, (number, 3)).astype(np.float32),
    )


def _overlap(scenes: Scenes) -> np.ndarray:
    gap = np.linalg.norm(scenes.position[:, 0] - scenes.position[:, 1], axis=1)
    touching: np.ndarray = (scenes.count == 2) & (gap < scenes.radius.sum(axis=1) + 1)
    return touching
