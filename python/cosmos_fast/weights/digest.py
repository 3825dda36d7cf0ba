"""SHA-256 of checkpoint files, computed once: remembered by path, size, time and inode."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from cosmos_fast.config import Environment
from cosmos_fast.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

logger = logging.getLogger(__name__)

_THREADS = 4
_FOLDER = "digests"


def digest(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of the file at ``path``, in hexadecimal.

    Safe from several threads and processes: each remembered digest is a file of its own that
    appears whole. A cache folder that cannot be written costs time, nothing else.

    Args:
        path: the file.
        cache: folder of remembered digests; by default below cosmos-fast's cache folder.
    """
    path = path.resolve()
    note, seen = _note_of(path, cache), _seen(path)
    if (known := _recall(note, seen)) is not None:
        return known
    with path.open("rb") as file:
        computed = hashlib.file_digest(file, "sha256").hexdigest()
    if _seen(path) == seen:
        _remember(note, {**seen, "sha256": computed})
    return computed


def remember(path: Path, sha256: str, cache: Path | None = None) -> None:
    """Notes the digest of a file that was just computed elsewhere, as under another name."""
    path = path.resolve()
    _remember(_note_of(path, cache), {**_seen(path), "sha256": sha256})


def digest_all(paths: Iterable[Path], cache: Path | None = None) -> dict[Path, str]:
    """:func:`digest` of every file, several at a time."""
    files = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(files, pool.map(lambda path: digest(path, cache), files), strict=True))


def _note_of(path: Path, cache: Path | None) -> Path:
    folder = cache or Environment.read().cache / _FOLDER
    return folder / (hashlib.sha256(str(path).encode()).hexdigest()[:32] + ".json")


def _seen(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "path": str(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
    }


def _recall(note: Path, seen: dict[str, Any]) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(note.read_bytes())
        if isinstance(known, dict) and known.items() >= seen.items():
            value = known.get("sha256")
            if isinstance(value, str) and len(value) == 64:
                return value
    return None


def _remember(note: Path, known: dict[str, Any]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps(known, indent=1).encode())
    except OSError as error:
        logger.debug("digest of %s not remembered: %s", known["path"], error)
