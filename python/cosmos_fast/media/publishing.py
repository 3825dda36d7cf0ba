"""Files and folders that appear whole or not at all, whatever ends the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosmos_fast.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PREFIX: Final = ".cosmos-fast-draft-"
"""Names under this prefix belong to drafts that are being written, or were when something died."""

_GRACE_SECONDS: Final = 60
"""A younger draft is left alone: its writer may not hold the lock yet."""
_GRACE_SECONDS_ELSEWHERE: Final = 86_400
"""The same for drafts of other machines on a network drive, whose locks may not be seen here."""


class Draft:
    """A file on its way to ``path``.

    Where the file system can, it has no name until it is published, so that not even SIGKILL
    leaves anything behind. Elsewhere it has a name that the next draft in that folder sweeps away
    once nobody holds its lock.
    """

    def __init__(self, path: Path, *, nameless: bool = True) -> None:
        """
        Raises:
            MediaError: the folder is missing and cannot be made, or cannot be written; or ``path``
                is something other than a file.
        """
        self._path, self._name = path, _fresh_name()
        self._former = _fresh_name()
        self._named = self._appeared = self._replaced = False
        self._folder = _open_folder(path)
        try:
            self.descriptor: Final = self._open(nameless)
            _lock(self.descriptor)
        except OSError as error:
            os.close(self._folder)
            raise _failure(path, error) from error

    def _open(self, nameless: bool) -> int:
        if nameless:
            with contextlib.suppress(OSError):  # NFS and FAT cannot
                return os.open(".", os.O_TMPFILE | os.O_RDWR, 0o666, dir_fd=self._folder)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW
        descriptor = os.open(self._name, flags, 0o666, dir_fd=self._folder)
        self._named = True
        return descriptor

    @property
    def readable(self) -> Path:
        """A path under which this process can read the draft, before it is published."""
        return Path(f"/proc/self/fd/{self.descriptor}")

    def write(self, data: bytes) -> None:
        """Appends ``data``.

        Raises:
            MediaError: the disk is full.
        """
        try:
            with os.fdopen(os.dup(self.descriptor), "wb") as file:
                file.write(data)
        except OSError as error:
            raise _failure(self._path, error) from error

    def ready(self) -> None:
        """Flushes the file to disk; whatever can run out has been taken after this.

        Raises:
            MediaError: the disk is full, or the folder has gone.
        """
        try:
            os.fsync(self.descriptor)
            if not self._named:
                source = os.fspath(self.readable)
                os.link(source, self._name, dst_dir_fd=self._folder, follow_symlinks=True)
                self._named = True
        except OSError as error:
            raise _failure(self._path, error) from error

    def appear(self) -> None:
        """Gives the file its name, in the place of what was there.

        Raises:
            MediaError: the folder has gone.
        """
        name, folder = self._path.name, self._folder
        with contextlib.suppress(OSError):  # nothing was there, or the file system has no links
            former = self._former
            os.link(name, former, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            self._replaced = True
        try:
            os.rename(self._name, name, src_dir_fd=folder, dst_dir_fd=folder)
            self._named, self._appeared = False, True
            os.fsync(self._folder)
        except OSError as error:
            raise _failure(self._path, error) from error

    def undo(self) -> None:
        """Takes the file back that has appeared, and restores what was there."""
        if not self._appeared:
            return
        name, folder = self._path.name, self._folder
        with contextlib.suppress(OSError):
            if self._replaced:
                os.rename(self._former, name, src_dir_fd=folder, dst_dir_fd=folder)
                self._replaced = False
            else:
                os.unlink(name, dir_fd=folder)

    def discard(self) -> None:
        """Leaves nothing behind; after ``appear`` it only closes."""
        if self._folder < 0:
            return
        for name, exists in ((self._name, self._named), (self._former, self._replaced)):
            if exists:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._folder)
        os.close(self.descriptor)
        os.close(self._folder)
        self._folder = -1


class FolderDraft:
    """A folder of files on its way to ``path``, under a name that the next draft sweeps away."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            MediaError: ``path`` exists and is not an empty folder, or its parent cannot be written.
        """
        self._path, self._name = path, _fresh_name()
        self._parent = _open_folder(path, folder=True)
        try:
            os.mkdir(self._name, dir_fd=self._parent)
            self.descriptor: Final = os.open(
                self._name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._parent
            )
            _lock(self.descriptor)
        except OSError as error:
            os.close(self._parent)
            raise _failure(path, error) from error

    @property
    def readable(self) -> Path:
        """A path under which this process can read the folder, before it is published."""
        return Path(f"/proc/self/fd/{self.descriptor}")

    def ready(self) -> None:
        """Flushes all files to disk.

        Raises:
            MediaError: the disk is full.
        """
        try:
            for entry in os.scandir(self.descriptor):
                with _opened(entry.name, self.descriptor) as file:
                    os.fsync(file)
            os.fsync(self.descriptor)
        except OSError as error:
            raise _failure(self._path, error) from error

    def appear(self) -> None:
        """Gives the folder its name.

        Raises:
            MediaError: somebody else made the folder.
        """
        try:
            os.rename(self._name, self._path.name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            self._name = ""
            os.fsync(self._parent)
        except OSError as error:
            raise _failure(self._path, error) from error

    def undo(self) -> None:
        """Takes the folder back that has appeared."""
        if not self._name:
            shutil.rmtree(self._path.name, ignore_errors=True, dir_fd=self._parent)

    def discard(self) -> None:
        """Leaves nothing behind; after ``appear`` it only closes."""
        if self._parent < 0:
            return
        if self._name:
            shutil.rmtree(self._name, ignore_errors=True, dir_fd=self._parent)
        os.close(self.descriptor)
        os.close(self._parent)
        self._parent = -1


def publish(drafts: Sequence[Draft | FolderDraft]) -> None:
    """All of them appear, in order, or none: what was there before then stays.

    A process that is killed between two names leaves the first of them, each whole.

    Raises:
        MediaError: the disk is full, or a folder has gone; nothing is left behind.
    """
    try:
        for draft in drafts:
            draft.ready()
        try:
            for draft in drafts:
                draft.appear()
        except BaseException:
            for draft in reversed(drafts):
                draft.undo()
            raise
    finally:
        for draft in drafts:
            draft.discard()


def _fresh_name() -> str:
    return f"{PREFIX}{_machine()}-{secrets.token_hex(8)}"


def _machine() -> str:
    """Tells this machine, since it was started, from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
    except OSError:
        return "unknown"


