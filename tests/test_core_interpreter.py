"""The Rust core as a citizen of its interpreter: the lock is released, Ctrl-C is heard."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cosmos_fast._core import Encoder, ProcessLimits, capture, denormalize, normalize, resize
from cosmos_fast.errors import CosmosFastError, InputError, MediaError

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = ProcessLimits(seconds=30)


def long_resize() -> None:
    picture = np.zeros((1, 2000, 3000, 3), np.uint8)
    resize(picture, np.empty((1, 900, 1600, 3), np.uint8), fit="stretch")


def long_normalize() -> None:
    pixels = np.zeros((20, 704, 1280, 3), np.uint8)
    video = np.empty((3, 20, 704, 1280), np.float32)
    normalize(pixels, video)
    denormalize(video, pixels)


def long_capture() -> None:
    capture(["/bin/sleep", "0.3"], limits=LIMITS, most_bytes=10)


def long_write() -> None:
    with Path(os.devnull).open("wb") as nowhere:
        encoder = Encoder(
            ["/bin/sh", "-c", "sleep 0.3; cat"],
            output=nowhere.fileno(),
            size=(704, 1280),
            pixels="rgb24",
            ring=1,
            limits=LIMITS,
        )
        encoder.write(np.zeros((4, 704, 1280, 3), np.uint8))
        encoder.finish()


@pytest.mark.parametrize("work", [long_resize, long_normalize, long_capture, long_write])
def test_the_interpreter_lock_is_released(work: Callable[[], None]) -> None:
    """Another thread runs Python while the core works, as often as it wants."""
    # A thread that waits for the lock gets it after this long at the latest, were the holder
    # to run Python code; native code that does not release it holds it throughout.
    turns, running = [0], [True]

    def count() -> None:
        while running[0]:
            turns[0] += 1
            time.sleep(0.001)

    other = threading.Thread(target=count)
    other.start()
    work()  # the first call also starts the core's threads
    before, start = turns[0], time.perf_counter()
    work()
    seen, took = turns[0] - before, time.perf_counter() - start
    running[0] = False
    other.join()
    assert seen > 0.02 * took / 0.001, f"{seen} turns of another thread in {took:.3f} s"


SLEEP = ["/bin/sleep", f"600.{os.getpid()}"]
"""Told apart from those of another run of these tests."""


def wait_in(place: str) -> None:
    limits = ProcessLimits(seconds=60)
    if place == "capture":
        capture(SLEEP, limits=limits, most_bytes=1)
    with Path(os.devnull).open("wb") as nowhere:
        encoder = Encoder(
            SLEEP, output=nowhere.fileno(), size=(64, 64), pixels="rgb24", ring=1, limits=limits
        )
        while place == "write":
            encoder.write(np.zeros((50, 64, 64, 3), np.uint8))
        encoder.finish()


def fork_into(place: str, tell: int) -> int:
    """A forked process that waits in the core; when Ctrl-C is heard it says at what time."""
    child = os.fork()
    if child == 0:
        # Python leaves Ctrl-C ignored where a shell started it in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            wait_in(place)
        except KeyboardInterrupt:
            os.write(tell, str(time.monotonic()).encode())
        finally:
            os._exit(1)
    return child


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("place", ["capture", "write", "finish"])
def test_ctrl_c_is_heard_within_a_second(place: str) -> None:
    hear, tell = os.pipe()
    child = fork_into(place, tell)
    os.close(tell)  # a child that dies without a word ends the read below
    wait_for_sleeper()
    start = time.monotonic()
    os.kill(child, signal.SIGINT)
    heard = os.read(hear, 100)
    os.waitpid(child, 0)
    os.close(hear)
    assert float(heard) - start < 1
    assert not sleepers()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_host_takes_its_children_along() -> None:
    child = fork_into("finish", -1)
    wait_for_sleeper()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 20
    while sleepers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not sleepers()


def wait_for_sleeper() -> None:
    deadline = time.monotonic() + 20
    while not sleepers():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sleepers() -> list[str]:
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_text())
        except OSError:
            continue
    return [line for line in lines if line.split("\0")[:2] == SLEEP]


def test_a_child_outlives_the_thread_that_asked_for_it() -> None:
    """The kernel kills a child with the thread that started it: that must not be the caller's."""
    found: list[Any] = []
    read, write = os.pipe()

    def start() -> None:
        found.append(
            Encoder(
                ["/bin/sh", "-c", "sleep 0.3; wc -c"],
                output=write,
                size=(2, 2),
                pixels="rgb24",
                ring=1,
                limits=LIMITS,
            )
        )

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    found[0].write(np.zeros((2, 2, 2, 3), np.uint8))
    found[0].finish()
    assert os.read(read, 100).split() == [b"24"]
    os.close(read)
    os.close(write)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_of_the_host_does_not_hold_the_end_back() -> None:
    """Such as a data loader's worker: it inherits our side of every pipe that is open."""
    read, write = os.pipe()
    command = ["/bin/sh", "-c", "wc -c"]
    encoder = Encoder(
        command, output=write, size=(2, 2), pixels="rgb24", ring=1, limits=ProcessLimits(seconds=9)
    )
    encoder.write(np.zeros((1, 2, 2, 3), np.uint8))
    worker = os.posix_spawn("/bin/sleep", ["sleep", "30"], {})  # with all inheritable descriptors
    forked = fork_and_wait()
    try:
        encoder.finish()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)
    assert os.read(read, 100).split() == [b"12"]
    os.close(read)
    os.close(write)


def fork_and_wait() -> int:
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    return child


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_pixels_are_packed_in_a_forked_child() -> None:
    """The threads of the core do not exist there; the work must be done all the same."""
    long_normalize()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        long_resize()
        os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


def test_errors_of_the_core_are_ours() -> None:
    with pytest.raises(MediaError) as caught:
        capture(["/bin/false"], limits=LIMITS, most_bytes=1)
    assert isinstance(caught.value, CosmosFastError)
    with pytest.raises(InputError, match="empty command line"):
        capture([], limits=LIMITS, most_bytes=1)
    with pytest.raises(InputError, match="time limit"):
        ProcessLimits(seconds=-1)
    with pytest.raises(MediaError, match="more than 5 bytes"):
        capture(["/bin/echo", "too long"], limits=LIMITS, most_bytes=5)
    with pytest.raises(OSError, match="Bad file descriptor"):
        capture(["/bin/cat"], limits=LIMITS, most_bytes=5, source=999_999)
