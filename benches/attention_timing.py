"""Attention timed shape by shape, in one process; small calls out of graphs that hold many."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from attention_contenders import NOTES, OWN_LIMITS, Attend, contender, is_ours, padded
from attention_shapes import Shape, error, inputs
from contest import Ceilings, Contender, Contest, Row, ceilings, checked, timed
from harness import visible_card

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

OPERATION = "attention"

ERROR_RATIO = 1.1
"""Beyond this many times the error of cuDNN against float32 a contender is not timed."""

ERROR_FLOOR = 1e-4
"""Where cuDNN's error is 0, as with one key."""

GRAPH_CALLS = 50
"""Calls in one graph: 10 ms and more a replay, beside which its own launch is nothing."""

SKIPPED = "skipped: "
"""How a note begins that tells what was left out on purpose."""


class Work:
    """One contender at one shape."""

    def __init__(
        self, name: str, shape: Shape, tensors: Tensors, *, all_keys: bool = False
    ) -> None:
        """``all_keys``: zero keys are read, not folded, even by one of ours."""
        self._attend: Attend = contender(name)
        self._tensors, self._zero_keys = tensors, shape.zero_keys
        q, k, v = tensors
        self._given = (k, v, shape.zero_keys)
        if all_keys:
            self._given = (*padded(k, v, shape.zero_keys), 0)
        self._out = torch.empty(q.shape, device=q.device, dtype=q.dtype)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result = self._out

    def _once(self) -> None:
        k, v, zero_keys = self._given
        self._result = self._attend(self._tensors[0], k, v, self._out, zero_keys)

    def capture(self, calls: int) -> None:
        """From here on a call is the replay of a graph of ``calls`` calls."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what compiles and what is cached does so before
            self._once()
            self._once()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                self._once()
        self._graph = graph

    def __call__(self) -> None:
        if self._graph is None:
            self._once()
        else:
            self._graph.replay()

    def error(self) -> float:
        """Of what is timed: with a graph, of its last call."""
        self._out.fill_(math.nan)
        if self._graph is not None:
            self._result.fill_(math.nan)
        self()
        return error(self._result, *self._tensors, self._zero_keys)


def contest(
    shape: Shape, names: list[str], device: torch.device, seconds: float, no_graph: dict[str, str]
) -> Contest:
    """One shape, and everybody at it.

    Args:
        names: who takes part. With keys to fold, each of ours twice: folding, and reading them all
            as the rivals do.
        no_graph: why some cannot be captured, by name.
    """
    tensors = inputs(shape, str(device))
    takes_part = [
        entrant(name, shape, tensors, no_graph, all_keys=all_keys)
        for name in names
        for all_keys in ((False, True) if shape.zero_keys and is_ours(name) else (False,))
    ]
    title = shape.name
    if shape.small and device.type == "cuda":
        title += f", graph of {GRAPH_CALLS}"
    limit = ERROR_RATIO * cudnn_error(shape, tensors) + ERROR_FLOOR
    return Contest(
        OPERATION,
        title,
        tuple(takes_part),
        limit,
        flops=shape.flops,
        seconds=seconds,
        rounds=10 if device.type == "cuda" else 2,
    )


def entrant(
    name: str, shape: Shape, tensors: Tensors, no_graph: dict[str, str], *, all_keys: bool
) -> Contender:
    """One contender; what keeps it from running is told when its error is asked for."""
    title, works, notes = name, 1, [NOTES[name]] if name in NOTES else []
    graphed = shape.small and tensors[0].is_cuda
    if shape.zero_keys:
        folds = is_ours(name) and not all_keys
        title += f", {shape.keys if folds else shape.keys + shape.zero_keys} keys read"
    if graphed and no_graph.get(name):
        title += ", no graph"
        notes.append(f"calls one by one, as no graph can hold it: {no_graph[name]}")
    call: Callable[[], object]
    try:
        work = Work(name, shape, tensors, all_keys=all_keys)
        if graphed and not no_graph.get(name):
            work.capture(GRAPH_CALLS)
            works = GRAPH_CALLS
            notes.append(f"timed from a graph of {works} calls")
        call, found = work, work.error
    except Exception as problem:  # becomes the row of this one; the others go on
        call, found = raising(problem), raising(problem)
    return Contender(
        title,
        call,
        found,
        ours=is_ours(name),
        note="; ".join(notes),
        works=works,
        error_limit=OWN_LIMITS.get(name),
    )


def raising(problem: Exception) -> Callable[[], float]:
    def raises() -> float:
        raise problem

    return raises


def cudnn_error(shape: Shape, tensors: Tensors) -> float:
    """Relative error of cuDNN's attention, or of torch's where cuDNN does not run."""
    for name in ("cudnn", "torch"):
        try:
            return Work(name, shape, tensors).error()
        except RuntimeError:
            if name == "torch":
                raise
    raise AssertionError("torch's attention runs everywhere")


def seconds_of(shape: Shape, names: list[str], seconds: float) -> float:
    """About how long a shape takes: beside the timed rounds the inputs, first calls and checks."""
    entries = len(names) + (sum(map(is_ours, names)) if shape.zero_keys else 0)
    return 1.2 * seconds * entries + shape.flops / 2e13 + 2.0


def time_all(
    shapes: list[Shape],
    names: list[str],
    device: torch.device,
    *,
    seconds: float,
    first_seconds: float,
    alone_seconds: float,
    budget: float,
    keep: int,
    no_graph: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """Yields the ceilings, then the rows of each shape as they come, then clocks where wanted."""
    deadline = time.perf_counter() + budget
    top = ceilings(device)
    yield {"ceilings": asdict(top)}
    present, left_out = list(names), list[str]()
    for index, shape in enumerate(shapes):
        held = first_seconds if index == 0 else seconds
        if time.perf_counter() + seconds_of(shape, present, held) > deadline:
            why = f"{SKIPPED}--budget has no room for some {seconds_of(shape, present, held):.0f} s"
            yield {"shape": shape.name, "rows": [asdict(row) for row in unrun(shape, names, why)]}
            continue
        rows = rows_of(shape, present, device, held, no_graph, top)
        rows += unrun(shape, left_out, f"{SKIPPED}not among the {keep} fastest of ours (--keep)")
        yield {"shape": shape.name, "rows": [asdict(row) for row in rows]}
        if index == 0:
            if alone_seconds and device.type == "cuda" and not shape.small:
                yield {"alone": alone(rows, shape, alone_seconds)}
            ranked = [row for row in rows if row.ours and row.median_ms is not None]
            ranked.sort(key=lambda row: row.median_ms or 0.0)
            left_out = [row.contender for row in ranked[keep:] if row.contender in names]
            present = [name for name in names if name not in left_out]


def rows_of(
    shape: Shape,
    names: list[str],
    device: torch.device,
    seconds: float,
    no_graph: dict[str, str],
    top: Ceilings,
) -> list[Row]:
    """The rows of one shape; of all of its contenders the same one where it cannot be held."""
    try:
        made = contest(shape, names, device, seconds, no_graph)
        right, refused = checked(made)
        return timed(made, right, device, top) + refused
    except Exception as problem:  # the other shapes are timed all the same
        why = f"not run: {type(problem).__name__}: {problem}".splitlines()[0][:200]
        return unrun(shape, names, why)


def unrun(shape: Shape, names: list[str], why: str) -> list[Row]:
    return [Row(OPERATION, shape.name, name, is_ours(name), note=why) for name in names]


def alone(rows: list[Row], shape: Shape, seconds: float) -> dict[str, dict[str, float]]:
    """The clock that each contender runs at alone, and its share of the tensor cores' cycles.

    Where the card is held to its power, a rate says little: many cycles at a high clock and few at
    a low one look the same.
    """
    if not shutil.which("nvidia-smi"):
        return {}
    card = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", f"--id={visible_card()}", "--query-gpu=clocks.sm"]
    query += ["--format=csv,noheader,nounits"]
    tensors = inputs(shape, "cuda")
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.median_ms is None:
            continue
        work = Work(row.contender, shape, tensors)
        for _ in range(round(seconds * 1e3 / row.median_ms)):
            work()
        end = torch.cuda.Event()
        end.record()
        clocks: list[float] = []
        while not end.query():
            told = subprocess.run(query, capture_output=True, text=True).stdout.strip()
            # What was read as the work ended may be of an idle card.
            if told.isdigit() and not end.query():
                clocks.append(float(told))
        if clocks:
            clock = median(clocks[len(clocks) // 2 :])
            cycles = row.median_ms * 1e3 * clock * card.multi_processor_count
            share = shape.flops / (4096.0 * cycles)
            found[row.contender] = {"clock_mhz": clock, "share_of_cycles": share}
    return found


def beside_cudnn(rows: list[Row]) -> list[dict[str, Any]]:
    """At each shape, how many times as fast as cuDNN each of ours is."""
    theirs = {row.shape: row.median_ms for row in rows if row.contender.startswith("cudnn")}
    found = []
    for row in rows:
        cudnn = theirs.get(row.shape)
        if row.ours and row.median_ms is not None and cudnn is not None:
            found.append(
                {
                    "shape": row.shape,
                    "contender": row.contender,
                    "ms": row.median_ms,
                    "cudnn_ms": cudnn,
                    "times_cudnn": cudnn / row.median_ms,
                }
            )
    return found
