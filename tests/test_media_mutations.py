"""Bytes changed at random: the right frames, other frames of the right shape, or one typed error.

A format with checksums must not give other frames at all.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from attacks.media.bad import avi, jpg, mkv, mp4, png, webp
from attacks.media.seeds import HEIGHT, WIDTH, video
from cosmos_fast.errors import MediaError
from cosmos_fast.media import MediaLimits, read_frames
from cosmos_fast.types import Size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILES = int(os.environ.get("COSMOS_FAST_SOAK_FILES", "210"))
DEADLINE = 20.0


def lossless() -> bytes:
    return video(".mkv", ("-c:v", "ffv1", "-level", "3", "-slicecrc", "1"), frames=8)


def webm() -> bytes:
    return video(".webm", ("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p"))


SEEDS = {
    "png": (png, 1),
    "jpg": (jpg, 1),
    "webp": (webp, 1),
    "mp4": (mp4, 5),
    "mkv": (mkv, 5),
    "webm": (webm, 5),
    "avi": (avi, 5),
    "ffv1": (lossless, 5),
}

CHECKED = ("png", "ffv1")
"""Kinds of file with checksums of their content."""


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes replaced, a piece removed, doubled or filled with zeros."""
    changed = bytearray(data)
    kind = chance.choice(["bytes", "bytes", "bytes", "removed", "doubled", "zeros"])
    if kind == "bytes":
        for _ in range(chance.choice([1, 1, 2, 5, 20, 100])):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    start = chance.randrange(len(changed))
    end = min(len(changed), start + chance.choice([1, 4, 64, 1024]))
    piece = data[start:end]
    middle = {"removed": b"", "doubled": piece * 2, "zeros": bytes(len(piece))}[kind]
    return data[:start] + middle + data[end:]


@pytest.mark.parametrize("kind", SEEDS)
def test_mutated_files_are_refused_or_whole(
    kind: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    make, count = SEEDS[kind]
    path = tmp_path / "file"
    chance = random.Random(f"{kind} {os.environ.get('COSMOS_FAST_SOAK_SEED', '0')}")

    def read(data: bytes) -> np.ndarray:
        path.write_bytes(data)
        limits = MediaLimits(seconds=DEADLINE)
        frames = read_frames(path, size=Size(HEIGHT, WIDTH), num_frames=count, limits=limits)
        return np.asarray(frames)

    sound, same, other, slowest = read(make()), 0, 0, 0.0
    runs = max(1, FILES // len(SEEDS))
    for _ in range(runs):
        start = time.monotonic()
        try:
            frames = read(mutated(make(), chance))
        except MediaError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017  success is allowed too
        else:
            assert frames.shape == sound.shape
            equal = np.array_equal(frames, sound)
            same, other = same + equal, other + (not equal)
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < 3 * DEADLINE + 1  # at most: a listing and two decodings
    if kind in CHECKED:
        assert other == 0
    measured(f"{runs} files: {same} as they were, {other} other frames, the rest refused")
