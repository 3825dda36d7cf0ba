"""Lists run to their end: whatever is killed, whatever fails, nothing is lost or made twice."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tools.toy_jobs import PROFILE, ToyClip, ToyEngine, generated

import cosmos_fast as cf
from bad_jobs import job
from cosmos_fast.jobs import run_batch
from cosmos_fast.jobs.batch import BatchRun
from cosmos_fast.jobs.ledger import MOST_STARTS
from cosmos_fast.media import write_png

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosmos_fast.config import Profile

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_png(tmp_path / "start.png", np.full((16, 16, 3), 90, np.uint8))
    write_jobs(tmp_path, [job(prompt=f"job {n}") for n in range(4)])
    return tmp_path


def write_jobs(place: Path, lines: list[bytes]) -> None:
    (place / "jobs.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def run(place: Path, engine: Any = None, **options: Any) -> Any:
    engine = engine or ToyEngine(place / "log", seconds=0)
    return run_batch(engine, place / "jobs.jsonl", place / "out", input_root=place, **options)


def files(place: Path) -> set[str]:
    return {path.name for path in (place / "out").iterdir()}


def of(*numbers: int) -> set[str]:
    """Files of these jobs, and the two of the list."""
    own = {f"{n}{suffix}" for n in numbers for suffix in (".mp4", ".txt", ".json")}
    return own | {"jobs.jsonl.journal", "jobs.jsonl.summary.json"}


class ReadAhead(ToyEngine):
    """Knows how many jobs were read: whoever reads one asks for the profile first."""

    def __init__(self, log: Path, seconds: float = 0) -> None:
        self.reads: list[int] = []
        super().__init__(log, seconds)

    @property
    def profile(self) -> Profile:
        if threading.current_thread().name.startswith("cosmos-fast read"):
            self.reads.append(len(self.reads))
        return PROFILE

    @profile.setter
    def profile(self, _: Profile) -> None:
        pass

    def wait_for(self, reads: int) -> None:
        limit = time.monotonic() + 20
        while len(self.reads) < reads:
            assert time.monotonic() < limit, f"{len(self.reads)} of {reads} jobs were read"
            time.sleep(0.01)


class Failing(ToyEngine):
    """Raises ``error`` for the prompts that ``when`` picks."""

    def __init__(self, log: Path, error: Callable[[], BaseException], when: str = "job 1") -> None:
        super().__init__(log, seconds=0)
        self.error, self.when = error, when

    def generate(self, *arguments: Any, **options: Any) -> ToyClip:
        if self.when in arguments[1]:
            raise self.error()
        return super().generate(*arguments, **options)


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_is_finished_exactly() -> None:
    """15 kill points here, 300 in ``make soak``; then two workers of which one is killed."""
    command = [sys.executable, "-m", "tools.soak_batch", "--points", "15"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["ok"], (told, found.stderr)
    assert told["killed_before_the_end"] >= 5
    assert found.returncode == 0


def test_ranks_that_share_their_videos_are_given_no_list(tmp_path: Path) -> None:
    class Shared(ToyEngine):
        ranks = 2

    (tmp_path / "jobs.jsonl").write_bytes(job())
    with pytest.raises(cf.InputError, match="2 ranks share this engine's videos"):
        run_batch(Shared(tmp_path / "log"), tmp_path / "jobs.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_whole_is_kept_and_what_was_touched_is_made_again(place: Path) -> None:
    assert run(place).made == 4
    (place / "out" / "1.mp4").write_bytes(b"somebody was here")
    (place / "out" / "2.mp4").unlink()
    (place / "out" / "3.json").unlink()
    summary = run(place, resume=True)
    assert (summary.attempt, summary.made, summary.kept) == (2, 3, 1)
    assert sorted(generated(place / "log")[4:]) == ["job 1", "job 2", "job 3"]
    assert run(place, resume=True).kept == 4
    assert files(place) == of(0, 1, 2, 3)


def test_a_video_without_its_text_is_not_whole(place: Path) -> None:
    run(place)
    assert "2.txt" in files(place)
    (place / "out" / "2.txt").unlink()
    summary = run(place, resume=True)
    assert (summary.made, summary.kept) == (1, 3)
    assert files(place) == of(0, 1, 2, 3)


def test_another_picture_of_the_same_name_is_noticed(place: Path) -> None:
    """And the same picture with another time is not made into a video again."""
    run(place)
    os.utime(place / "start.png", (1, 1))
    assert run(place, resume=True).kept == 4
    write_png(place / "start.png", np.full((16, 16, 3), 30, np.uint8))
    summary = run(place, resume=True)
    assert (summary.made, summary.kept) == (4, 0)
    assert run(place, resume=True).kept == 4


def test_a_changed_job_is_made_again_and_a_new_one_as_well(place: Path) -> None:
    run(place)
    lines = [job(prompt=f"job {n}", **({"seed": 9} if n == 2 else {})) for n in range(5)]
    write_jobs(place, lines)
    summary = run(place, resume=True)
    assert (summary.made, summary.kept) == (2, 3)
    assert generated(place / "log")[4:] == ["job 2", "job 4"]
    assert run(place, resume=True, model="another").made == 5


def test_videos_without_their_journal_are_known_by_their_manifests(place: Path) -> None:
    run(place)
    (place / "out" / "jobs.jsonl.journal").unlink()
    assert run(place, resume=True).kept == 4
    (place / "out" / "jobs.jsonl.journal").unlink()
    assert run(place).made == 4  # asked to make them, not to resume


def test_a_list_replaces_no_video_of_another_list(place: Path) -> None:
    run(place)
    before = {name: (place / "out" / name).read_bytes() for name in of(0, 1)}
    engine = ToyEngine(place / "log", seconds=0)
    lines = [job(prompt="another"), job(prompt="one more", output_video="mine.mp4")]
    (place / "others.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    out = place / "out"
    summary = run_batch(engine, place / "others.jsonl", out, input_root=place)
    assert (summary.made, summary.failed) == (1, 1)
    (failed,) = summary.failures
    assert failed.failure is not None
    assert failed.failure.code == 2
    assert "0.mp4 was made from another list, jobs.jsonl" in failed.failure.message
    assert {name: (place / "out" / name).read_bytes() for name in before} == before
    assert "mine.mp4" in files(place)
    assert "another" not in generated(place / "log"), "refused before it is made"
    # Where that list has been given up, what it made is nobody's.
    (out / "jobs.jsonl.journal").unlink()
    again = run_batch(engine, place / "others.jsonl", out, input_root=place, resume=True)
    assert (again.made, again.kept, again.failed) == (1, 1, 0)


def test_lists_at_work_at_once_replace_nothing_either(place: Path) -> None:
    class Slow(ToyEngine):
        def generate(self, *arguments: Any, **options: Any) -> ToyClip:
            run(place)  # the other list is begun and done meanwhile
            return super().generate(*arguments, **options)

    (place / "others.jsonl").write_bytes(job(prompt="another") + b"\n")
    engine = Slow(place / "log", seconds=0)
    summary = run_batch(engine, place / "others.jsonl", place / "out", input_root=place)
    assert (summary.made, summary.failed) == (0, 1)
    manifest = json.loads((place / "out" / "0.json").read_bytes())
    assert manifest["job"]["list"] == "jobs.jsonl"
    assert run(place, resume=True).kept == 4


def test_an_earlier_run_is_not_overwritten_unasked(place: Path) -> None:
    run(place)
    with pytest.raises(cf.InputError, match="resume it, or remove"):
        run(place)
    assert run(place, resume=True).kept == 4


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(lambda: cf.InputError("bad"), 2, id="input"),
        pytest.param(lambda: cf.GuardrailBlocked("no"), 3, id="blocked"),
        pytest.param(lambda: cf.MemoryPlanError("full"), 1, id="memory"),
        pytest.param(lambda: RuntimeError("a fault of ours"), 1, id="unexpected"),
        pytest.param(lambda: OSError(errno.EIO, "disk"), 1, id="system"),
    ],
)
def test_one_that_fails_is_a_row_and_the_rest_go_on(
    place: Path, error: Callable[[], Exception], code: int
) -> None:
    rows = []
    summary = run(
        place,
        Failing(place / "log", error),
        on_row=lambda row, settled, total: rows.append((row.index, row.status, settled, total)),
    )
    [row] = summary.failures
    assert (row.index, row.line, row.video, row.failure.code) == (1, 2, "1.mp4", code)
    assert row.failure.error == type(error()).__name__
    assert files(place) == of(0, 2, 3)
    assert sorted(rows) == sorted(
        (index, "failed" if index == 1 else "made", settled + 1, 4)
        for settled, (index, *_) in enumerate(rows)
    )
    assert run(place, resume=True).made == 1  # what failed is tried again


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(lambda: cf.DeviceLost("gone"), id="device lost"),
        pytest.param(lambda: OSError(errno.ENOSPC, "no space"), id="disk full"),
        pytest.param(KeyboardInterrupt, id="interrupt"),
    ],
)
def test_what_no_job_can_survive_ends_the_run_which_resumes(
    place: Path, error: Callable[[], BaseException]
) -> None:
    with pytest.raises(type(error())):
        run(place, Failing(place / "log", error))
    assert files(place) == of(0) - {"jobs.jsonl.summary.json"}
    assert run(place, resume=True).made == 4 - 1
    assert files(place) == of(0, 1, 2, 3)


def test_three_surprises_in_a_row_end_the_run(place: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        run(place, Failing(place / "log", lambda: RuntimeError("broken"), "job"))
    assert not generated(place / "log") if (place / "log").exists() else True
    assert run(place, resume=True).made == 4


def test_cancelling_ends_the_run_which_resumes(place: Path) -> None:
    stop = threading.Event()
    with pytest.raises(cf.Cancelled):
        run(place, cancel=stop, on_row=lambda *_: stop.set())
    assert run(place, resume=True).ok


def test_a_broken_save_leaves_nothing(place: Path) -> None:
    class Tearing(ToyClip):
        def save(self, path: Path, **options: Any) -> Path:
            path.with_suffix(".json").write_text("{}")
            raise cf.MediaError("the encoder failed")

    class Engine(ToyEngine):
        def generate(self, *arguments: Any, **options: Any) -> ToyClip:
            clip = super().generate(*arguments, **options)
            return Tearing(b"", "") if "job 1" in arguments[1] else clip

    assert run(place, Engine(place / "log", seconds=0)).failed == 1
    assert files(place) == of(0, 2, 3)


def test_the_next_is_read_and_the_last_written_while_one_is_made(place: Path) -> None:
    """Each of the three stages waits for the two others to be at work: in turn it would hang."""
    meeting = threading.Barrier(2, timeout=20)

    class Slow(ToyClip):
        def save(self, path: Path, **options: Any) -> Path:
            meeting.wait()
            return super().save(path, **options)

    class Engine(ReadAhead):
        def generate(self, *arguments: Any, **options: Any) -> ToyClip:
            clip = super().generate(*arguments, **options)
            if "job 0" in arguments[1]:
                return Slow(b"0", "job 0")
            if "job 1" in arguments[1]:
                meeting.wait()  # job 0 is being written
                self.wait_for(3)
            return clip

    assert run(place, Engine(place / "log", seconds=0)).ok


def work(place: Path, barrier: Any) -> None:
    """Begins or joins, as it happens; a process of its own."""
    barrier.wait()
    engine = ToyEngine(place / "log", seconds=0.02)
    assert run_batch(engine, place / "jobs.jsonl", place / "out", resume=True, input_root=place).ok


@pytest.mark.slow
def test_workers_that_share_a_folder_make_nothing_twice(place: Path) -> None:
    write_jobs(place, [job(prompt=f"job {n}") for n in range(30)])
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=work, args=(place, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert sorted(generated(place / "log")) == sorted(f"job {n}" for n in range(30))
    makers = {line.split()[0] for line in (place / "log").read_text().splitlines()}
    assert len(makers) == 2, "one worker made everything"
    assert files(place) == of(*range(30))


def die(place: Path, writing: Any) -> None:
    """A run whose process is killed in job 1, while job 0 is being written and 2 has been read."""

    class Unhurried(ToyClip):
        def save(self, path: Path, **options: Any) -> Path:
            writing.set()
            time.sleep(60)  # its end comes before
            raise AssertionError

    class Deadly(ReadAhead):
        def generate(self, *arguments: Any, **options: Any) -> ToyClip:
            clip = super().generate(*arguments, **options)
            if "job 1" not in arguments[1]:
                return Unhurried(b"", "")
            self.wait_for(3)
            assert writing.wait(20)
            os.kill(os.getpid(), signal.SIGKILL)
            return clip

    run_batch(Deadly(place / "log"), place / "jobs.jsonl", place / "out", join=1, input_root=place)


@pytest.mark.slow
def test_a_job_that_kills_its_workers_fails_and_no_other_is_blamed(place: Path) -> None:
    from cosmos_fast.jobs.job_list import JobList
    from cosmos_fast.jobs.ledger import Ledger

    with JobList(place / "jobs.jsonl") as listed:
        Ledger.begin(place / "out", listed, resume=False).close()
    context = multiprocessing.get_context("spawn")
    for _ in range(MOST_STARTS):
        writing = context.Event()
        worker = context.Process(target=die, args=(place, writing))
        worker.start()
        worker.join(120)
        assert worker.exitcode == -signal.SIGKILL
    summary = run(place, join=1)
    assert [(row.index, row.failure.error) for row in summary.failures] == [(1, "WorkerDied")]
    assert files(place) == of(0, 2, 3) - {"jobs.jsonl.summary.json"}


def die_at_the_summary(place: Path) -> None:
    replace = Path.replace

    def die(path: Path, target: Path) -> Path:
        if target.name.endswith(".summary.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.replace = die  # type: ignore[assignment,method-assign]
    run(place)


def test_a_run_killed_at_its_last_file_leaves_nothing_behind(place: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=die_at_the_summary, args=(place,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert files(place) > of(0, 1, 2, 3) - {"jobs.jsonl.summary.json"}  # and what it was writing
    assert run(place, resume=True).kept == 4
    assert files(place) == of(0, 1, 2, 3)


def test_a_run_is_joined_with_its_own_list_only(place: Path) -> None:
    run(place)
    with pytest.raises(cf.InputError, match="no run 7"):
        run(place, join=7)
    write_jobs(place, [job()])
    with pytest.raises(cf.InputError, match="of this list"):
        run(place, join=1)


def test_descriptors_are_given_back(place: Path) -> None:
    run(place)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        run(place, resume=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def begin(place: Path, told: Any) -> None:
    with BatchRun(None, place / "jobs.jsonl", place / "out", model="m", input_root=place):
        told.send("begun")
        told.recv()


def test_of_two_fresh_runs_one_begins(place: Path) -> None:
    """Also where the first one has not come to its first job; and its death makes room."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    other = multiprocessing.get_context("spawn").Process(target=begin, args=(place, theirs))
    other.start()
    assert ours.recv() == "begun"
    with pytest.raises(cf.InputError, match="under way; resume it to share"):
        run(place)
    with BatchRun(
        None, place / "jobs.jsonl", place / "out", model="m", input_root=place, resume=True
    ) as shared:
        assert shared.attempt == 2
    other.kill()
    other.join()
    assert run(place).made == 4
