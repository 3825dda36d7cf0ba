"""Worlds that have begun, and what their steps show."""

from __future__ import annotations

from typing import Any

import numpy as np

import cosmos_fast as cf
from action_world import pictures


def started(engine: cf.Video2World, count: int, **options: Any) -> cf.World:
    world = cf.World(engine, count)
    world.reset(pictures(count), **options)
    return world


def pixels(step: cf.WorldStep) -> np.ndarray:
    assert step.frames is not None
    return np.asarray(step.frames)
