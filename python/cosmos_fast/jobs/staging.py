"""Where a worker's files lie until they are whole: a folder that dies with it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

PREFIX: Final = ".cosmos-fast-work-"
_SUFFIXES: Final = (".txt", ".json", ".mp4")
"""In the order in which they appear: a video without its manifest cannot exist."""


class Staging:
    """A folder of this worker's own, in the one that its videos belong to.

    It is locked for as long as its worker lives, so that the next worker knows which ones to
    remove. Make it while nobody else makes one (``Ledger.alone``).
    """

    def __init__(self, folder: Path, name: str) -> None:
        """
        Args:
            name: of the list that the videos are made from: dead workers on it are swept away.
        """
        sweep(folder, name)
        self.path: Final = folder / f"{_prefix(name)}{secrets.token_hex(8)}"
        self.path.mkdir()
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)

    def publish(self, draft: Path, video: Path) -> None:
        """Moves ``draft`` and what is beside it to the name of ``video``, the video last.

        Raises:
            OSError: the folder cannot be made or written.
        """
        video.parent.mkdir(parents=True, exist_ok=True)
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                draft.with_suffix(suffix).rename(video.with_suffix(suffix))
        folder = os.open(video.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def clear(self) -> None:
        """Removes what a failed job has left here."""
        for path in self.path.iterdir():
            path.unlink()


def remove_remains(video: Path) -> None:
    """Removes text and manifest of a video that never came: their worker died between the two."""
    if not video.exists():
        for suffix in _SUFFIXES[:2]:
            video.with_suffix(suffix).unlink(missing_ok=True)


def sweep(folder: Path, name: str) -> None:
    """Removes the staging folders of dead workers on the list ``name``.

    While nobody else makes one (``Ledger.alone``).
    """
    for entry in folder.glob(f"{_prefix(name)}*"):
        with contextlib.suppress(OSError):  # alive, gone, or not ours to remove
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry)
            finally:
                os.close(descriptor)


def _prefix(name: str) -> str:
    return f"{PREFIX}{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}-"
