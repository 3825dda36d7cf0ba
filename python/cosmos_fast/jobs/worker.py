"""One worker on a list of jobs: prepares, generates and writes, three jobs at a time."""

from __future__ import annotations

import errno
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.clip import Clip
from cosmos_fast.errors import (
    Cancelled,
    CosmosFastError,
    DeviceLost,
    GuardrailBlocked,
    InputError,
)
from cosmos_fast.jobs.inputs import mark_of
from cosmos_fast.jobs.job import Defaults, Job, digest, make_job
from cosmos_fast.jobs.ledger import (
    MOST_STARTS,
    Failure,
    refuse_another_list_s,
    sign_manifest,
)
from cosmos_fast.jobs.staging import remove_remains
from cosmos_fast.jobs.summary import Row
from cosmos_fast.media import frames_from
from cosmos_fast.request import resolve
from cosmos_fast.types import Frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cosmos_fast.config import Profile
    from cosmos_fast.jobs.engines import Generates, Saves
    from cosmos_fast.jobs.job_list import JobList
    from cosmos_fast.jobs.ledger import Ledger
    from cosmos_fast.jobs.roots import Root
    from cosmos_fast.jobs.staging import Staging
    from cosmos_fast.report import StageCallback
    from cosmos_fast.sampling.solver import CancelToken, StepCallback

logger = logging.getLogger(__name__)

