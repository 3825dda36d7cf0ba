"""What became of a list of jobs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from cosmos_fast.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.jobs.ledger import Failure

Status = Literal["made", "kept", "failed", "left"]
"""made in this run; kept from an earlier one, whole; failed; left for another run."""


@dataclass(frozen=True)
class Row:
    """One job."""

    index: int
    """From 0, in the order of the list."""
    line: int
    """From 1, in the list's file."""
    status: Status
    video: str | None
    """Path below the folder; None where the entry names none that may be written."""
    seconds: float = 0.0
    """That making it took; 0 where this run did not."""
    failure: Failure | None = None

    def __str__(self) -> str:
        if self.failure is None:
            return f"{self.status}: {self.video}"
        return f"line {self.line}: {self.failure.error}: {self.failure.message}"


@dataclass(frozen=True)
class BatchSummary:
    """All jobs of a run, those of other workers included."""

    attempt: int
    """Number of the run, from 1."""
    made: int
    kept: int
    failed: int
    left: int
    failures: tuple[Row, ...]
    """Rows of the jobs that failed."""
    damaged_bytes: int = 0
    """Of the journal, that belonged to no whole record."""

    @property
    def ok(self) -> bool:
        """Every video is there."""
        return not self.failed and not self.left

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        plain = asdict(self)
        plain["failures"] = [row_dict(row) for row in self.failures]
        return plain

    def __str__(self) -> str:
        told = [f"{self.made} made"]
        told += [f"{self.kept} kept, whole already"] if self.kept else []
        told += [f"{self.failed} failed"] if self.failed else []
        told += [f"{self.left} left"] if self.left else []
        return ", ".join(told)


def row_dict(row: Row) -> dict[str, Any]:
    """A row as plain values; the failure's stand among them."""
    plain = asdict(row)
    return plain | (plain.pop("failure") or {})


def write_summary(path: Path, summary: BatchSummary) -> Path:
    """Writes what ``summary`` says; the file appears whole."""
    document = json.dumps(summary.as_dict(), indent=2, ensure_ascii=False)
    write_atomically(path, f"{document}\n".encode())
    return path
