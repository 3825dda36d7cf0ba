"""A list of jobs over a local Ray cluster of two workers, of which one is killed mid-way.

Every video must be there and whole, and none made again that was. The last line of the output is
one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
from tools.toy_jobs import ToyEngine, generated

from cosmos_fast.jobs.ledger import verified
from cosmos_fast.jobs.on_ray import run_batch_on_ray
from cosmos_fast.media import write_png

JOBS: Final = 24
BEFORE_THE_KILL: Final = 6


def main() -> int:
    import ray

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        write_png(place / "start.png", np.full((16, 16, 3), 90, np.uint8))
        lines = (json.dumps({"visual_input": "start.png", "prompt": f"{n}"}) for n in range(JOBS))
        (place / "jobs.jsonl").write_text("\n".join(lines), "utf-8")
        log = place / "log"
        log.touch()
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": paths_of_workers()}},
        )  # fmt: skip
        killed: list[int] = []
        threading.Thread(target=kill_one, args=(log, killed), daemon=True).start()
        summary = run_batch_on_ray(
            lambda: ToyEngine(log, seconds=0.3), place / "jobs.jsonl", place / "out",
            num_workers=2, model="stand-in", input_root=place, gpus_per_worker=0,
        )  # fmt: skip
        ray.shutdown()
        times = Counter(generated(log))
        whole = [
            verified(video, json.loads(video.with_suffix(".json").read_bytes())["job"]["key"])
            for video in (place / "out").glob("*.mp4")
        ]
        names = {path.name for path in (place / "out").iterdir()}
        expected = {f"{n}{end}" for n in range(JOBS) for end in (".mp4", ".txt", ".json")}
        makers = {line.split()[0] for line in log.read_text("utf-8").splitlines()}
    result = {
        "ok": bool(
            summary.ok and killed and len(whole) == JOBS and all(whole) and len(times) == JOBS
            and max(times.values()) <= 2 and sum(n > 1 for n in times.values()) <= 3
            and names == expected | {"jobs.jsonl.journal", "jobs.jsonl.summary.json"}
        ),
        "made": summary.made,
        "generated_twice": sum(n > 1 for n in times.values()),
        "workers_seen": len(makers),
        "killed": len(killed),
        "strays": sorted(names - expected),
    }  # fmt: skip
    print(json.dumps(result | {"seconds": round(time.monotonic() - started, 1)}))
    return int(not result["ok"])


def paths_of_workers() -> str:
    """What workers import from: ours, and what this process was given, which may hold Ray itself;
    the variable replaces theirs, and a worker that finds no Ray dies and is started for ever."""
    root = Path(__file__).resolve().parent.parent
    ours = [str(root / "python"), str(root)]
    return os.pathsep.join(ours + [path for path in [os.environ.get("PYTHONPATH")] if path])


def kill_one(log: Path, killed: list[int]) -> None:
    """SIGKILL to whichever worker makes a video, once both are at work and some are made."""
    while True:
        lines = log.read_text("utf-8").splitlines()
        if len(lines) >= BEFORE_THE_KILL and len({line.split()[0] for line in lines}) == 2:
            killed.append(int(lines[-1].split()[0]))
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
