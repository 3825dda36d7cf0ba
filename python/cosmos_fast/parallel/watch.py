"""A side channel between ranks: one that dies, fails or falls silent is known within seconds.

The collectives themselves notice late or never: NCCL waits for a dead peer until its time-out.
Every rank keeps a connection to rank 0. The kernel closes it when a process dies, whatever killed
it; a rank that fails says why; rank 0 passes on what it learns.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.errors import RankLost

if TYPE_CHECKING:
    from collections.abc import Callable

BEAT: Final = 1.0
"""Seconds between two signs of life."""
SILENCE: Final = 20.0
"""Seconds without one after which a rank, or the machine under it, counts as gone."""
_LONGEST_LINE: Final = 65536


class _Peer:
    """One connection: lines of JSON in both directions."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        self.rank = rank
        self.connection = connection
        self.heard = time.monotonic()
        self.finished = 0
        """The last run that this rank has completed."""
        self._partial = b""
        self._sending = threading.Lock()

    def say(self, **message: Any) -> None:
        """Sends a message; a connection that is gone shows when it is read."""
        with self._sending, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> list[dict[str, Any]] | None:
        """What has arrived; None at the end of the connection."""
        try:
            data = self.connection.recv(_LONGEST_LINE)
        except OSError:
            return None
        if not data or len(self._partial) > _LONGEST_LINE:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        self.heard = time.monotonic()
        return [json.loads(line) for line in lines if line.strip()]


class Watch:
    """This rank's end of the side channel, and the verdict over the others."""

    def __init__(self, rank: int, connections: dict[int, socket.socket]) -> None:
        """
        Args:
            rank: this one.
            connections: to every other rank on rank 0, to rank 0 on the others.
        """
        self._rank = rank
        self._peers = {number: _Peer(number, each) for number, each in connections.items()}
        self._run = 0
        self._active = False
        self._gone: set[int] = set()
        self._verdict: RankLost | None = None
        self._known = threading.Condition()
        self._on_loss: list[Callable[[RankLost], None]] = []
        self._inlet, self._outlet = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, name="cosmos-fast ranks", daemon=True)
        self._thread.start()

    def on_loss(self, act: Callable[[RankLost], None]) -> None:
        """Calls ``act`` once, on a thread of its own, should a rank be lost during a run."""
        self._on_loss.append(act)

    def begin(self) -> None:
        """A run starts.

        Raises:
            RankLost: the ranks cannot make another.
        """
        with self._known:
            self._run += 1
            for rank in sorted(self._gone):
                self._lose(rank, "has ended")
            self.check()
            self._active = True

    def finish(self) -> None:
        """This rank has completed its run and needs no other for it any more."""
        with self._known:
            self._active = False
        for peer in self._peers.values():
            peer.say(finished=self._run)

    def fail(self, why: str) -> None:
        """Tells the others that this rank gives the run up."""
        with self._known:
            self._active = False
            if self._verdict is None:
                self._verdict = RankLost(f"an earlier run failed: {why}; start the ranks again")
        for peer in self._peers.values():
            peer.say(lost=self._rank, why=f"failed: {why}")

    def leave(self) -> None:
        """Tells the others that somebody ended this rank's work. It goes on hearing of theirs."""
        for peer in self._peers.values():
            peer.say(lost=self._rank, why="was interrupted", interrupted=True)

    def check(self) -> None:
        """
        Raises:
            RankLost: another rank is lost.
        """
        with self._known:
            if self._verdict is not None:
                raise self._verdict

    def verdict_within(self, seconds: float) -> RankLost | None:
        """Why a rank was lost, as soon as that is known."""
        with self._known:
            self._known.wait_for(lambda: self._verdict is not None, seconds)
            return self._verdict

    def close(self) -> None:
        """Ends the connections and the thread."""
        with contextlib.suppress(OSError):
            self._outlet.send(b"\0")
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._inlet, selectors.EVENT_READ, None)
            for peer in self._peers.values():
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            slept = spoke = time.monotonic()
            while True:
                ready = selector.select(max(0.0, spoke + BEAT - slept))
                now = time.monotonic()
                if now - slept > 5 * BEAT:  # this process was stopped: the others were not heard
                    for peer in self._peers.values():
                        peer.heard = now
                slept = now
                for key, _ in ready:
                    if key.data is None:
                        return self._hang_up()
                    self._read(selector, key.data)
                # By the clock, not with every message: two ranks would answer each other for ever.
                if now - spoke >= BEAT:
                    spoke = now
                    self._beat(selector)

    def _hang_up(self) -> None:
        for peer in self._peers.values():
            peer.connection.close()
        self._inlet.close()
        self._outlet.close()

    def _read(self, selector: selectors.BaseSelector, peer: _Peer) -> None:
        messages = peer.messages()
        if messages is None:
            selector.unregister(peer.connection)
            self._end_of(peer, "died")
            return
        for message in messages:
            if "finished" in message:
                peer.finished = message["finished"]
            elif "lost" in message:
                with self._known:
                    self._lose(message["lost"], message["why"], message.get("interrupted", False))

    def _beat(self, selector: selectors.BaseSelector) -> None:
        silent_since = time.monotonic() - SILENCE
        for peer in self._peers.values():
            if peer.rank in self._gone:
                continue
            peer.say()
            if peer.heard < silent_since:
                selector.unregister(peer.connection)
                self._end_of(peer, f"has given no sign of life for {SILENCE:.0f} seconds")

    def _end_of(self, peer: _Peer, why: str) -> None:
        """A rank that has completed its run may go; otherwise the run is over."""
        with self._known:
            self._gone.add(peer.rank)
            if peer.finished < self._run:
                self._lose(peer.rank, why)

    def _lose(self, rank: int, why: str, interrupted: bool = False) -> None:
        if self._verdict is not None:
            return
        verdict = RankLost(f"rank {rank} {why}", interrupted=interrupted)
        self._verdict = verdict
        self._known.notify_all()
        if self._rank == 0:
            for peer in self._peers.values():
                if peer.rank != rank:
                    peer.say(lost=rank, why=why, interrupted=interrupted)
        if self._active:
            for act in self._on_loss:
                threading.Thread(target=act, args=(verdict,), daemon=True).start()