_NAP: Final = 0.2
"""Seconds between two looks at jobs that other workers have."""
_MOST_SURPRISES: Final = 3
"""Errors of unknown kind in a row after which it is not the jobs that are at fault."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Jobs:
    """A list, and what its entries mean here."""

    def __init__(
        self, listed: JobList, defaults: Defaults, *, inputs: Root, outputs: Root, model: str
    ) -> None:
        self.listed: Final = listed
        self._defaults, self._model = defaults, model
        self._inputs, self._outputs = inputs, outputs
        self._repeated: dict[int, int] = {}
        self._find_repeated()

    def __len__(self) -> int:
        return len(self.listed)

    def job(self, index: int) -> tuple[str, Job]:
        """A job and its key.

        Raises:
            InputError: the entry cannot be a job.
        """
        job = make_job(
            self.listed.entry(index),
            index,
            self.listed.line(index),
            default_name=self.listed.default_name(index),
            defaults=self._defaults,
            inputs=self._inputs,
            outputs=self._outputs,
        )
        if index in self._repeated:
            raise InputError(
                f"output_video = {job.video.name!r}: line {self._repeated[index]} makes another "
                "video of that name; give one of them another name"
            )
        return job.key(self._model), job

    def problems(self, profile: Profile | None = None) -> Iterator[tuple[int, str]]:
        """(line, what is wrong) of every entry that cannot be a job; no picture is opened.

        Args:
            profile: the model's, which has a say in sizes and numbers of frames; None where it is
                not known.
        """
        for index in range(len(self)):
            try:
                _, job = self.job(index)
                if profile is not None:
                    resolve(profile, job.prompt, job.negative_prompt, **job.options)
            except InputError as error:
                yield self.listed.line(index), str(error)

    def _find_repeated(self) -> None:
        """Entries whose video an earlier one makes differently: the last would overwrite it."""
        first: dict[int, tuple[int, str]] = {}
        for index in range(len(self)):
            try:
                key, job = self.job(index)
            except InputError:
                continue
            line, known = first.setdefault(hash(job.video), (self.listed.line(index), key))
            if known != key:
                self._repeated[index] = line

    def bad_key(self, index: int) -> str:
        """Key of an entry that cannot be a job."""
        return digest(f"{self.listed.digest} {index}".encode())

    def row(self, index: int, ledger: Ledger) -> Row:
        """What the journal says about a job."""
        video = None
        try:
            key, job = self.job(index)
            video = str(job.video.relative_to(ledger.folder))
        except InputError:
            key = self.bad_key(index)
        line, outcome = self.listed.line(index), ledger.settled(key)
        if outcome is None:
            return Row(index, line, "left", video)
        if outcome.failure is not None:
            return Row(index, line, "failed", video, failure=outcome.failure)
        status: Any = "kept" if outcome.seconds == 0 else "made"
        return Row(index, line, status, video, outcome.seconds)


@dataclass(frozen=True)
class _Ready:
    """A job that is leased and read."""

    key: str
    job: Job
    frames: Frames
    mark: dict[str, Any]
    """Of the input, as it was before it was read."""


class Worker:
    """Takes jobs as long as there are any, and sees every one of them settled."""

    def __init__(
        self,
        engine: Generates,
        plan: Jobs,
        ledger: Ledger,
        staging: Staging,
        *,
        on_row: Callable[[Row, int, int], None] | None = None,
        on_step: StepCallback | None = None,
        on_stage: StageCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._engine, self._plan, self._ledger, self._staging = engine, plan, ledger, staging
        self._on_row, self._cancel = on_row, cancel
        self._callbacks = {"on_step": on_step, "on_stage": on_stage, "cancel": cancel}
        self._stopped = threading.Event()
        self._surprises = 0
        self._told = threading.Lock()
        self._settled = 0

    def run(self, indices: Iterable[int]) -> None:
        """Makes what nobody has made of these jobs; waits for those that others are making, to
        take over should they die.

        Raises:
            Cancelled, DeviceLost, GuardrailBlocked: this worker cannot go on.
            OSError: the disk is full or read-only.
        """
        order = list(indices)
        self._open = dict.fromkeys(order)
        self._total = len(order)
        with (
            ThreadPoolExecutor(1, "cosmos-fast read") as reading,
            ThreadPoolExecutor(1, "cosmos-fast write") as writing,
        ):
            written: Future[None] | None = None
            try:
                coming = reading.submit(self._next)
                while (ready := coming.result()) is not None:
                    coming = reading.submit(self._next)
                    clip, seconds = self._generate(ready)
                    if written is not None:
                        written.result()
                    written = writing.submit(self._write, ready, clip, seconds)
                if written is not None:
                    written.result()
            finally:
                self._stopped.set()

    def _next(self) -> _Ready | None:
        """The next job, prepared; None where every one is settled or in this worker's hands."""
        while self._open:
            busy = False
            for index in list(self._open):
                self._check_cancel()
                if self._stopped.is_set():
                    return None
                claimed = self._claim(index)
                if claimed == "busy":
                    busy = True
                elif not isinstance(claimed, str):
                    return claimed
            if busy and not self._stopped.wait(_NAP):
                continue
        return None

    def _claim(self, index: int) -> _Ready | str:
        """The job, or "settled", or "busy" where another worker has it."""
        try:
            key, job = self._plan.job(index)
        except InputError as error:
            key = self._plan.bad_key(index)
            self._ledger.refresh()
            if not self._is_settled(index, key):
                self._fail(index, key, _failure(error))
            return "settled"
        if self._is_settled(index, key):
            return "settled"
        if not self._ledger.lease(job.video):
            self._ledger.refresh()
            return "settled" if self._is_settled(index, key) else "busy"
        kept = False
        try:
            ready = self._take(index, key, job)
            kept = ready is not None
        finally:
            if not kept:
                self._ledger.release(job.video)
        return ready or "settled"

    def _take(self, index: int, key: str, job: Job) -> _Ready | None:
        """Reads a job that this worker has leased, unless it turns out that nothing is to do."""
        self._ledger.refresh()
        if self._is_settled(index, key):
            return None
        sha256 = self._ledger.whole(key, job.video, job.source)
        if sha256 is not None:
            self._ledger.done(key, sha256, 0.0, sync=False)
            self._open.pop(index, None)
            self._tell(index)
            return None
        if self._ledger.times_broken_off(key) >= MOST_STARTS:
            message = f"the worker died {MOST_STARTS} times while it made this video"
            self._fail(index, key, Failure(1, "WorkerDied", message))
            return None
        with self._failing_alone(index, key, job):
            refuse_another_list_s(job.video, self._ledger.folder, self._plan.listed.name)
            mark = mark_of(job.source)
            frames = self._read(job)
            del self._open[index]
            return _Ready(key, job, frames, mark)
        return None

    def _read(self, job: Job) -> Frames:
        request = resolve(self._engine.profile, job.prompt, job.negative_prompt, **job.options)
        return frames_from(
            job.source,
            size=request.size,
            num_frames=request.num_conditional_frames,
            fit=request.fit,
            fps=request.fps,
        )

    def _generate(self, ready: _Ready) -> tuple[Saves | None, float]:
        job, began = ready.job, time.monotonic()
        clip: Saves | None = None
        try:
            with self._failing_alone(job.index, ready.key, job):
                self._ledger.start(ready.key)
                clip = _on_the_host(
                    self._engine.generate(
                        ready.frames,
                        job.prompt,
                        job.negative_prompt,
                        **job.options,
                        **self._callbacks,
                    )
                )
                self._ledger.generated(ready.key)
        finally:
            if clip is None:
                self._ledger.release(job.video)
        return clip, time.monotonic() - began

    def _write(self, ready: _Ready, clip: Saves | None, seconds: float) -> None:
        """Nothing where there is no clip: the job failed."""
        if clip is None:
            return
        job, draft = ready.job, self._staging.path / ready.job.video.name
        try:
            with self._failing_alone(job.index, ready.key, job):
                clip.save(draft, crf=job.crf, sidecar=job.sidecar)
                name = self._plan.listed.name
                sha256 = sign_manifest(draft, ready.key, name, ready.mark)
                # Once more: the other list may be under way as well.
                refuse_another_list_s(job.video, self._ledger.folder, name)
                self._staging.publish(draft, job.video)
                self._ledger.done(ready.key, sha256, max(seconds, 0.001))
                self._surprises = 0
                self._tell(job.index)
        finally:
            self._staging.clear()
            self._ledger.release(job.video)

    @contextmanager
    def _failing_alone(self, index: int, key: str, job: Job) -> Iterator[None]:
        """An error in the block is the job's, unless it says that no job can go on."""
        try:
            yield
        except (Cancelled, DeviceLost):
            raise
        except Exception as error:
            # Whatever one job runs into, the others are owed their turn: the error goes to the
            # journal and the summary. Unless it is no job's fault.
            if _disk_is_full(error):
                raise
            if not isinstance(error, CosmosFastError):
                self._surprises += 1
                logger.exception("%s, line %d", self._plan.listed.path, job.line)
            if isinstance(error, GuardrailBlocked) and error.cause == "verdict":
                # What an earlier run made of it, behind another guardrail or none.
                job.video.unlink(missing_ok=True)
            remove_remains(job.video)
            self._fail(index, key, _failure(error))
            if isinstance(error, GuardrailBlocked) and error.cause == "timeout":
                # The check still hangs: for every job after this one the answer would be no.
                raise GuardrailBlocked(
                    f"line {job.line}: {error}; the jobs that are left were not tried: resume the "
                    f"run in a new process",
                    cause=error.cause,
                    check=error.check,
                    subject=error.subject,
                    record=error.record,
                ) from error
            if self._surprises >= _MOST_SURPRISES:
                raise

    def _fail(self, index: int, key: str, failure: Failure) -> None:
        self._ledger.failed(key, failure)
        self._open.pop(index, None)
        self._tell(index)

    def _is_settled(self, index: int, key: str) -> bool:
        if self._ledger.settled(key) is None:
            return False
        if index in self._open:  # by another worker, which has told of it
            del self._open[index]
            self._settled += 1
        return True

    def _tell(self, index: int) -> None:
        with self._told:
            self._settled += 1
            if self._on_row is not None:
                self._on_row(self._plan.row(index, self._ledger), self._settled, self._total)

    def _check_cancel(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("cancelled between two jobs; resume to go on")


def _on_the_host(clip: Saves) -> Saves:
    """The frames leave the device here, before the next job's work stands in their way."""
    if isinstance(clip, Clip):
        return replace(clip, frames=Frames(clip.frames.to("np"), clip.frames.fps))
    return clip


def _failure(error: Exception) -> Failure:
    code = 3 if isinstance(error, GuardrailBlocked) else 2 if isinstance(error, InputError) else 1
    return Failure(code, type(error).__name__, " ".join(str(error).split()))


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False
