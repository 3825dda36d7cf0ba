"""Carries out the plans of the Rust core: where every weight is at every moment."""

from cosmos_fast.memory.cards import CARDS, Card
from cosmos_fast.memory.plan import Budget, Plan, StagePlan, plan

__all__ = ["CARDS", "Budget", "Card", "Plan", "StagePlan", "plan"]
