"""Loops around ``generate``: batches, long videos, the best of several.

Nothing here touches a network or a tensor: everything goes through the engine's public surface.
"""

from cosmos_fast.jobs.batch import run_batch
from cosmos_fast.jobs.job import Defaults
from cosmos_fast.jobs.summary import BatchSummary, Row

__all__ = ["BatchSummary", "Defaults", "Row", "run_batch"]