def meet(
    rank: int, size: int, tell_all: Callable[[bytes | None], bytes], seconds: float
) -> dict[int, socket.socket]:
    """The connections of the side channel.

    Args:
        tell_all: on rank 0 given what to tell, elsewhere None; returns what rank 0 told.
        seconds: within which every rank has to come.

    Raises:
        RankLost: somebody did not come.
    """
    import secrets

    if rank:
        told = json.loads(tell_all(None))
        address = "127.0.0.1" if told["machine"] == _machine() else told["host"]
        try:
            connection = socket.create_connection((address, told["port"]), seconds)
        except OSError as error:
            raise RankLost(f"rank {rank} cannot reach rank 0 at {address}: {error}") from error
        connection.settimeout(None)
        connection.sendall(f"{told['word']} {rank:06d}".encode())
        return {0: connection}
    with socket.create_server(("", 0), backlog=size) as server:
        word = secrets.token_hex(16)
        port = server.getsockname()[1]
        told = {"host": socket.gethostname(), "machine": _machine(), "port": port, "word": word}
        tell_all(json.dumps(told).encode())
        return _accept(server, word, size, time.monotonic() + seconds)


def _accept(
    server: socket.socket, word: str, size: int, deadline: float
) -> dict[int, socket.socket]:
    found: dict[int, socket.socket] = {}
    greeting = len(word) + 7
    while len(found) < size - 1:
        server.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            connection, _ = server.accept()
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            said = connection.recv(greeting, socket.MSG_WAITALL).decode("ascii", "replace")
        except TimeoutError as error:
            missing = sorted(set(range(1, size)) - set(found))
            raise RankLost(f"ranks {missing} did not come to the side channel") from error
        given, _, rank = said.partition(" ")
        if given != word or not rank.isdigit():
            connection.close()  # a stranger on our port
            continue
        connection.settimeout(None)
        found[int(rank)] = connection
    return found


def _machine() -> str:
    """The same on two processes only if they run on one machine, in one network."""
    from pathlib import Path

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/net').readlink()}"
    except OSError:
        return socket.gethostname()
