"""Submitted steps: one thread an engine, whatever worlds come and go."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import cosmos_fast as cf
from action_world import PROFILE, actions, pictures
from random_world import make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOON = 60.0
"""Seconds within which what is going to happen has happened, on the busiest machine."""
SCRIPT = """
import os, sys, threading, time
import cosmos_fast as cf
from action_world import actions, pictures

engine = cf.Video2World.from_pretrained(sys.argv[1], device="cpu")
world = cf.World(engine, 1)
world.reset(pictures(1))

def say(*words):
    print(*words, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("submit")
    make_random_world(made, PROFILE)
    return made


@pytest.fixture
def engine(folder: Path) -> cf.Video2World:
    return cf.Video2World.from_pretrained(folder, device="cpu")


@pytest.fixture
def threads() -> Callable[[], list[int]]:
    """The kernel's numbers of threads for submitted steps that this test has started."""
    before = {thread.native_id for thread in threading.enumerate()}

    def new() -> list[int]:
        return [
            thread.native_id
            for thread in threading.enumerate()
            if thread.native_id is not None
            and thread.native_id not in before
            and thread.name == "cosmos-fast world"
        ]

    return new


def in_time(happened: Callable[[], bool]) -> bool:
    end = time.monotonic() + SOON
    while not happened() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    return happened()


def started(engine: cf.Video2World) -> cf.World:
    world = cf.World(engine, 1, num_steps=1)
    world.reset(pictures(1))
    return world


class Held:
    """A callback that keeps its step from ending until it may."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.begun.set()
        assert self.may_end.wait(SOON)


def test_worlds_of_one_engine_submit_on_one_thread_in_order(
    engine: cf.Video2World, threads: Callable[[], list[int]]
) -> None:
    seen: list[tuple[str, int]] = []

    def tell(name: str) -> Callable[..., None]:
        return lambda *_: seen.append((name, threading.get_native_id()))

    worlds = {"first": started(engine), "second": started(engine)}
    worlds["fork"] = worlds["first"].fork(0, 1)
    assert not threads()
    futures = [
        world.submit(actions(1, seed=turn), on_frames=tell(f"{name} {turn}"))
        for turn in range(3)
        for name, world in worlds.items()
    ]
    for future in futures:
        future.result(SOON)
    wanted = [f"{name} {turn}" for turn in range(3) for name in worlds]
    assert list(dict.fromkeys(name for name, _ in seen)) == wanted
    assert [{number for _, number in seen}] == [set(threads())]
    assert len(threads()) == 1


def test_close_cancels_and_waits_for_its_own_steps_only(engine: cf.Video2World) -> None:
    world, other, third = started(engine), started(engine), started(engine)
    held = Held()
    running = world.submit(actions(1), on_frames=held)
    waiting, beside = world.submit(actions(1)), other.submit(actions(1))
    cancelled = third.submit(actions(1))
    assert held.begun.wait(SOON)
    third.close()  # which does not wait for another world's step, or this would never end
    assert cancelled.cancelled()
    closing = threading.Thread(target=world.close)
    closing.start()
    assert in_time(waiting.cancelled)
    closing.join(0.2)
    assert closing.is_alive(), "close has not waited for the step that had begun"
    assert not beside.done()
    held.may_end.set()
    closing.join(SOON)
    assert not closing.is_alive()
    assert running.done()
    assert running.result().state[0].chunks == 1
    assert beside.result(SOON).state[0].chunks == 1
    assert other.submit(actions(1)).result(SOON).state[0].chunks == 2
    world.close()
    with pytest.raises(cf.InputError, match="closed"):
        world.submit(actions(1))


def test_close_waits_for_a_futures_callbacks(engine: cf.Video2World) -> None:
    world, held, called = started(engine), Held(), list[str]()

    def slow(_: object) -> None:
        time.sleep(0.3)
        called.append("through")

    future = world.submit(actions(1), on_frames=held)
    future.add_done_callback(slow)
    held.may_end.set()
    future.result(SOON)
    world.close()
    assert called == ["through"]


@pytest.mark.parametrize("where", ["on_frames", "done"])
def test_a_world_may_be_closed_on_the_thread_of_its_steps(
    engine: cf.Video2World, where: str
) -> None:
    world, held = started(engine), Held()

    def close(*_: object) -> None:
        assert held.begun.wait(SOON)
        world.close()

    first = world.submit(actions(1), on_frames=close if where == "on_frames" else held)
    second = world.submit(actions(1))
    if where == "done":
        first.add_done_callback(close)
    held.begun.set()
    held.may_end.set()
    made = first.result(SOON)
    assert made.state[0].chunks == 1
    assert in_time(second.cancelled)
    kept = weakref.ref(made.state[0])
    del made, first
    assert in_time(lambda: kept() is None), "a closed world holds its states"
    assert started(engine).submit(actions(1)).result(SOON).state[0].chunks == 1


def test_short_lived_worlds_leave_one_thread_and_the_engine_takes_it_along(
    folder: Path, threads: Callable[[], list[int]]
) -> None:
    engine = cf.Video2World.from_pretrained(folder, device="cpu")
    numbers, gone = set[int](), list[weakref.ref[Any]]()
    for turn in range(12):
        world = started(engine)
        step = world.submit(actions(1, seed=turn)).result(SOON)
        gone += [weakref.ref(world), weakref.ref(step.state[0])]
        if turn % 2:
            world.close()
        numbers |= set(threads())
        del world, step
    assert len(numbers) == 1
    assert in_time(lambda: not any(ref() for ref in gone)), "a world is held that nobody holds"
    assert threads() == list(numbers)
    held, last = weakref.ref(engine), started(engine)
    last.submit(actions(1))  # whose thread is the last to let go of the engine
    del engine, last
    assert in_time(lambda: held() is None)
    assert in_time(lambda: not threads())


def test_what_a_submitted_step_raises_is_in_its_future(engine: cf.Video2World) -> None:
    def fail(error: BaseException) -> Callable[..., None]:
        def raises(*_: object) -> None:
            raise error

        return raises

    world = started(engine)
    errors = [ValueError("mine"), SystemExit(3), KeyboardInterrupt()]
    broken = [world.submit(actions(1), on_frames=fail(error)) for error in errors]
    refused, after = world.submit(actions(2)), world.submit(actions(1))
    assert [future.exception(SOON) for future in broken] == errors
    with pytest.raises(cf.InputError, match="is needed"):
        refused.result(SOON)
    assert after.result(SOON).state[0].chunks == 1


def test_an_error_is_let_go_of_with_its_future(engine: cf.Video2World) -> None:
    """Without the collector: a circle would keep the frames of a failed step, and their memory."""

    class Mine(Exception):
        pass

    def fail(*_: object) -> None:
        raise Mine

    world = started(engine)
    gc.collect()
    gc.disable()
    try:
        future = world.submit(actions(1), on_frames=fail)
        error = weakref.ref(future.exception(SOON) or Mine())
        assert error() is not None
        world.close()
        del future
        assert error() is None
    finally:
        gc.enable()


def ended(folder: Path, body: str) -> tuple[list[str], float]:
    """What a script of ``body`` says, and the seconds from its last word to its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + body, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            "PYTHONPATH": ":".join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        },
    )
    assert process.stdout is not None
    assert process.stderr is not None
    words, since = list[str](), 0.0
    limit = threading.Timer(SOON, process.kill)
    limit.start()
    with process:
        # All of it in one way: what one reader has read ahead, another would not see.
        for line in process.stdout:
            words.append(line.strip())
            if words[-1] == "leaving":
                since = time.monotonic()
        errors = process.stderr.read()
    seconds = time.monotonic() - since
    limit.cancel()
    assert (process.returncode, errors) == (0, "")
    return words, seconds


