"""A failure of rank 0 that all ranks come to know, and go on after."""

from __future__ import annotations

from typing import Any, Final

from cosmos_fast.errors import GuardrailBlocked, RankLost

_OF_BLOCKED: Final = ("cause", "check", "subject", "record")


def telling(error: Exception) -> dict[str, Any]:
    """What rank 0 tells the others of its failure."""
    told: dict[str, Any] = {"error": f"{error}"}
    if isinstance(error, GuardrailBlocked):
        told["blocked"] = {name: getattr(error, name) for name in _OF_BLOCKED}
    return told


def as_told(told: dict[str, Any]) -> RankLost | GuardrailBlocked:
    """The failure of rank 0 on another one; a verdict is the same everywhere, so that a loop that
    passes over blocked videos goes on alike."""
    failed = RankLost(f"rank 0 failed: {told['error']}", agreed=True)
    if "blocked" not in told:
        return failed
    blocked = GuardrailBlocked(told["error"], **told["blocked"])
    blocked.__cause__ = failed
    return blocked
