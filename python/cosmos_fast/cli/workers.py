"""One worker a GPU: processes of their own that share one list."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosmos_fast.cli.exits import ExitCode, UsageError, exit_code_of, message_of

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from cosmos_fast.cli.settings import Settings
    from cosmos_fast.jobs import BatchSummary

_GRACE: Final = 2.0
"""Seconds that workers get to end by themselves."""


def run_workers(settings: Settings, given: Mapping[str, object]) -> BatchSummary:
    """Works on the list in ``settings.num_gpus`` processes, and tells what came of it.

    A worker that dies costs time only: the others take over its jobs.

    Raises:
        GuardrailBlocked: every worker was blocked, at loading or by a check that hangs, and jobs
            are left.
    """
    from cosmos_fast.cli.batch import plan_of
    from cosmos_fast.cli.video2world import local_profile
    from cosmos_fast.errors import GuardrailBlocked
    from cosmos_fast.jobs.batch import publish_summary, summarise
    from cosmos_fast.jobs.job_list import JobList
    from cosmos_fast.jobs.ledger import Ledger

    assert settings.batch is not None
    assert settings.batch_folder is not None
    devices = _devices(settings)
    folder = Path(settings.batch_folder).resolve()
    with JobList(settings.batch) as listed:
        ledger = Ledger.begin(folder, listed, resume=settings.resume)
        try:
            with _running(devices, dict(given), ledger.attempt) as workers:
                _watch(workers)
            # By now the checkpoint is on this machine, and its profile known.
            plan = plan_of(settings, listed, local_profile(settings))
            summary = summarise(plan, ledger)
            path = publish_summary(ledger, folder, settings.batch, summary)
        finally:
            ledger.close()
    if summary.left and {worker.exitcode for worker in workers.values()} == {ExitCode.BLOCKED}:
        raise GuardrailBlocked(
            f"the guardrail blocked all {len(workers)} workers, as told above: {summary.left} jobs "
            f"are left, to be resumed when it works; see {path}"
        )
    return summary


def _devices(settings: Settings) -> list[str]:
    wanted = settings.num_gpus or 1
    if settings.device == "cpu":
        return ["cpu"] * wanted
    if settings.device.startswith("cuda:"):
        raise UsageError(
            f"--device {settings.device} is one GPU; with --num_gpus {wanted} leave --device out"
        )
    import torch

    found = torch.cuda.device_count()
    if found < wanted:
        raise UsageError(
            f"--num_gpus {wanted}: {found} GPUs are here; give at most as many, or --device cpu"
        )
    return [f"cuda:{number}" for number in range(wanted)]


@contextlib.contextmanager
def _running(
    devices: list[str], given: dict[str, object], attempt: int
) -> Iterator[dict[str, BaseProcess]]:
    """The workers, by name; none of them outlives the block."""
    context = multiprocessing.get_context("spawn")
    workers: dict[str, BaseProcess] = {}
    try:
        for number, device in enumerate(devices):
            name = f"worker {number} ({device})"
            workers[name] = context.Process(target=_work, args=(given, device, attempt), name=name)
            workers[name].start()
        yield workers
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.join(_GRACE)
            if worker.is_alive():
                worker.kill()
                worker.join()


def _watch(workers: Mapping[str, BaseProcess]) -> None:
    """Waits for all of them, and tells of those that die."""
    left: dict[object, str] = {worker.sentinel: name for name, worker in workers.items()}
    while left:
        for sentinel in wait([workers[name].sentinel for name in left.values()]):
            name = left.pop(sentinel)
            workers[name].join()
            code = workers[name].exitcode
            if code:
                others = "the others take over" if left else "its jobs are left"
                print(f"{name} ended with exit code {code}: {others}", file=sys.stderr, flush=True)


def _work(given: dict[str, object], device: str, attempt: int) -> None:
    """What a worker's process does."""
    from cosmos_fast.cli.interrupt import Interrupted, interruptible

    code: int = ExitCode.OK
    try:
        with interruptible() as stop_raising:
            try:
                _end_with_parent()
                _join_run(given, device, attempt)
            except Exception as error:
                stop_raising()
                print(f"error: {device}: {message_of(error)}", file=sys.stderr, flush=True)
                code = exit_code_of(error)
    except Interrupted as interrupted:
        code = interrupted.exit_code
    sys.stderr.flush()
    os._exit(code)


def _join_run(given: dict[str, object], device: str, attempt: int) -> None:
    from cosmos_fast.cli.batch import BATCH_FLAGS, run_here
    from cosmos_fast.cli.flags import parse_flags
    from cosmos_fast.cli.video2world import read_settings

    settings = read_settings(parse_flags(BATCH_FLAGS, given))
    run_here(replace(settings, device=device), join=attempt, quiet=True)


def _end_with_parent() -> None:
    """A worker whose command was killed must not go on by itself."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()
