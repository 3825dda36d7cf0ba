"""The audit: what was not looked at is never called clean, and exceptions end."""

from __future__ import annotations

import datetime
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
assert SPEC
assert SPEC.loader
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)

TODAY = datetime.date(2026, 11, 22)
FUTURE = {
    "name": "future",
    "version": "1.0.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2025-50817"], "fix_versions": []}],
}
CLEAN = {"name": "rich", "version": "15.0.0", "vulns": []}
FAULTY = {
    "name": "pillow",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-2", "aliases": [], "fix_versions": ["1.1"]}],
}
SKIPPED = {"name": "numpy", "skip_reason": "Dependency not found and could not be audited"}


def judged(*dependencies: dict[str, Any], day: datetime.date = TODAY) -> Any:
    return audit.judge_python(json.dumps({"dependencies": dependencies, "fixes": []}), day)


def test_a_skipped_dependency_is_a_gap_and_not_clean() -> None:
    finding = judged(SKIPPED, CLEAN)
    assert finding.gaps == ("numpy",)
    assert finding.audited == 1


def test_an_advisory_is_a_fault_with_its_cure() -> None:
    assert judged(FAULTY, CLEAN).faults == ("pillow 1.0: PYSEC-2, fixed in 1.1",)


def test_the_exception_holds_until_its_day_and_not_longer() -> None:
    (exception,) = audit.EXCEPTIONS
    assert judged(FUTURE, day=exception.until).faults == ()
    assert judged(FUTURE, day=exception.until + datetime.timedelta(days=1)).faults


def test_the_exception_is_for_its_own_package() -> None:
    assert judged(FUTURE | {"name": "past"}).faults


@pytest.mark.parametrize("exception", audit.EXCEPTIONS, ids=lambda one: one.advisory)
def test_every_exception_is_explained_in_security_md(exception: Any) -> None:
    rows = (ROOT / "SECURITY.md").read_text("utf-8").splitlines()
    (row,) = [row for row in rows if row.startswith(f"| {exception.advisory} | `")]
    assert exception.package in row
    assert row.endswith(f"| {exception.until.isoformat()} |")
