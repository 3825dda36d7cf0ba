"""A list of jobs over a Ray cluster: Ray Data's actor pool hands out the jobs, the journal keeps
them, as it does on one machine.

All machines see the output folder and the inputs under one path, on a file system with locks (NFS
has them). Ray restarts an actor that dies and hands its jobs to another; what was whole is not made
again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.errors import InputError
from cosmos_fast.imports import install_extra
from cosmos_fast.jobs.batch import BatchRun
from cosmos_fast.jobs.engines import NO_GUARDRAIL

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import numpy as np

    from cosmos_fast.jobs.engines import Generates
    from cosmos_fast.jobs.job import Defaults
    from cosmos_fast.jobs.summary import BatchSummary

_JOBS_A_TURN: Final = 4
"""Enough that reading and writing overlap the engine's work."""


def run_batch_on_ray(
    make_engine: Callable[[], Generates],
    jobs: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    num_workers: int,
    model: str,
    guardrail: str = NO_GUARDRAIL,
    resume: bool = False,
    input_root: str | os.PathLike[str] = ".",
    defaults: Defaults | None = None,
    gpus_per_worker: float = 1,
    cpus_per_worker: float = 1,
) -> BatchSummary:
    """Makes every video of a list on the Ray cluster that this process is connected to.

    Args:
        make_engine: loads an engine; called once by each worker, on its machine.
        jobs, out, resume, input_root, defaults: as ``run_batch``'s.
        num_workers: engines at the same time.
        model: identity of the model that ``make_engine`` loads, a few words.
        guardrail: identity of the guardrail that it loads: "default" where that is the reference's,
            "none" where there is none (a toy model has none unless asked for); otherwise what
            ``engine.inspection().identity`` says. An engine with another one is refused.
        gpus_per_worker, cpus_per_worker: what Ray reserves for each.

    Raises:
        InputError: Ray is not installed or not connected, or as ``run_batch``.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f"a Ray cluster needs Ray: {install_extra('ray')}") from error
    if not ray.is_initialized():
        raise InputError("this process is connected to no Ray cluster: call ray.init() first")
    places: dict[str, Any] = {
        "jobs": Path(jobs).expanduser().resolve(),
        "out": Path(out).expanduser().resolve(),
        "input_root": Path(input_root).expanduser().resolve(),
        "defaults": defaults,
        "model": model,
        "guardrail": guardrail,
    }
    with BatchRun(None, **places, resume=resume) as run:
        turns = -(-len(run) // _JOBS_A_TURN)
        # Made here and not by tasks of Ray, which would need a processor beside the workers.
        indices = [{"id": index} for index in range(len(run))]
        made = ray.data.from_items(indices, override_num_blocks=turns).map_batches(
            RayWorker,
            fn_constructor_kwargs={"make_engine": make_engine, "attempt": run.attempt, **places},
            batch_size=_JOBS_A_TURN,
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            num_gpus=gpus_per_worker,
            num_cpus=cpus_per_worker,
        )
        for _ in made.iter_batches(batch_size=None):
            pass
        run.sweep()
        summary = run.summary()
        run.write_summary(summary)
    return summary


class RayWorker:
    """One engine in an actor of the pool."""

    def __init__(self, make_engine: Callable[[], Generates], attempt: int, **places: Any) -> None:
        self._run = BatchRun(make_engine(), **places, join=attempt)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Sees the jobs of these indices settled."""
        self._run.make(int(index) for index in batch["id"])
        return batch
