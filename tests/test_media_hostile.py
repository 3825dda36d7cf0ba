"""Every awkward file gives its frames, every broken or hostile one a typed error in time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from attacks.media.bad import BAD, Bad, BadPlace
from attacks.media.good import STILLS, VIDEOS, GoodStill, GoodVideo, levels_of
from attacks.media.seeds import HEIGHT, WIDTH
from cosmos_fast.errors import MediaError
from cosmos_fast.media import MediaLimits, read_frames
from cosmos_fast.types import Size

if TYPE_CHECKING:
    pass

SIZE = Size(HEIGHT, WIDTH)
DEADLINE = 20.0


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", STILLS, ids=lambda case: case.name)
def test_a_picture_shows_what_it_holds(case: GoodStill, tmp_path: Path) -> None:
    path = put(tmp_path, case.name, case.make())
    notes: list[str] = []
    frames = read_frames(path, size=SIZE, num_frames=1, notes=notes)
    difference = np.abs(np.asarray(frames)[0].astype(int) - case.shows())
    assert difference.mean() <= case.tolerance
    assert difference.max() <= 12 * case.tolerance
    assert (case.note in "".join(notes)) if case.note else not notes


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("case", VIDEOS, ids=lambda case: case.name.encode().hex()[:40])
def test_a_video_gives_its_last_frames(case: GoodVideo, count: int, tmp_path: Path) -> None:
    path = put(tmp_path, case.name, case.make())
    frames = read_frames(path, size=SIZE, num_frames=count)
    levels = np.asarray(frames).astype(float).mean(axis=(1, 2, 3))
    assert np.abs(levels - levels_of(case, count)).max() < 2.9
    assert np.asarray(frames).std(axis=(1, 2, 3)).max() < 2


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_a_bad_file_is_one_error_that_names_file_and_finding(
    case: Bad | BadPlace, tmp_path: Path
) -> None:
    path = case.put(tmp_path)
    start = time.monotonic()
    with pytest.raises(MediaError, match=case.says) as caught:
        read_frames(
            path,
            size=SIZE,
            num_frames=case.frames,
            limits=MediaLimits(seconds=DEADLINE),
        )
    assert time.monotonic() - start < DEADLINE + 1
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < len(str(path)) + 800
