"""Kills batch runs with SIGKILL at many points, resumes them, and looks at what is there.

Twenty jobs through a stand-in engine, in processes of their own. After a run was killed and
resumed, twenty whole videos must be there, none generated more than twice, and no other file. Then
two workers share a folder, one is killed, and nothing is made twice but what it held. The last line
of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from tools.toy_jobs import ToyEngine, generated

from cosmos_fast.jobs import Defaults, run_batch
from cosmos_fast.jobs.ledger import verified
from cosmos_fast.media import write_png

JOBS: Final = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance, start = random.Random(asked.seed), time.monotonic()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        jobs = write_jobs(root)
        alone = whole = undisturbed(root / "whole", jobs, faults)
        twice = cut = 0
        for point in range(asked.points):
            folder = root / f"killed{point}"
            seconds = chance.uniform(0, whole * 1.1)
            if run_and_kill(work(folder, jobs, resume=False), seconds):
                cut += 1
            else:  # the machine has less to do beside this than it had
                whole = min(whole, seconds)
            twice += resume_and_check(folder, jobs, f"killed after {seconds:.3f} s", faults)
            if sys.stderr.isatty() or point % 20 == 19:
                print(f"{point + 1}/{asked.points} {faults[-1:]}", file=sys.stderr)
        for pair in range(max(1, asked.points // 15)):
            two_workers(root / f"two{pair}", jobs, chance.uniform(0.1, 0.5) * whole, faults)
    result = {
        "ok": not faults,
        "points": asked.points,
        "killed_before_the_end": cut,
        "jobs_generated_twice": twice,
        "seconds_undisturbed": round(alone, 2),
        "faults": faults[:20],
    }
    print(json.dumps(result | {"seconds": round(time.monotonic() - start, 1)}))
    return int(bool(faults))


def write_jobs(root: Path) -> Path:
    write_png(root / "start.png", np.full((16, 16, 3), 90, np.uint8))
    lines = [json.dumps({"visual_input": "start.png", "prompt": f"job {n}"}) for n in range(JOBS)]
    (root / "jobs.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return root / "jobs.jsonl"


def work(folder: Path, jobs: Path, *, resume: bool) -> Callable[[], None]:
    """A run of the list, for a process of its own."""

    def run() -> None:
        summary = run_batch(
            ToyEngine(folder.with_suffix(".log")),
            jobs,
            folder,
            resume=resume,
            input_root=jobs.parent,
            defaults=Defaults(options={"seed": 3}),
        )
        assert summary.ok, summary

    return run


def spawn(work: Callable[[], None]) -> int:
    """A child that does ``work``; the fork is of a process without threads."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def run_and_kill(work: Callable[[], None], seconds: float) -> bool:
    """Whether the child was killed before it had come to its end."""
    pid = spawn(work)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def undisturbed(folder: Path, jobs: Path, faults: list[str]) -> float:
    """Seconds of a run that nobody kills."""
    began = time.monotonic()
    if os.waitpid(spawn(work(folder, jobs, resume=False)), 0)[1]:
        faults.append("a run that nobody killed failed")
    seconds = time.monotonic() - began
    check(folder, jobs, 1, "undisturbed", faults)
    return seconds


def resume_and_check(folder: Path, jobs: Path, what: str, faults: list[str]) -> int:
    """Resumes a killed run; how many jobs were generated twice."""
    if os.waitpid(spawn(work(folder, jobs, resume=True)), 0)[1]:
        faults.append(f"{what}: the resumed run failed")
        return 0
    return check(folder, jobs, 2, what, faults)


def two_workers(folder: Path, jobs: Path, seconds: float, faults: list[str]) -> None:
    """One begins, another joins, the first is killed: the second finishes alone."""
    folder.mkdir()
    first = spawn(work(folder, jobs, resume=False))
    while not (folder / f"{jobs.name}.journal").exists():
        time.sleep(0.001)
    second = spawn(work(folder, jobs, resume=True))
    time.sleep(seconds)
    os.kill(first, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(first, 0)[1])
    if os.waitpid(second, 0)[1]:
        faults.append("two workers: the second failed")
        return
    check(folder, jobs, 2, "two workers, one killed", faults)
    # At most three were in the dead one's hands: read ahead, generated, written.
    twice = JOBS - sum(1 for n in Counter(generated(folder.with_suffix(".log"))).values() if n == 1)
    if twice > 3 * killed:
        faults.append(f"two workers: {twice} jobs were generated twice")


def check(folder: Path, jobs: Path, most: int, what: str, faults: list[str]) -> int:
    """Notes what is wrong with a finished folder; how many jobs were generated twice."""
    expected = {f"{jobs.name}.journal", f"{jobs.name}.summary.json"}
    expected |= {f"{n}{suffix}" for n in range(JOBS) for suffix in (".mp4", ".txt", ".json")}
    found = {path.name for path in folder.iterdir()}
    if found != expected:
        faults.append(f"{what}: files differ: {sorted(found ^ expected)}")
    for n in range(JOBS):
        video = folder / f"{n}.mp4"
        key = json.loads(video.with_suffix(".json").read_bytes())["job"]["key"]
        if verified(video, key) is None or not video.read_bytes().endswith(f"job {n} 3".encode()):
            faults.append(f"{what}: {video.name} is not whole")
    times = Counter(generated(folder.with_suffix(".log")))
    if set(times) != {f"job {n}" for n in range(JOBS)} or max(times.values()) > most:
        faults.append(f"{what}: generated {times}")
    return sum(1 for n in times.values() if n > 1)


if __name__ == "__main__":
    sys.exit(main())
