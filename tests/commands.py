"""A command of the command line, run in the process of the test."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cosmos_fast.cli import main

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


def ran(capfd: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = main(arguments)
    sys.stdout.flush()
    captured = capfd.readouterr()
    return code, captured.out, captured.err
