"""Which content of its input a video was made from, so that a changed picture is noticed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def mark_of(path: Path) -> dict[str, Any]:
    """Size, time and digest of a file, ready for JSON.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256}


def is_as_marked(path: Path, mark: dict[str, Any] | None) -> bool:
    """Whether a file still holds what :func:`mark_of` saw; True without a mark.

    It is read only where its time has changed, as a copy's has.
    """
    if mark is None:
        return True
    try:
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) == (mark["bytes"], mark["mtime_ns"]):
            return True
        return bool(status.st_size == mark["bytes"] and mark_of(path)["sha256"] == mark["sha256"])
    except OSError:
        return False
