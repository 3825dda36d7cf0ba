"""What is left of the host's memory, for a process in a container and outside of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from cosmos_fast.memory import host

Writer = Callable[[Path, str, int], None]

GIB = 1 << 30
FILES = (3 * GIB, 17 * GIB)
"""Active and inactive: a checkpoint that was read, and little else."""


def _second(root: Path, limit: str, used: int) -> None:
    active, inactive = FILES
    (root / "memory.max").write_text(f"{limit}\n")
    (root / "memory.current").write_text(f"{used}\n")
    (root / "memory.stat").write_text(
        f"anon 5\nfile {active + inactive}\nactive_file {active}\ninactive_file {inactive}\n"
    )


def _first(root: Path, limit: str, used: int) -> None:
    active, inactive = FILES
    folder = root / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"active_file 1\ninactive_file 1\n"
        f"total_active_file {active}\ntotal_inactive_file {inactive}\n"
    )


@pytest.mark.parametrize("write", [_second, _first], ids=["v2", "v1"])
def test_files_that_a_container_has_read_are_no_reason_against_weights(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, str(32 * GIB), 26 * GIB)
    monkeypatch.setattr(host, "_GROUPS", tmp_path)
    assert host._group_limit() == 26 * GIB, "32, less the 6 that are no pages of files"
    free = host.available_host_bytes()
    assert free is not None
    assert free <= 26 * GIB


@pytest.mark.parametrize(
    ("write", "limit", "left"),
    [(_second, "max", math.inf), (_first, "9223372036854771712", 1 << 62), (None, "", math.inf)],
    ids=["v2", "v1", "no groups"],
)
def test_without_a_limit_the_machine_decides(
    write: Writer | None,
    limit: str,
    left: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if write is not None:
        write(tmp_path, limit, 26 * GIB)
    monkeypatch.setattr(host, "_GROUPS", tmp_path)
    assert host._group_limit() >= left


def test_a_container_that_is_full_has_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _second(tmp_path, str(8 * GIB), 40 * GIB)
    monkeypatch.setattr(host, "_GROUPS", tmp_path)
    assert host.available_host_bytes() == 0
