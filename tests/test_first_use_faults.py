"""Compiling side by side where something goes wrong, or where others do the same.

This file is also the programs that compile, for an H200 where none is: ``python FILE NAME`` calls a
function of it and prints the JSON object that it returns.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ahead_of_time import pretend_target, printed_by
from test_first_use import ALONE, CUDA, HALF, Told, named_launches, profile_of_2b

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Compiling = Callable[..., AbstractContextManager[None]]
    Outcome = Callable[[int], str]


def told_by(name: str, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = printed_by(__file__, name, cache=folder)
    return told


def test_an_interrupt_while_compiling_is_awaited_leaves_nothing_behind(tmp_path: Path) -> None:
    told = told_by("interrupted_as_it_waits", tmp_path)
    assert told["interrupts"] >= 1
    assert told["compiled"] <= told["threads"], "begun after the interrupt"
    assert told["later launch"] == "launched"
    assert told["left"] == []


def test_the_terminal_s_interrupt_does_not_reach_the_assembler(tmp_path: Path) -> None:
    assert told_by("interrupted_by_the_terminal", tmp_path) == {
        "interrupts": 1,
        "compiled": ["_linear_kernel"],
    }


def test_without_threads_kernels_are_compiled_all_the_same(tmp_path: Path) -> None:
    told = told_by("without_threads", tmp_path)
    assert told["foreseen"] == told["unforeseen"] == told["afterwards"] == "launched"
    assert "CompileTimeAssertionFailure" in told["bad"]


def test_without_triton_s_mode_the_body_runs_as_it_is(tmp_path: Path) -> None:
    assert told_by("without_the_mode", tmp_path) == {
        "launch": "launched",
        "error": "KeyError('body')",
        "error came out of": "None",
    }


def test_engines_at_once_load_kernels_onto_their_own_devices(tmp_path: Path) -> None:
    told = told_by("two_devices_at_once", tmp_path)
    assert told["devices"] == {"0": [0], "1": [1]}, "by engine: where its kernels were loaded"
    assert told["launches"] == ["launched"] * 8
    assert told["current"] == 0
    assert told["left"] == []


def test_processes_that_compile_the_same_share_the_cores(tmp_path: Path) -> None:
    assert told_by("many_processes", tmp_path)["threads"] == 1


def test_filters_of_warnings_are_as_they_were(tmp_path: Path) -> None:
    """Triton sets some of its own while it reads a kernel, for the whole process."""
    told = told_by("filters_of_warnings", tmp_path)
    assert told["one engine"] == told["two at once"] == told["before"]
    assert told["told"] == ["shown"]


@pytest.mark.parametrize(("device", "kernels"), [("cpu", True), ("cuda", False)])
def test_nothing_is_compiled_where_kernels_are_off_or_cannot_run(
    device: str, kernels: bool
) -> None:
    from cosmos_fast.model.first_use import kernels_ahead

    before = threading.active_count()
    place = torch.device(device)
    profile = profile_of_2b()
    with kernels_ahead(profile, place, HALF, classes=ALONE, kernels=kernels):
        assert threading.active_count() == before


def test_naming_kernels_draws_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    before = torch.get_rng_state()
    assert named_launches()
    assert torch.equal(torch.get_rng_state(), before)


def store_kernel() -> tuple[Compiling, Outcome]:
    """``compiling`` for values of a small kernel, and what comes of a launch with one. Values from
    1000 on cannot be compiled."""
    import triton
    import triton.language as tl

    from cosmos_fast.model.ops import compiling
    from cosmos_fast_kernels.launching import launch

    @triton.jit
    def store(x_pointer, VALUE: tl.constexpr):
        tl.static_assert(VALUE < 1000)
        tl.store(x_pointer, VALUE)

    x = torch.empty(16, device="meta")

    def compiling_of(values: Any, device: torch.device = CUDA, **options: int) -> Any:
        def calls() -> None:
            for one in values:
                launch(store, (1,), x, VALUE=one)

        return compiling(device, calls, **options)

    def outcome(value: int) -> str:
        try:
            launch(store, (1,), x, VALUE=value)
        except Exception as problem:
            return f"{type(problem).__name__}: {problem}"
        return "launched"

    return compiling_of, outcome


def compilers_left() -> list[str]:
    """Names of threads that compile, or could, some seconds from now."""
    limit = time.monotonic() + 10
    while True:
        names = [one.name for one in threading.enumerate() if "compiler" in one.name]
        if not names or time.monotonic() > limit:
            return names
        time.sleep(0.05)


def interrupted_as_it_waits() -> dict[str, Any]:
    """Twice: the second time, while what has begun is awaited."""
    pretend_target(90)
    import triton

    utils, told = triton.runtime.driver.active.utils, Told()
    load, interrupts = utils.load_binary, 0

    def slow_load(*arguments: Any) -> Any:
        time.sleep(4)
        return load(*arguments)

    def interrupt() -> None:
        for _ in range(2):
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGINT)

    compiling_of, outcome = store_kernel()
    utils.load_binary = slow_load
    sender = threading.Thread(target=interrupt)
    try:
        with compiling_of(range(8)):
            sender.start()
    except KeyboardInterrupt:
        interrupts += 1
    sender.join()
    utils.load_binary = load
    compiled, threads = len(told.compiled), len(os.sched_getaffinity(0))
    return {
        "interrupts": interrupts,
        "compiled": compiled,
        "threads": threads,
        "later launch": outcome(100),
        "left": compilers_left(),
    }


def interrupted_by_the_terminal() -> dict[str, Any]:
    """As it does with all processes of a group, when the assembler runs."""
    pretend_target(90)
    from cosmos_fast.model.ops import compiling
    from cosmos_fast_kernels import launching

    os.setpgrp()
    told, interrupts = Told(), 0
    wanted = next(one for one in named_launches() if one.kernel.__name__ == "_linear_kernel")

    def calls() -> None:
        launching.launch(wanted.kernel, wanted.grid, *wanted.arguments, **wanted.options)

    def interrupt() -> None:
        while "ptxas" not in set(names_of_children()):
            time.sleep(0.002)
        os.killpg(0, signal.SIGINT)

    try:
        with compiling(CUDA, calls):
            threading.Thread(target=interrupt, daemon=True).start()
            time.sleep(60)
    except KeyboardInterrupt:
        interrupts += 1
    return {"interrupts": interrupts, "compiled": told.compiled}


def names_of_children() -> Iterator[str]:
    for listing in Path("/proc/self/task").glob("*/children"):
        for child in listing.read_text().split():
            name = Path("/proc", child, "comm")
            if name.exists():
                yield name.read_text().strip()


def without_threads() -> dict[str, Any]:
    pretend_target(90)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    compiling_of, outcome = store_kernel()
    threads: Any = threading.Thread
    start, threads.start = threads.start, refuse
    with compiling_of((1, 2, 1000)):
        found = {"foreseen": outcome(1), "unforeseen": outcome(3), "bad": outcome(1000)}
    threads.start = start
    return found | {"afterwards": outcome(2)}


def without_the_mode() -> dict[str, Any]:
    pretend_target(90)
    import triton

    del triton.AsyncCompileMode
    compiling_of, outcome = store_kernel()
    found = {}
    try:
        with compiling_of((1,)):
            found["launch"] = outcome(1)
            raise KeyError("body")
    except KeyError as problem:
        found |= {"error": repr(problem), "error came out of": repr(problem.__context__)}
    return found


def two_devices_at_once() -> dict[str, Any]:
    """Two threads load engines, for cuda:0 and cuda:1; every thread begins on device 0."""
    pretend_target(90)
    import triton

    class Current(threading.local):
        device = 0

    current, driver = Current(), triton.runtime.driver.active

    class Within:
        """As ``torch.cuda.device`` is: of this thread."""

        def __init__(self, device: torch.device) -> None:
            self.device = device.index

        def __enter__(self) -> None:
            self.before, current.device = current.device, self.device

        def __exit__(self, *_: object) -> None:
            current.device = self.before

    cuda: Any = torch.cuda
    cuda.device = Within
    driver.get_current_device = lambda: current.device
    load = driver.utils.load_binary
    loaded: dict[str, list[int]] = {}

    def load_binary(name: str, code: bytes, shared: int, device: int) -> Any:
        loaded.setdefault(threading.current_thread().name, []).append(device)
        return load()

    driver.utils.load_binary = load_binary
    compiling_of, outcome = store_kernel()
    launches: list[str] = []
    begun = threading.Barrier(2)
    devices: dict[str, list[int]] = {}

    def engine(index: int) -> None:
        device = torch.device("cuda", index)
        begun.wait()
        with compiling_of(range(10 * index, 10 * index + 3), device), Within(device):
            launches.extend(outcome(10 * index + value) for value in range(4))

    # One after the other as well, that their threads can be told apart: names are not.
    for index in range(2):
        loaded.clear()
        with compiling_of(range(20, 23), torch.device("cuda", index)):
            pass
        devices[str(index)] = sorted({one for each in loaded.values() for one in each})
    engines = [threading.Thread(target=engine, args=(index,)) for index in range(2)]
    for one in engines:
        one.start()
    for one in engines:
        one.join()
    return {
        "devices": devices,
        "launches": launches,
        "current": current.device,
        "left": compilers_left(),
    }


def many_processes() -> dict[str, Any]:
    pretend_target(90)
    told = Told()
    compiling_of, _ = store_kernel()
    with compiling_of(range(6), processes=10_000):
        pass
    assert len(told.compiled) == 6
    return {"threads": len(told.threads)}


def filters_of_warnings() -> dict[str, Any]:
    """Kernels that take so long to read that threads meet there."""
    pretend_target(90)
    import triton
    import triton.language as tl

    from cosmos_fast.model.ops import compiling
    from cosmos_fast_kernels.launching import launch

    @triton.jit
    def unrolled(x_pointer, VALUE: tl.constexpr):
        for index in tl.static_range(200):
            tl.store(x_pointer + index, VALUE)

    x = torch.empty(256, device="meta")

    def load(index: int) -> None:
        def calls() -> None:
            for value in range(10 * index, 10 * index + 4):
                launch(unrolled, (1,), x, VALUE=value)

        with compiling(CUDA, calls):
            pass

    def filters() -> list[str]:
        return list(map(str, warnings.filters))

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always", UserWarning)
        found: dict[str, Any] = {"before": filters()}
        load(0)
        found["one engine"] = filters()
        engines = [threading.Thread(target=load, args=(index,)) for index in (1, 2)]
        for one in engines:
            one.start()
        for one in engines:
            one.join()
        found["two at once"] = filters()
        warnings.warn("shown", UserWarning, stacklevel=1)
    return found | {"told": [str(one.message) for one in shown]}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
