"""The side channel between ranks speaks when it is time to, and no more."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from cosmos_fast.parallel import watch
from cosmos_fast.parallel.watch import Watch

BEAT = 0.1


def test_ranks_do_not_answer_each_other_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of life for each one that is heard took a core, and the interpreter from the rest."""
    monkeypatch.setattr(watch, "BEAT", BEAT)
    ours, theirs = socket.socketpair()
    seen = Watch(0, {1: theirs})
    began, heard = time.monotonic(), 0
    ours.settimeout(BEAT / 4)
    while time.monotonic() - began < 10 * BEAT:
        with contextlib.suppress(TimeoutError):
            heard += ours.recv(65536).count(b"\n")
            ours.sendall(b"{}\n")
    took = time.monotonic() - began
    seen.close()
    ours.close()
    assert 2 <= heard <= took / BEAT + 1


def test_a_rank_that_hears_much_still_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BEAT", BEAT)
    ours, theirs = socket.socketpair()
    seen = Watch(0, {1: theirs})
    began = time.monotonic()
    while time.monotonic() - began < 5 * BEAT:
        ours.sendall(b"{}\n")
        time.sleep(BEAT / 20)
    ours.settimeout(20)
    assert ours.recv(65536).count(b"\n") >= 2
    seen.close()
    ours.close()