def _lock(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # some network drives know no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _failure(path: Path, error: OSError) -> MediaError:
    return MediaError(
        f"{path}: cannot be written ({error.strerror}); check the folder, its permissions and "
        "the space on its disk"
    )


@contextlib.contextmanager
def _opened(name: str, folder: int) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_folder(path: Path, *, folder: bool = False) -> int:
    """The folder that ``path`` is to appear in, made if need be, rid of dead drafts."""
    try:
        if not path.name or "\0" in str(path):
            raise MediaError(f"{str(path)!r} names no file to write; give it a name")
        path.parent.mkdir(parents=True, exist_ok=True)
        if _stands_in_the_way(path, folder):
            expected = "an empty folder or nothing" if folder else "a file or nothing"
            raise MediaError(f"{path}: {expected} may be there; choose another name")
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _failure(path, error) from error
    with contextlib.suppress(OSError):  # what cannot be swept now is for another time
        _sweep(descriptor)
    return descriptor


def _stands_in_the_way(path: Path, folder: bool) -> bool:
    """Whether ``path`` is something that a draft must not replace: a device, a full folder."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if folder:
        return not stat.S_ISDIR(mode) or any(path.iterdir())
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode))


def _sweep(folder: int) -> None:
    """Removes drafts of this user whose writers are dead."""
    for entry in os.scandir(folder):
        if entry.name.startswith(PREFIX):
            with contextlib.suppress(OSError):  # gone, or not ours to remove
                _remove_if_dead(entry.name, folder)


def _remove_if_dead(name: str, folder: int) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    draft = os.open(name, flags, dir_fd=folder)
    try:
        found = os.fstat(draft)
        is_ours = name.startswith(f"{PREFIX}{_machine()}-")
        grace = _GRACE_SECONDS if is_ours else _GRACE_SECONDS_ELSEWHERE
        if found.st_uid != os.geteuid() or time.time() - found.st_mtime < grace:
            return
        fcntl.flock(draft, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its writer lives
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(draft)
