"""A list of jobs through one engine: any number of videos, the models loaded once.

While the engine works on one job, a thread on either side reads the frames of the next and writes
the file of the last. The folder's journal makes the run one that may be killed at any moment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cosmos_fast.errors import InputError
from cosmos_fast.jobs.engines import NO_GUARDRAIL, Shares, check_engine, guardrail_of, identity
from cosmos_fast.jobs.job import Defaults
from cosmos_fast.jobs.job_list import JobList
from cosmos_fast.jobs.ledger import Ledger
from cosmos_fast.jobs.roots import Root
from cosmos_fast.jobs.staging import Staging, sweep
from cosmos_fast.jobs.summary import BatchSummary, write_summary
from cosmos_fast.jobs.worker import Jobs, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from cosmos_fast.jobs.engines import Generates
    from cosmos_fast.jobs.summary import Row
    from cosmos_fast.report import StageCallback
    from cosmos_fast.sampling.solver import CancelToken, StepCallback


def run_batch(
    engine: Generates,
    jobs: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    join: int | None = None,
    only: Iterable[int] | None = None,
    input_root: str | os.PathLike[str] = ".",
    defaults: Defaults | None = None,
    model: str | None = None,
    on_row: Callable[[Row, int, int], None] | None = None,
    on_step: StepCallback | None = None,
    on_stage: StageCallback | None = None,
    cancel: CancelToken | None = None,
) -> BatchSummary:
    """Makes every video of a list.

    Several processes may work on one folder: each job is taken by one of them, and what a killed
    one held is free at once. A job that fails is a row of the summary, and the rest go on.

    Args:
        engine: a ``Video2World``, or anything with its ``profile`` and ``generate``.
        jobs: JSON lines (``visual_input``, ``prompt``) or a JSON array (``input_video``,
            ``prompt``, ``output_video``). Every argument of ``generate`` may stand in an entry,
            besides ``height``, ``width`` and ``crf``.
        out: folder of the videos, and of the list's journal and summary, ``{list}.journal`` and
            ``{list}.summary.json``. An entry without a name of its
            own becomes ``{index}.mp4`` (lines) or ``output_{index}.mp4`` (array), from 0.
        resume: keep what earlier runs finished and make the rest; or share the folder with a run
            that goes on.
        join: number of a run that another process has begun on this list, to take part in.
        only: indices of the jobs to make; None is all of them.
        input_root: folder that inputs are relative to and may not leave.
        defaults: what holds for entries that do not say otherwise.
        model: identity of the model: a job is made again where it changes. None is the profile's
            name. The engine's guardrail counts as well: what was made without one, or behind
            another, is made again.
        on_row: told (row, jobs that are settled, jobs in all) after each job.
        on_step, on_stage: as ``generate``'s.
        cancel: anything with ``is_set()``; the run ends within a step and may be resumed.

    Raises:
        InputError: ``engine`` is none, or the list or the folder cannot be used.
        Cancelled, DeviceLost: the run cannot go on; it may be resumed.
        GuardrailBlocked: a check of the guardrail hangs, so that this process can make no more;
            the run may be resumed in another one. A job that the guardrail refuses is a row.
        OSError: the disk is full or read-only; the run may be resumed.
    """
    check_engine(engine)
    with BatchRun(
        engine,
        jobs,
        out,
        resume=resume,
        join=join,
        input_root=input_root,
        defaults=defaults,
        model=engine.profile.name if model is None else model,
    ) as run:
        run.make(only, on_row=on_row, on_step=on_step, on_stage=on_stage, cancel=cancel)
        summary = run.summary()
        if join is None:
            run.write_summary(summary)
    return summary


class BatchRun:
    """A run on a list, begun or joined, for as long as the block lasts.

    What :func:`run_batch` consists of, for those who hand out the jobs themselves; arguments as
    there.
    """

    def __init__(
        self,
        engine: Generates | None,
        jobs: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        model: str,
        guardrail: str | None = None,
        resume: bool = False,
        join: int | None = None,
        input_root: str | os.PathLike[str] = ".",
        defaults: Defaults | None = None,
    ) -> None:
        """
        Args:
            engine: None for those who only begin a run, or tell of it.
            guardrail: identity of the engines' guardrail, :func:`guardrail_of` them; None is that
                of ``engine``.

        Raises:
            InputError: as :func:`run_batch`, or the engine has another guardrail.
        """
        if isinstance(engine, Shares) and engine.ranks > 1:
            raise InputError(
                f"{engine.ranks} ranks share this engine's videos, and each would make all of the "
                f"list: load it without parallel=, one engine for each GPU; they share the list"
            )
        found = None if engine is None else guardrail_of(engine)
        if None not in (found, guardrail) and found != guardrail:
            raise InputError(
                f"guardrail = {guardrail!r}, and the engine's is {found!r}: say what this "
                f"run's engines have"
            )
        self._engine = engine
        self._folder = Path(out).expanduser().resolve()
        self._listed = JobList(jobs)
        try:
            self._plan = Jobs(
                self._listed,
                defaults or Defaults(),
                inputs=Root(input_root, "name a root that is above it"),
                outputs=Root(self._folder, "name an output folder that is above it"),
                model=identity(model, found or guardrail or NO_GUARDRAIL),
            )
            self._ledger = (
                Ledger.begin(self._folder, self._listed, resume=resume)
                if join is None
                else Ledger.join(self._folder, self._listed, join)
            )
        except BaseException:
            self._listed.close()
            raise

    @property
    def attempt(self) -> int:
        """Number of the run, for others to join."""
        return self._ledger.attempt

    def __len__(self) -> int:
        return len(self._listed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends this process's part in the run."""
        self._ledger.close()
        self._listed.close()

    def make(
        self,
        only: Iterable[int] | None = None,
        *,
        on_row: Callable[[Row, int, int], None] | None = None,
        on_step: StepCallback | None = None,
        on_stage: StageCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """Sees these jobs settled, by this worker or by others."""
        if self._engine is None:
            raise InputError("this run has no engine to make videos with: give it one")
        with self._ledger.alone():
            staging = Staging(self._folder, self._listed.name)
        with staging:
            worker = Worker(
                self._engine, self._plan, self._ledger, staging,
                on_row=on_row, on_step=on_step, on_stage=on_stage, cancel=cancel,
            )  # fmt: skip
            worker.run(range(len(self)) if only is None else only)
        self.sweep()

    def sweep(self) -> None:
        """Removes what workers that died have left."""
        with self._ledger.alone():
            sweep(self._folder, self._listed.name)

    def summary(self) -> BatchSummary:
        """What the journal says about every job of the list, whoever made it."""
        return summarise(self._plan, self._ledger)

    def write_summary(self, summary: BatchSummary) -> Path:
        """Writes ``summary`` beside the videos; its path."""
        return publish_summary(self._ledger, self._folder, self._listed.path, summary)


def check_batch(
    jobs: str | os.PathLike[str], out: str | os.PathLike[str], *, resume: bool = False
) -> int:
    """Looks at list and folder as ``run_batch`` will, before an engine is loaded.

    Returns:
        How many jobs the list has.

    Raises:
        InputError: the list cannot be read, or the folder has a run to resume.
    """
    with JobList(jobs) as listed:
        Ledger.check(Path(out).expanduser().resolve(), listed, resume=resume)
        return len(listed)


def publish_summary(
    ledger: Ledger, folder: Path, jobs: str | os.PathLike[str], summary: BatchSummary
) -> Path:
    """Writes ``summary`` beside the videos of the list ``jobs``; its path.

    Should this process be killed meanwhile, the next run removes what it leaves.
    """
    with ledger.alone():
        staging = Staging(folder, Path(jobs).name)
    with staging:
        draft = write_summary(staging.path / "summary.json", summary)
        return draft.replace(summary_of(folder, jobs))


def summary_of(folder: Path, jobs: str | os.PathLike[str]) -> Path:
    """Path of the summary of a list in a folder."""
    return folder / f"{Path(jobs).name}.summary.json"


def summarise(plan: Jobs, ledger: Ledger) -> BatchSummary:
    """What the journal says about every job of the list, whoever made it."""
    ledger.refresh()
    count = {"made": 0, "kept": 0, "failed": 0, "left": 0}
    failures = []
    for index in range(len(plan)):
        row = plan.row(index, ledger)
        count[row.status] += 1
        if row.failure is not None:
            failures.append(row)
    return BatchSummary(
        ledger.attempt, **count, failures=tuple(failures), damaged_bytes=ledger.damaged
    )
