"""What ``doctor`` finds: a check is a line with a verdict and, where need be, a cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]
"""ok; warn: it runs, with less; fail: something that every run needs is broken."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    verdict: Verdict
    finding: str
    cure: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain values, ready for JSON."""
        return dict(self.__dict__)
