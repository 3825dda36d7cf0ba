"""What the journal of a folder says: which jobs were begun, are done, or failed, and by whom.

A job is known by its key (all that makes its video), so that a list may grow or be reordered
between two runs, and a job whose arguments changed is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cosmos_fast._core import Journal
from cosmos_fast.errors import InputError
from cosmos_fast.files import write_atomically
from cosmos_fast.jobs.inputs import is_as_marked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.jobs.job_list import JobList

MOST_STARTS: Final = 2
"""Times that a job may end its worker before it counts as failed."""
_LONGEST_MESSAGE: Final = 4000
_LEASES: Final = 1 << 60
"""Items below are videos; those from here on are runs that are under way, by their number."""


class Outcome(NamedTuple):
    """How a job ended."""

    attempt: int
    """The run that it belongs to, from 1."""
    sha256: str | None
    """Of the video; None where it failed."""
    failure: Failure | None
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why a job failed."""

    code: int
    """What a command that makes this one video would exit with: 1 failed, 2 usage, 3 blocked."""
    error: str
    """Name of the error's type."""
    message: str


class _Begun(NamedTuple):
    attempt: int
    times: int
    """Generations that were begun in this run."""
    ended: int = 0
    """Of them, those that came to their end."""


class Ledger:
    """The state of all jobs of a folder, shared with every other worker on it.

    Every change is in the journal before anything relies on it. Safe between threads.
    """

    def __init__(self, folder: Path, journal: Journal, attempt: int) -> None:
        self.folder: Final = folder
        self._journal = journal
        self._attempt = attempt
        self._guard = threading.Lock()
        self._outcomes: dict[str, Outcome] = {}
        self._begun: dict[str, _Begun] = {}
        self._last_attempt = 0
        self._last_list = ""
        self._resumes = False
        self._held: set[int] = set()

    @classmethod
    def begin(cls, folder: Path, listed: JobList, *, resume: bool) -> Ledger:
        """Starts a run.

        Args:
            folder: made if need be; the journal in it has the name of the list.
            resume: take up what earlier runs left, or share the folder with those that go on.

        Raises:
            InputError: ``resume`` is False, and a run was begun here that made something or is
                still under way.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = journal_of(folder, listed)
        ledger = cls(folder, Journal(path, fresh=False), 0)
        with ledger.alone():
            ledger.refresh()
            if not resume:
                ledger._refuse_earlier_runs(path)
            ledger._attempt = ledger._last_attempt + 1
            # Until this process ends: a run that has not come to its first job is one as well.
            ledger._journal.lease(_LEASES + ledger._attempt)
            ledger._note(
                t="begin",
                attempt=ledger._attempt,
                list=listed.digest,
                resume=resume,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        return ledger

    @classmethod
    def check(cls, folder: Path, listed: JobList, *, resume: bool) -> None:
        """
        Raises:
            InputError: :meth:`begin` would refuse.
        """
        path = journal_of(folder, listed)
        if path.exists():
            ledger = cls(folder, Journal(path, fresh=False), 0)
            ledger.refresh()
            if not resume:
                ledger._refuse_earlier_runs(path)
            ledger.close()

    def _refuse_earlier_runs(self, path: Path) -> None:
        if any(map(self._is_under_way, range(1, self._last_attempt + 1))):
            self.close()
            raise InputError(
                f"{path.parent}: another run of this list is under way; resume it to share the "
                f"folder with it, or wait until it has ended"
            )
        if self._begun or any(one.sha256 for one in self._outcomes.values()):
            finished = len(self._outcomes)
            self.close()
            raise InputError(
                f"{path.parent} holds an earlier run of this list, which finished {finished} jobs: "
                f"resume it, or remove {path} to make all videos again"
            )

    def _is_under_way(self, attempt: int) -> bool:
        if not self._journal.lease(_LEASES + attempt):
            return True
        self._journal.release(_LEASES + attempt)
        return False

    @classmethod
    def join(cls, folder: Path, listed: JobList, attempt: int) -> Ledger:
        """Takes part in a run that somebody else began.

        Raises:
            InputError: no such run, or it has another list.
        """
        ledger = cls(folder, Journal(journal_of(folder, listed), fresh=False), attempt)
        ledger.refresh()
        if attempt > ledger._last_attempt or listed.digest != ledger._last_list:
            ledger.close()
            raise InputError(f"{folder}: no run {attempt} of this list was begun here")
        return ledger

    @property
    def attempt(self) -> int:
        """Number of this run."""
        return self._attempt

    @property
    def damaged(self) -> int:
        """Bytes of the journal that belonged to no whole record."""
        return self._journal.damaged

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other process begins, claims or notes anything in the block."""
        self._journal.lock()
        try:
            yield
        finally:
            with contextlib.suppress(InputError):  # closed in the block
                self._journal.unlock()

    def close(self) -> None:
        """Ends all leases."""
        self._journal.close()

    def refresh(self) -> None:
        """Reads what others have noted."""
        with self._guard:
            for record in self._journal.read():
                self._take(json.loads(record))

    def settled(self, key: str) -> Outcome | None:
        """How the job ended in this run, or a later one."""
        outcome = self._outcomes.get(key)
        return outcome if outcome is not None and outcome.attempt >= self._attempt else None

    def outcome(self, key: str) -> Outcome | None:
        """How the job ended last, in whichever run."""
        return self._outcomes.get(key)

    def lease(self, video: Path) -> bool:
        """Takes the right to make ``video``, unless another worker, or this one, has it."""
        number = _lease_number(video, self.folder)
        with self._guard:
            if number in self._held or not self._journal.lease(number):
                return False
            self._held.add(number)
            return True

    def release(self, video: Path) -> None:
        """Gives that right back."""
        number = _lease_number(video, self.folder)
        with self._guard:
            self._journal.release(number)
            self._held.discard(number)

    def whole(self, key: str, video: Path, source: Path | None = None) -> str | None:
        """Digest of the finished video of this job, read and compared with its manifest.

        The manifest says which job it belongs to, so that a video whose worker was killed before
        it could note the end counts as well; and what its input held, so that one made from
        another picture of the same name does not. In a run that resumes nothing, only what the run
        itself has begun counts.
        """
        if not self._resumes and self._begun_here(key) is None:
            return None
        return verified(video, key, source)

    def _begun_here(self, key: str) -> _Begun | None:
        begun = self._begun.get(key)
        return begun if begun is not None and begun.attempt >= self._attempt else None

    def times_broken_off(self, key: str) -> int:
        """How often this run began to generate the job and did not come to the end of that."""
        begun = self._begun_here(key)
        return 0 if begun is None else begun.times - begun.ended

    def start(self, key: str) -> None:
        """Notes that the job is being generated: what a worker dies of from now on may be it.

        Jobs that are leased, read ahead or being written are not: while the worker is at another
        one, they are innocent of its end.
        """
        who = f"{platform.node()}:{os.getpid()}"
        self._note(t="start", key=key, attempt=self._attempt, by=who)

    def generated(self, key: str) -> None:
        """Notes that the job's frames are made: whatever its worker dies of now, it is not that.

        Not forced to disk: what a process wrote outlives the process.
        """
        self._note(False, t="generated", key=key, attempt=self._attempt)

    def done(self, key: str, sha256: str, seconds: float, *, sync: bool = True) -> None:
        """Notes that the job's video is there, under its name and on disk."""
        rounded = round(seconds, 3)
        self._note(sync, t="done", key=key, attempt=self._attempt, sha256=sha256, seconds=rounded)

    def failed(self, key: str, failure: Failure) -> None:
        """Notes that the job came to nothing."""
        self._note(
            t="failed",
            key=key,
            attempt=self._attempt,
            code=failure.code,
            error=failure.error,
            message=failure.message[:_LONGEST_MESSAGE],
        )

    def _note(self, sync: bool = True, /, **record: Any) -> None:
        self._journal.append([json.dumps(record).encode()], sync=sync)
        self.refresh()

    def _take(self, record: dict[str, Any]) -> None:
        kind, key, attempt = record.get("t"), record.get("key", ""), record.get("attempt", 0)
        if kind == "begin":
            self._last_attempt, self._last_list = attempt, record["list"]
            if attempt >= self._attempt:
                self._resumes = record["resume"]
        elif kind == "start":
            begun = self._begun.get(key)
            if begun is None or begun.attempt != attempt:
                begun = _Begun(attempt, 0)
            self._begun[key] = begun._replace(times=begun.times + 1)
        elif kind == "generated":
            begun = self._begun.get(key)
            if begun is not None and begun.attempt == attempt:
                self._begun[key] = begun._replace(ended=begun.ended + 1)
        elif kind == "done":
            self._outcomes[key] = Outcome(attempt, record["sha256"], None, record["seconds"])
        elif kind == "failed":
            failure = Failure(record["code"], record["error"], record["message"])
            self._outcomes[key] = Outcome(attempt, None, failure, 0.0)


