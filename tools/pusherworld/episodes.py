"""Episodes: frames and actions, simulated on all cores, kept small on the disk.

``python -m tools.pusherworld.episodes --out outputs/pusher_data --train 6000`` needs MuJoCo, and
MUJOCO_GL=egl or osmesa; reading what it wrote needs NumPy alone. Flat colours pack well: a clip is
the differences of its frames, deflated.
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np

LENGTH: Final = 60
"""Actions of an episode: five chunks."""
SPLITS: Final = {"train": 0, "validation": 1, "held-out": 2}
_SHARD: Final = 100


@dataclass(frozen=True)
class Episodes:
    """E episodes of one length."""

    frames: np.ndarray
    """uint8 (E, T + 1, 96, 96, 3)."""
    actions: np.ndarray
    """float32 (E, T, 2)."""

    def __len__(self) -> int:
        return len(self.frames)


def simulate(split: str, first: int, count: int, length: int = LENGTH) -> Episodes:
    """Episodes ``first`` to ``first + count`` of a split: the same ones, whoever asks."""
    from tools.pusherworld.policies import Push, Wander
    from tools.pusherworld.simulator import Pusher, draw_start

    pusher = Pusher()
    frames, actions = [], []
    for number in range(first, first + count):
        rng = np.random.default_rng([SPLITS[split], number])
        pusher.reset(draw_start(rng))
        policy = Wander(rng)
        if rng.random() < 0.5:
            policy = Push(rng.uniform(-0.6, 0.6, 2), rng.uniform(0.2, 1), rng)  # type: ignore[assignment]
        seen, done = [pusher.frame()], []
        for _ in range(length):
            action = policy(pusher.disc, pusher.block).astype(np.float32)
            pusher.step(action)
            done.append(action)
            seen.append(pusher.frame())
        frames.append(np.stack(seen))
        actions.append(np.stack(done))
    pusher.close()
    return Episodes(np.stack(frames), np.stack(actions))


def write(path: Path, episodes: Episodes) -> None:
    """One file of packed episodes; it appears whole or not at all."""
    first, rest = episodes.frames[:, :1], episodes.frames[:, 1:] - episodes.frames[:, :-1]
    packed = zlib.compress(np.concatenate((first, rest), axis=1).tobytes(), 9)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            shape=np.array(episodes.frames.shape),
            packed=np.frombuffer(packed, np.uint8),
            actions=episodes.actions,
        )
    partial.replace(path)


def read(path: Path) -> Episodes:
    with np.load(path, allow_pickle=False) as file:
        changes = np.frombuffer(zlib.decompress(file["packed"].tobytes()), np.uint8)
        frames = changes.reshape(file["shape"]).cumsum(axis=1, dtype=np.uint8)
        return Episodes(frames, file["actions"])


def read_all(folder: Path, split: str, limit: int | None = None) -> Episodes:
    """Every episode of a split in ``folder``."""
    files = sorted(folder.glob(f"{split}_*.npz"))
    if not files:
        raise FileNotFoundError(f"{folder}: no {split}_*.npz; run tools.pusherworld.episodes")
    parts = [read(file) for file in files[: None if limit is None else -(-limit // _SHARD)]]
    return Episodes(
        np.concatenate([part.frames for part in parts])[:limit],
        np.concatenate([part.actions for part in parts])[:limit],
    )


def _make(job: tuple[str, int, int, int, str]) -> str:
    split, first, count, length, out = job
    path = Path(out, f"{split}_{first:06d}.npz")
    if not path.exists():
        write(path, simulate(split, first, count, length))
    return path.name


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--validation", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--length", type=int, default=LENGTH, help="actions of an episode")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = {name: getattr(arguments, name.replace("-", "_")) for name in SPLITS}
    jobs = [
        (split, first, min(_SHARD, count - first), arguments.length, str(arguments.out))
        for split, count in wanted.items()
        for first in range(0, count, _SHARD)
    ]
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        for name in pool.map(_make, jobs):
            print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
