"""Worlds: states that branch, stepped by actions or prompts, for simulators and planners.

``world.gym`` needs the extra ``gym``.
"""

from cosmos_fast.types import Camera
from cosmos_fast.world.actions import load_actions, read_annotation
from cosmos_fast.world.advance import advance
from cosmos_fast.world.frames import BatchFrames
from cosmos_fast.world.planning import CostModel, cross_entropy_search
from cosmos_fast.world.rollout import Rollout, load_policy, rollout_actions, rollout_policy
from cosmos_fast.world.state import WorldState
from cosmos_fast.world.step import WorldStep
from cosmos_fast.world.timing import StepReport, WorldReport
from cosmos_fast.world.world import Snapshot, World

__all__ = [
    "BatchFrames",
    "Camera",
    "CostModel",
    "Rollout",
    "Snapshot",
    "StepReport",
    "World",
    "WorldReport",
    "WorldState",
    "WorldStep",
    "advance",
    "cross_entropy_search",
    "load_actions",
    "load_policy",
    "read_annotation",
    "rollout_actions",
    "rollout_policy",
]
