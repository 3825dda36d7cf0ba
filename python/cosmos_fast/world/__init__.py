"""Worlds: states that branch, stepped by actions or prompts, for simulators and planners.

``world.gymnasium_env`` and ``world.lerobot`` need the extra ``gym``.
"""

from cosmos_fast.world.actions import read_annotation
from cosmos_fast.world.advance import advance
from cosmos_fast.world.frames import BatchFrames
from cosmos_fast.world.state import WorldState
from cosmos_fast.world.step import WorldStep
from cosmos_fast.world.timing import StepReport, WorldReport
from cosmos_fast.world.world import Snapshot, World

__all__ = [
    "BatchFrames",
    "Snapshot",
    "StepReport",
    "World",
    "WorldReport",
    "WorldState",
    "WorldStep",
    "advance",
    "read_annotation",
]
