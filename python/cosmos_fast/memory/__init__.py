"""Carries out the plans of the Rust core: where every weight is at every moment."""

from cosmos_fast.memory.budget import Budget
from cosmos_fast.memory.cards import CARDS, Card
from cosmos_fast.memory.executor import Executor
from cosmos_fast.memory.plan import Plan, plan
from cosmos_fast.memory.schedule import Schedule, StagePlan

__all__ = ["CARDS", "Budget", "Card", "Executor", "Plan", "Schedule", "StagePlan", "plan"]
