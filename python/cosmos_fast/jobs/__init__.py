"""Loops around ``generate``: batches, long videos, the best of several.

Nothing here touches a network: everything goes through the engine's public surface.
"""

from cosmos_fast.jobs.batch import check_batch, run_batch
from cosmos_fast.jobs.best_of_n import (
    Candidate,
    Critic,
    Judgement,
    best_of_n,
    generate_candidates,
    judge,
    judgement_of,
)
from cosmos_fast.jobs.critic import ReasoningCritic
from cosmos_fast.jobs.drift import ChunkDrift, drift_table
from cosmos_fast.jobs.job import Defaults
from cosmos_fast.jobs.rollout import Rollout, rollout
from cosmos_fast.jobs.summary import BatchSummary, Row

__all__ = [
    "BatchSummary",
    "Candidate",
    "ChunkDrift",
    "Critic",
    "Defaults",
    "Judgement",
    "ReasoningCritic",
    "Rollout",
    "Row",
    "best_of_n",
    "check_batch",
    "drift_table",
    "generate_candidates",
    "judge",
    "judgement_of",
    "rollout",
    "run_batch",
]