@pytest.mark.parametrize("closes", [False, True], ids=["as it is", "closed by its block"])
def test_the_interpreter_ends_without_the_steps_that_have_not_begun(
    folder: Path, closes: bool
) -> None:
    words, seconds = ended(
        folder,
        """
begun = threading.Event()

def slow(*_):
    if not begun.is_set():
        begun.set()
        time.sleep(0.5)
        say("through")

def late(*_):
    say("late")
    time.sleep(1)

futures = [world.submit(actions(1), on_frames=slow)]
futures += [world.submit(actions(1), on_frames=late) for _ in range(100)]
futures[1].add_done_callback(lambda future: say("cancelled", future.cancelled()))
begun.wait()
say("leaving")
"""
        + ("world.close()\n" if closes else ""),
    )
    # What has begun is not cut off, in the middle of torch.
    assert sorted(words[1:]) == ["cancelled True", "through"]
    assert words[0] == "leaving"
    assert seconds < 20


def test_a_step_that_never_ends_does_not_keep_the_interpreter(folder: Path) -> None:
    words, seconds = ended(
        folder,
        """
import cosmos_fast.worker
assert 5 <= cosmos_fast.worker._EXIT_SECONDS <= 60
cosmos_fast.worker._EXIT_SECONDS = 0.5
begun = threading.Event()

def hang(*_):
    begun.set()
    threading.Event().wait()

world.submit(actions(1), on_frames=hang)
begun.wait()
say("leaving")
""",
    )
    assert words == ["leaving"]
    assert seconds < 20


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_of_a_fork_has_a_thread_of_its_own(folder: Path) -> None:
    words, _ = ended(
        folder,
        """
import signal
world.submit(actions(1)).result()
child = os.fork()
if child == 0:
    signal.alarm(30)
    say("child", world.submit(actions(1)).result().state[0].chunks)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
say("parent", world.submit(actions(1)).result().state[0].chunks)
say("leaving")
""",
    )
    assert words == ["child 2", "parent 2", "leaving"]
