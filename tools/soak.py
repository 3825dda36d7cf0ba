"""Makes many small clips in one process and watches what it holds on to.

Memory that grows by more than 0.1 MB a clip, or a file descriptor, thread or child process that
stays behind, is a failure. The ball world, on the CPU. The last line of the output is one JSON
object.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

import cosmos_fast as cf

MEGABYTES_A_CLIP: Final = 0.1
WARM_UP: Final = 0.2
"""Share of the clips in which allocators and caches may still grow."""


class Sample(NamedTuple):
    """What the process holds after a clip."""

    megabytes: float
    """Of memory of its own: pages of files come and go with what else the machine does."""
    descriptors: int
    threads: int
    children: int


def sample() -> Sample:
    gc.collect()
    status = Path("/proc/self/status").read_text("ascii")
    own = int(status.partition("RssAnon:")[2].split()[0])
    children = Path("/proc/thread-self/children").read_text("ascii").split()
    return Sample(
        own * 1024 / 1e6,
        sum(1 for _ in Path("/proc/self/fd").iterdir()),
        threading.active_count(),
        len(children),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=500)
    clips: int = parser.parse_args().clips
    samples: list[Sample] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        engine = cf.Video2World.from_pretrained("ballworld", device="cpu")
        picture = np.full((96, 160, 3), 40, np.uint8)
        for index in range(clips):
            clip = engine.generate(
                picture, f"Ball {index}.", size=(32, 48), num_frames=5, num_steps=2, seed=index
            )
            clip.save(Path(folder, f"{index % 4}.mp4"))
            del clip
            samples.append(sample())
            if sys.stderr.isatty() or index % 50 == 49:
                print(f"{index + 1}/{clips} {samples[-1]}", file=sys.stderr)
    settled = samples[int(clips * WARM_UP) :]
    slope = statistics.linear_regression(range(len(settled)), [one.megabytes for one in settled])[0]
    grown = {
        name: getattr(settled[-1], name) - getattr(settled[0], name)
        for name in ("descriptors", "threads", "children")
    }
    ok = slope <= MEGABYTES_A_CLIP and not any(more > 0 for more in grown.values())
    result = {"ok": ok, "clips": clips, "megabytes_a_clip": round(slope, 4), **grown}
    print(json.dumps(result | {"seconds": round(time.monotonic() - start, 1)}))
    return int(not ok)


if __name__ == "__main__":
    sys.exit(main())
