"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

TEMPORARY_PREFIX = ".cosmos-fast-"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes ``data`` under a temporary name beside ``path``, flushes it to disk and renames it.

    Raises:
        OSError: the folder is missing or read-only, or the disk is full; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
