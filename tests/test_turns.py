"""Callers are served in order of arrival, also when one of them gives up."""

import threading
import time

import pytest

from cosmos_fast.turns import Turns


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.001)


def test_callers_are_served_in_order():
    turns, served, inside = Turns(), [], []

    def caller(number):
        with turns:
            inside.append(number)
            assert len(inside) == 1, "two callers inside"
            served.append(number)
            inside.pop()

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(20)]
    with turns:
        for count, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda count=count: len(turns._waiting) == count)
    for thread in threads:
        thread.join()
    assert served == list(range(20))


def test_an_error_inside_passes_the_turn_on():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns:
        _ = 1 / 0
    with turns:
        pass


def test_one_who_gives_up_leaves_the_queue():
    class GivesUp(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    turns = Turns()
    real, threading.Event = threading.Event, GivesUp
    try:
        with turns:
            with pytest.raises(KeyboardInterrupt):
                turns.__enter__()
            assert not turns._waiting
    finally:
        threading.Event = real
    with turns:
        pass
