"""``cosmos-fast doctor``: what this machine has, what is amiss, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from cosmos_fast.cli.exits import ExitCode
from cosmos_fast.cli.flags import Flag, parse_flags, takes
from cosmos_fast.cli.output import print_json

if TYPE_CHECKING:
    from cosmos_fast.cli.checks import Check

DOCTOR_FLAGS: Final = (
    Flag("offline", None, "Do not ask the hub about the token and the gated repositories."),
    Flag("json", None, "Print one JSON object on stdout."),
    Flag("debug", None, "Show the traceback of an error."),
)


@takes(DOCTOR_FLAGS)
def doctor(**given: object) -> int:
    """Look at this machine: GPU, driver, torch, Triton, ffmpeg, memory, disk, hub access.

    Each line says ok, warn (it runs, with less) or fail (every run needs it), with the cure.
    Ends with exit code 1 if anything fails.
    """
    from itertools import chain

    from cosmos_fast.cli.checks_of_hub import hub_checks
    from cosmos_fast.cli.checks_of_machine import machine_checks

    flags = parse_flags(DOCTOR_FLAGS, given)
    checks = chain(machine_checks(), hub_checks(offline=bool(flags.get("offline"))))
    found = list(checks) if flags.get("json") else _print_as_found(checks)
    failed = [check for check in found if check.verdict == "fail"]
    if flags.get("json"):
        print_json(
            {
                "status": "failed" if failed else "ok",
                "exit_code": int(bool(failed)),
                "checks": [check.as_dict() for check in found],
            }
        )
    return ExitCode.FAILED if failed else ExitCode.OK


def _print_as_found(checks: Iterable[Check]) -> list[Check]:
    """Prints each check at once: some take seconds."""
    found = []
    for check in checks:
        found.append(check)
        print(f"{check.verdict:<4}  {check.name}: {check.finding}")
        if check.verdict != "ok" and check.cure:
            print(f"      {check.cure}")
        sys.stdout.flush()
    return found
