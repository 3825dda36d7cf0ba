"""What the ball world looks like: anti-aliased discs, lit from the upper left, over a soft shadow.

As in :mod:`cosmos_fast.ballworld.motion`, ``xp`` is NumPy or torch.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from cosmos_fast.ballworld.motion import simulate
from cosmos_fast.ballworld.scene import FLOOR, NUM_FRAMES, PALETTE, SIZE, Scenes

LIGHT: Final = (0.6, 0.8)
"""Unit vector in which the light travels: to the right and downwards."""


def render(scenes: Scenes, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """The scenes as video.

    Returns:
        uint8 (N, T, 96, 160, 3), RGB.
    """
    planes, _ = paint(
        simulate(scenes, num_frames).astype(np.float32),
        scenes.radius.astype(np.float32),
        PALETTE[scenes.colour],
        (scenes.count == 2).astype(np.float32),
        scenes.background,
        columns=np.arange(SIZE.width, dtype=np.float32)[None] + np.float32(0.5),
        rows=np.arange(SIZE.height, dtype=np.float32) + np.float32(0.5),
        xp=np,
    )
    return np.stack([plane.astype(np.uint8) for plane in planes], axis=-1)


def paint(
    centre: Any,
    radius: Any,
    colour: Any,
    second: Any,
    background: Any,
    *,
    columns: Any,
    rows: Any,
    xp: Any,
) -> tuple[list[Any], Any]:
    """:func:`render` on float32 arrays, for NumPy or torch, of all columns or some.

    Args:
        centre: (N, T, K, 2), pixels.
        radius: (N, K), pixels.
        colour: (N, K, 3), RGB in 0-1.
        second: (N,), 1 where the scene has a second ball, else 0.
        background: (N, 3), RGB in 0-1.
        columns: (N or 1, W), x of the pixel centres to paint.
        rows: (H,), y of the pixel centres to paint.
        xp: ``numpy`` or ``torch``.

    Returns:
        Three planes (N, T, H, W), red, green and blue: whole numbers from 0 to 255 as float32.
        The nearness to a ball, (N, T, H, W): 1 on and close to one, 0 elsewhere.
    """
    x = columns[:, None, None, :]
    y = rows[None, None, :, None]
    brightness = 1.6 - 0.6 * y / SIZE.height
    on_floor = xp.where(y > FLOOR, 1.0 + 0.0 * y, 0.0 * y)
    planes = [
        background[:, channel, None, None, None] * brightness * (1.0 - 0.5 * on_floor)
        + 0.25 * on_floor
        for channel in range(3)
    ]
    balls = [_Ball(centre[:, :, k], radius[:, k], x, y, xp) for k in range(2)]
    there = [1.0, second[:, None, None, None]]
    for ball, present in zip(balls, there, strict=True):
        shadow = 1.0 - present * on_floor * ball.shadow
        planes = [plane * shadow for plane in planes]
    nearness = 0.0
    for k, (ball, present) in enumerate(zip(balls, there, strict=True)):
        cover = present * ball.cover
        nearness = nearness + present * ball.nearness
        planes = [
            plane * (1.0 - cover) + cover * ball.shade * colour[:, k, channel, None, None, None]
            for channel, plane in enumerate(planes)
        ]
    return [xp.floor(plane * 255.0 + 0.5) for plane in planes], xp.clip(nearness, 0.0, 1.0)


class _Ball:
    """One ball of each scene as maps over (N, T, H, W)."""

    def __init__(self, centre: Any, radius: Any, x: Any, y: Any, xp: Any) -> None:
        size = radius[:, None, None, None]
        dx, dy = x - centre[:, :, 0, None, None], y - centre[:, :, 1, None, None]
        distance = xp.sqrt(dx * dx + dy * dy)
        self.cover = xp.clip(size - distance + 0.5, 0.0, 1.0)
        self.nearness = xp.clip((size - distance + 4.0) / 2.0, 0.0, 1.0)
        self.shade = xp.clip(0.9 - 0.25 * (LIGHT[0] * dx + LIGHT[1] * dy) / size, 0.5, 1.0)
        height = FLOOR - centre[:, :, 1, None, None] - size
        spread = size * (1.0 + height / 120.0)
        across, along = dx / spread, (y - FLOOR - 4.0) / 4.0
        self.shadow = (
            0.5
            * xp.exp(-across * across - along * along)
            * xp.exp(-xp.clip(height, 0.0, 99.0) / 45.0)
        )
