"""Paths that a list names, kept below the folder they belong to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cosmos_fast.errors import InputError


class Root:
    """A folder that paths from a list of jobs may not leave: not by .., not by a symbolic link."""

    def __init__(self, folder: str | os.PathLike[str], cure: str) -> None:
        """
        Args:
            folder: may itself be reached through symbolic links.
            cure: what to do about a path that leads elsewhere.
        """
        folder = Path(folder).expanduser()
        self.path = folder.resolve()
        self._named = Path(os.path.abspath(folder))  # noqa: PTH100 (resolve follows links)
        self._cure = cure

    def place(self, name: str, given: str) -> Path:
        """The path that ``given`` means, relative to the root or absolute below it.

        Raises:
            InputError: it leads out of the root, or through a symbolic link.
        """
        if not given.strip() or "\0" in given:
            raise InputError(f"{name} = {given!r}: a path that is not empty is needed")
        relative = self._relative(name, given)
        if ".." in relative.parts:
            raise InputError(
                f"{name} = {given!r}: .. leads out of {self.path}; write the path without it"
            )
        if not relative.parts:
            raise InputError(f"{name} = {given!r}: it names the folder itself; name a file")
        place = self.path
        for part in relative.parts:
            place /= part
            if _is_link(place, name, given):
                raise InputError(
                    f"{name} = {given!r}: {place} is a symbolic link, which may lead anywhere; "
                    "name the file it stands for"
                )
        return place

    def _relative(self, name: str, given: str) -> Path:
        path = Path(given)
        if not path.is_absolute():
            return path
        for root in (self._named, self.path):
            if path.is_relative_to(root):
                return path.relative_to(root)
        raise InputError(f"{name} = {given!r}: it is not below {self.path}; {self._cure}")


def _is_link(place: Path, name: str, given: str) -> bool:
    try:
        return stat.S_ISLNK(place.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # a name too long, a folder that may not be entered
        raise InputError(f"{name} = {given!r}: {error.strerror}") from error


def check_input(name: str, path: Path) -> None:
    """
    Raises:
        InputError: ``path`` is not a readable file with something in it.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{name} = {str(path)!r}: {error.strerror}; check the path") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{name} = {str(path)!r}: it is no file; name a picture or a video")
    if found.st_size == 0:
        raise InputError(f"{name} = {str(path)!r}: the file is empty; name a picture or a video")