def verified(video: Path, key: str, source: Path | None = None) -> str | None:
    """Digest of ``video`` where it is the one that its manifest tells of, for this job.

    Args:
        source: its input, to be as it was when the video was made; None is not looked at.
    """
    try:
        manifest = json.loads(video.with_suffix(".json").read_bytes())
        if manifest["job"]["key"] != key:
            return None
        if manifest["job"].get("text") and not video.with_suffix(".txt").exists():
            return None
        if source is not None and not is_as_marked(source, manifest["job"].get("input")):
            return None
        with video.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        return found if manifest["video"]["sha256"] == found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_another_list_s(video: Path, folder: Path, name: str) -> None:
    """
    Args:
        folder: of the lists' journals.
        name: of the list that ``video`` is to be made from.

    Raises:
        InputError: the video that is there was made from another list, whose journal still counts
            on it.
    """
    try:
        owner = json.loads(video.with_suffix(".json").read_bytes())["job"]["list"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # nobody's that we know of
    if owner != name and video.exists() and (folder / f"{owner}.journal").exists():
        raise InputError(
            f"{video} was made from another list, {owner}: it would be replaced; give this list "
            f"another output folder, or its videos names of their own (output_video)"
        )


def sign_manifest(video: Path, key: str, name: str, mark: dict[str, Any]) -> str:
    """Writes into the manifest of ``video`` which job it belongs to; the video's digest.

    Args:
        name: of the job's list, as its journal has it.
        mark: :func:`mark_of` its input.
    """
    path = video.with_suffix(".json")
    manifest = json.loads(path.read_bytes())
    has_text = video.with_suffix(".txt").exists()
    manifest["job"] = {"key": key, "list": name, "input": mark, "text": has_text}
    write_atomically(path, f"{json.dumps(manifest, indent=2, ensure_ascii=False)}\n".encode())
    sha256: str = manifest["video"]["sha256"]
    return sha256


def journal_of(folder: Path, listed: JobList) -> Path:
    """Path of the journal of a list in a folder."""
    return folder / f"{listed.name}.journal"


def _lease_number(video: Path, folder: Path) -> int:
    """Of a video, wherever the folder is mounted."""
    name = os.fsencode(video.relative_to(folder))
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little") % _LEASES
