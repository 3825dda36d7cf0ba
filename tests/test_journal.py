"""The journal from Python: what comes back, and after what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_fast._core import Journal
from cosmos_fast.errors import InputError

WRITER = """
import sys
from cosmos_fast._core import Journal

journal = Journal(sys.argv[1], fresh=False)
assert journal.lease(3)
number = 0
while True:
    journal.append([f"{sys.argv[2]} {number}".encode()], sync=False)
    number += 1
    if number == 20:
        print("ready", flush=True)
"""


def writer(path: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True
    )


def test_records_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", fresh=True)
    journal.append([b"one", b"two"])
    journal.append([b"three"], sync=False)
    assert journal.read() == [b"one", b"two", b"three"]
    assert journal.read() == []
    assert Journal(tmp_path / "journal", fresh=False).read() == [b"one", b"two", b"three"]
    assert journal.damaged == 0


def test_a_killed_writer_loses_its_lease_and_no_record_of_others(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    ours = Journal(path, fresh=True)
    for round_ in range(2):
        child = writer(path, f"child{round_}")
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert not ours.lease(3)
        ours.append([f"ours {round_}".encode()])
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert ours.lease(3), "the lease must end with its holder"
        ours.release(3)
    found = ours.read()
    assert [one for one in found if one.startswith(b"ours")] == [b"ours 0", b"ours 1"]
    for round_ in range(2):
        own = [one for one in found if one.startswith(f"child{round_} ".encode())]
        assert own == [f"child{round_} {number}".encode() for number in range(len(own))]
        assert len(own) >= 20
    assert Journal(path, fresh=False).read() == found


def test_a_locked_journal_is_written_by_its_holder_alone(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "journal", fresh=True)
    ours.lock()
    code = (
        "import sys; from cosmos_fast._core import Journal\n"
        "Journal(sys.argv[1], fresh=False).append([b'theirs'])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "journal")])
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(4)
    ours.append([b"ours"])
    ours.unlock()
    assert child.wait(20) == 0
    assert ours.read() == [b"ours", b"theirs"]


@pytest.mark.parametrize(
    ("record", "words"), [(b"", "0 bytes"), (bytes(1 << 17), "131072 bytes")], ids=["empty", "long"]
)
def test_records_have_a_size(tmp_path: Path, record: bytes, words: str) -> None:
    journal = Journal(tmp_path / "journal", fresh=True)
    with pytest.raises(InputError, match=words):
        journal.append([b"right", record])
    assert journal.read() == []


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("Dear diary, today I learnt a lot.")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "journal")
    Journal(tmp_path / "journal", fresh=True)
    for name, words in (
        ("diary", "no journal of cosmos-fast"),
        ("pipe", "not a regular file"),
        ("link", "symbolic"),
        ("gone/journal", "make its folder"),
    ):
        with pytest.raises(InputError, match=words):
            Journal(tmp_path / name, fresh=False)
    with pytest.raises(InputError, match="resume it"):
        Journal(tmp_path / "journal", fresh=True)


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", fresh=True)
    other = Journal(tmp_path / "journal", fresh=False)
    assert journal.lease(1)
    journal.close()
    assert other.lease(1)
    with pytest.raises(InputError, match="closed"):
        journal.read()
