"""How balls move: gravity, walls that take a little speed, elastic collisions of equal masses.

Written against the part of the array interface that NumPy and torch share, so that training can run
the very same arithmetic on a device: ``xp`` is the module the arrays belong to.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from cosmos_fast.ballworld.scene import FLOOR, FPS, NUM_FRAMES, SIZE, Scenes

GRAVITY: Final = 160.0
"""Pixels per second squared, downwards."""
RESTITUTION: Final = 0.85
SUBSTEPS: Final = 8
"""Integration steps a frame (semi-implicit Euler)."""


def simulate(scenes: Scenes, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """The centres of the balls in every frame.

    Returns:
        float64 (N, T, K, 2), pixels; frame 0 is the start.
    """
    frames: np.ndarray = roll_out(
        scenes.position,
        scenes.velocity,
        scenes.radius,
        scenes.count == 2,
        scenes.gravity,
        num_frames=num_frames,
        xp=np,
    )
    return frames


def roll_out(
    position: Any,
    velocity: Any,
    radius: Any,
    two_balls: Any,
    gravity: Any,
    *,
    num_frames: int,
    xp: Any,
) -> Any:
    """:func:`simulate` on the arrays of :class:`Scenes`, for NumPy or torch.

    Args:
        position, velocity: float64 (N, K, 2).
        radius: float64 (N, K).
        two_balls, gravity: bool (N,).
        num_frames: frames to return, the start included.
        xp: ``numpy`` or ``torch``.

    Returns:
        float64 (N, T, K, 2).
    """
    step = 1.0 / (FPS * SUBSTEPS)
    x, y = position[..., 0], position[..., 1]
    vx, vy = velocity[..., 0], velocity[..., 1]
    fall = xp.where(gravity, GRAVITY * step, 0.0 * radius[:, 0])[:, None]
    reach = radius[:, 0] + radius[:, 1]
    frames = [position]
    for index in range((num_frames - 1) * SUBSTEPS):
        vy = vy + fall
        x, y = x + vx * step, y + vy * step
        x, vx = _bounce(x, vx, radius, float(SIZE.width) - radius, xp)
        y, vy = _bounce(y, vy, radius, FLOOR - radius, xp)
        vx, vy = _collide(x, y, vx, vy, reach, two_balls, xp)
        if (index + 1) % SUBSTEPS == 0:
            frames.append(xp.stack((x, y), -1))
    return xp.stack(frames, 1)


def _bounce(at: Any, speed: Any, low: Any, high: Any, xp: Any) -> tuple[Any, Any]:
    below, above = at < low, at > high
    speed = xp.where(below, RESTITUTION * abs(speed), speed)
    speed = xp.where(above, -RESTITUTION * abs(speed), speed)
    return xp.where(below, low, xp.where(above, high, at)), speed


def _collide(
    x: Any, y: Any, vx: Any, vy: Any, reach: Any, two_balls: Any, xp: Any
) -> tuple[Any, Any]:
    """Equal masses that meet exchange the parts of their velocities along the line of centres."""
    dx, dy = x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]
    gap = xp.sqrt(dx * dx + dy * dy + 1e-12)
    nx, ny = dx / gap, dy / gap
    closing = (vx[:, 0] - vx[:, 1]) * nx + (vy[:, 0] - vy[:, 1]) * ny
    meet = two_balls & (gap < reach) & (closing > 0)
    passed = xp.where(meet, closing, 0.0 * closing)
    return (
        xp.stack((vx[:, 0] - passed * nx, vx[:, 1] + passed * nx), -1),
        xp.stack((vy[:, 0] - passed * ny, vy[:, 1] + passed * ny), -1),
    )
