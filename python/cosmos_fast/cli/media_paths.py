"""What is read and what is written: looked at, and tried, before anything heavy is loaded."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import stat
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.cli.settings import Settings

_PICTURES: Final = frozenset({"jpeg", "png", "webp"})
_ADDRESS: Final = re.compile(r"[a-zA-Z][a-zA-Z+.-]+:/.*", re.DOTALL)
_OTHERS: Final = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
_MOST_NAMES: Final = 10_000
"""Names of a folder that a misspelt one is compared with."""
_LARGEST_MANIFEST: Final = 64 << 20


def input_problems(settings: Settings) -> list[str]:
    """What is wrong with the picture or video to continue: at most one line."""
    path, flag = settings.input, settings.flag("input")
    if path is None:
        return [f"{flag}: none is given; name a picture or a video"]
    named = f"{flag}: {str(path)!r}"
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return [f"{named} is not there; {_where_else(path)}"]
    except OSError as error:
        return [f"{named} cannot be read: {error.strerror}; check its name and permissions"]
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for holds, name in _OTHERS if holds(status.st_mode)), "thing of its own")
        return [f"{named} is not a file but a {kind}; name a picture or a video"]
    if not os.access(path, os.R_OK):
        return [f"{named} may not be read; change its permissions (chmod a+r), or copy it"]
    if status.st_size == 0:
        return [f"{named} is empty; save it again"]
    return _content_problems(path, named, settings.num_conditional_frames)


def _content_problems(path: Path, named: str, num_frames: int) -> list[str]:
    """What the first bytes tell: a file's content says what it is, not its name."""
    from cosmos_fast._core import inspect
    from cosmos_fast.errors import MediaError

    try:
        with path.open("rb") as file:
            kind, *_ = inspect(file.fileno())
    except MediaError as error:
        return [f"{named} is no picture or video: {error}"]
    except OSError as error:
        return [f"{named} cannot be read: {error.strerror}; check the disk"]
    if num_frames > 1 and kind in _PICTURES:
        return [f"{named} is one picture; {num_frames} frames need a video"]
    return []


def _where_else(path: Path) -> str:
    """A cure for a name that leads nowhere."""
    if _ADDRESS.match(str(path)):
        return "addresses are not read: fetch the file and name it here"
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    except OSError:
        return f"there is no folder {str(path.parent)!r} that could be read"
    near = difflib.get_close_matches(path.name, names, 1)
    return f"did you mean {str(path.with_name(near[0]))!r}?" if near else "check the name"


def output_problems(settings: Settings) -> list[str]:
    """What is wrong with the place of the video: at most one line. Leaves nothing behind."""
    path, flag = settings.output, settings.flag("output")
    named = f"{flag}: {str(path)!r}"
    if path.is_dir():
        return [f"{named} is a folder; name a file"]
    pictures = path.parent if path.suffix.lower() == ".png" else None
    if pictures is not None and pictures.is_dir() and any(pictures.iterdir()):
        return [f"{flag}: {str(pictures)!r} holds files; name a folder that is new or empty"]
    if settings.input is not None and path.resolve() == settings.input.resolve():
        return [f"{named} would replace the input; choose another name"]
    if (other := _owner_of_companions(path)) is not None:
        return [
            f"{named} would replace the .txt and .json that stand beside {other!r}; choose another "
            f"name, or move that video away with them"
        ]
    return folder_problems(flag.replace("video_save_name", "video_save_folder"), path.parent)


def folder_problems(flag: str, folder: Path) -> list[str]:
    """What is wrong with a folder that is to be made or written to: at most one line. Leaves
    nothing behind.

    Args:
        flag: that names it.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return [f"{flag}: {str(folder)!r} is not a folder; choose another one"]
    return _trial_problems(flag, folder)


def _trial_problems(flag: str, folder: Path) -> list[str]:
    """Permissions do not tell everything (/proc, a read-only disk): something is made and removed
    again."""
    from cosmos_fast.files import TEMPORARY_PREFIX

    try:
        Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder)).rmdir()
    except OSError as error:
        why = error.strerror
        return [f"{flag}: nothing may be written to {str(folder)!r} ({why}); choose another folder"]
    return []


def _owner_of_companions(path: Path) -> str | None:
    """The other video, still there, that the manifest at this one's place belongs to."""
    from cosmos_fast.clip import companions

    _, manifest = companions(path)
    try:
        if manifest.stat().st_size > _LARGEST_MANIFEST:
            return None
        document = json.loads(manifest.read_bytes())
        owner = manifest.parent / document["video"]["file"]
        # Of a folder of pictures the manifest names the pattern.
        there = owner.parent if owner.suffix.lower() == ".png" else owner
        return str(owner) if owner != path and there.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def no_empty_folder(output: Path) -> Iterator[None]:
    """Folders that were made for ``output`` go again if the block fails and nothing is in them."""
    missing = [folder for folder in output.absolute().parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
