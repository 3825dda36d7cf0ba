"""Names and numbers that both sides of the format agree on."""

from __future__ import annotations

import string
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

VERSION: Final = "v3.0"
INFO: Final = "meta/info.json"
STATISTICS: Final = "meta/stats.json"
TASKS: Final = "meta/tasks.parquet"
EPISODES: Final = "meta/episodes"
NUMBERED: Final = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES_FILE: Final = f"{EPISODES}/{NUMBERED}.parquet"
DATA_FILE: Final = f"data/{NUMBERED}.parquet"
VIDEO_FILE: Final = f"videos/{{video_key}}/{NUMBERED}.mp4"
FILES_A_CHUNK: Final = 1000
ACTION: Final = "action"
CAMERA_PREFIX: Final = "observation.images."
SYNTHETIC: Final = "synthetic"
"""Column of the episodes: true for generated ones."""
PROVENANCE: Final = "provenance"
"""Column of the episodes: how each was made, as JSON."""


def numbered_file(root: Path, template: str, **numbers: Any) -> Path:
    """The file below ``root`` that a template of ``info.json`` names.

    Raises:
        InputError: it asks for something else than numbers and keys, or leads out of the dataset.
    """
    try:
        asked = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if odd := asked - set(numbers):
            raise ValueError(f"unknown {', '.join(sorted(odd))}")
        path = PurePosixPath(template.format(**numbers))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"{root / INFO}: {template!r} is no name of files: {error}") from error
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{root / INFO}: {str(path)!r} leads out of the dataset")
    return root / path
