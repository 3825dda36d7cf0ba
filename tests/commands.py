"""A command of the command line, run in the process of the test or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from cosmos_fast.cli import main

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest


def ran(capfd: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = main(arguments)
    sys.stdout.flush()
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def process(
    *arguments: str, at: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cosmos_fast", *arguments],
        cwd=at,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
