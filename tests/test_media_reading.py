"""Reading files: which ffmpeg, how little is decoded, and what one is told."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from attacks.media.good import exif, oriented
from attacks.media.seeds import ffmpeg, level, photo, remuxed, still, video
from cosmos_fast.errors import InputError, MediaError
from cosmos_fast.media import Ffmpeg, MediaLimits, argv, find_ffmpeg, read_frames
from cosmos_fast.types import Size

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = Size(48, 64)


@pytest.fixture(scope="module")
def ten_minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 10 minutes at 25 frames a second, a key frame every 250 frames."""
    folder = tmp_path_factory.mktemp("long")
    short, long = folder / "short.mp4", folder / "long.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=60", "-c:v", "libx264", "-g", "250", short)
    ffmpeg("-stream_loop", "9", "-i", short, "-c", "copy", long)
    return long


class Listener:
    """The real ffmpeg behind a script that also tells how many frames it has decoded."""

    def __init__(self, folder: Path) -> None:
        self.program, self._pipe = folder / "ffmpeg", folder / "said"
        self._said: list[str] = []
        os.mkfifo(self._pipe)
        real = find_ffmpeg().path
        self.program.write_text(
            f'#!/bin/sh\nexec {real} "$@" -loglevel verbose 2> {self._pipe}\n', "utf-8"
        )
        self.program.chmod(0o755)
        # A FIFO and not a file: a reading ffmpeg may write no file.
        self._keep_open = os.open(self._pipe, os.O_RDWR)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with self._pipe.open(errors="replace") as pipe:
            for line in pipe:
                if line == "end\n":
                    return
                self._said.append(line)

    def decoded(self) -> int:
        """Frames decoded by all runs."""
        os.write(self._keep_open, b"end\n")
        self._thread.join()
        os.close(self._keep_open)
        found = re.findall(r"(\d+) frames decoded", "".join(self._said))
        assert found, "".join(self._said)
        return sum(map(int, found))


def test_the_last_frames_of_ten_minutes_take_two_groups_of_pictures(
    ten_minutes: Path, tmp_path: Path
) -> None:
    listener = Listener(tmp_path)
    frames = read_frames(ten_minutes, size=SIZE, num_frames=5, ffmpeg=listener.program)
    assert 5 <= listener.decoded() <= 2 * 250
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    whole = ffmpeg("-i", ten_minutes, "-vf", "select='gte(n,14995)'", "-fps_mode", "vfr", *raw)
    expected = np.frombuffer(whole, np.uint8).reshape(5, *SIZE, 3)
    assert np.array_equal(np.asarray(frames), expected)


def test_600_000_tiny_frames_are_five_frames(tmp_path: Path) -> None:
    path = tmp_path / "tiny.mp4"
    seed = tmp_path / "seed.mp4"
    seed.write_bytes(video(frames=30, height=16, width=16))
    ffmpeg("-stream_loop", "199", "-i", seed, "-c", "copy", tmp_path / "more.mp4")
    ffmpeg("-stream_loop", "99", "-i", tmp_path / "more.mp4", "-c", "copy", path)
    frames = read_frames(path, size=Size(16, 16), num_frames=5)
    levels = np.asarray(frames).mean(axis=(1, 2, 3))
    assert np.abs(levels - [level(index) for index in range(25, 30)]).max() < 2.9


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        pytest.param(video, 10, id="mp4"),
        pytest.param(lambda: remuxed(video(), ".mkv"), 10, id="mkv"),
        pytest.param(lambda: video(".avi", ("-c:v", "mpeg4", "-r", "24")), 24, id="avi"),
        pytest.param(lambda: still(photo(), "PNG"), 1, id="picture"),
    ],
)
def test_frames_carry_the_rate_of_the_file(make: object, rate: float, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(make())  # type: ignore[operator]
    found = read_frames(path, size=SIZE, num_frames=1)
    assert found.fps == pytest.approx(rate, rel=0.02)
    assert read_frames(path, size=SIZE, num_frames=1, fps=16).fps == 16


def test_a_turned_picture_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "turned.jpg"
    path.write_bytes(oriented(6, "JPEG")())
    notes: list[str] = []
    with caplog.at_level(logging.INFO, logger="cosmos_fast"):
        read_frames(path, size=SIZE, num_frames=1, notes=notes)
    assert notes == ["turned.jpg: turned by 90 degrees to the right, as its EXIF orientation says"]
    assert notes[0] in caplog.text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_before_it_is_fitted(kind: str, tmp_path: Path) -> None:
    """A portrait stored as landscape covers a portrait size without losing its sides."""
    stored, upright = tmp_path / "stored", tmp_path / "upright"
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    stored.write_bytes(oriented(6, kind)())
    upright.write_bytes(still(photo(), kind, exif=exif(1), **options))
    size = Size(24, 40)
    turned = np.asarray(read_frames(stored, size=size, num_frames=1)).astype(int)
    assert np.abs(turned - np.asarray(read_frames(upright, size=size, num_frames=1))).mean() < 1


def test_limits_hold(tmp_path: Path) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(still(photo(), "PNG"))
    for limits, message in [
        (MediaLimits(max_side=63), "limit of 63"),
        (MediaLimits(max_pixels=3071), "ffmpeg failed|limit"),
        (MediaLimits(memory_bytes=20 << 20), "ffmpeg"),
        (MediaLimits(seconds=1e-3), "longer than 0.001 s"),
    ]:
        with pytest.raises(MediaError, match=message):
            read_frames(path, size=SIZE, num_frames=1, limits=limits)
    read_frames(path, size=SIZE, num_frames=1, limits=MediaLimits(max_side=64, max_pixels=3072))


@pytest.mark.parametrize("field", ["max_side", "max_pixels", "seconds", "memory_bytes"])
def test_limits_of_nothing_are_refused(field: str) -> None:
    with pytest.raises(InputError, match=field):
        MediaLimits(**{field: 0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"num_frames": 0}, "num_frames", id="no frames"),
        pytest.param({"fit": "contain"}, "fit", id="unknown fit"),
        pytest.param({"size": Size(0, 8)}, "at least 1", id="no rows"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(still(photo(), "PNG"))
    with pytest.raises(InputError, match=message):
        read_frames(path, **{"size": SIZE, "num_frames": 1, **arguments})  # type: ignore[arg-type]


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    paths = [tmp_path / str(index) for index in range(8)]
    for path in paths:
        path.write_bytes(video())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: read_frames(path, size=SIZE, num_frames=5), paths))
    for frames in found[1:]:
        assert np.array_equal(np.asarray(frames), np.asarray(found[0]))


def test_the_file_may_be_a_name_of_bytes(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    path.write_bytes(still(photo(), "PNG"))
    assert read_frames(path, size=SIZE, num_frames=1).shape == (1, *SIZE, 3)
    path.write_bytes(b"")
    with pytest.raises(MediaError, match="empty"):
        read_frames(path, size=SIZE, num_frames=1)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Four different ffmpegs, one for each way to name it."""
    found = {}
    for name in ("argument", "variable", "package", "path"):
        program = tmp_path / name / "ffmpeg"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho ffmpeg version {name} and more\n", "utf-8")
        program.chmod(0o755)
        found[name] = program
    monkeypatch.delenv("COSMOS_FAST_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", f"{found['path'].parent}:{os.environ['PATH']}")
    return found  # type: ignore[return-value]


def test_the_first_ffmpeg_that_is_named_is_taken(
    programs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = find_ffmpeg()
    assert packaged.source == "imageio_ffmpeg"
    assert re.match(r"n?\d", packaged.version)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert find_ffmpeg() == Ffmpeg(programs["path"], "PATH")
    monkeypatch.setenv("COSMOS_FAST_FFMPEG", str(programs["variable"]))
    assert find_ffmpeg() == Ffmpeg(programs["variable"], "COSMOS_FAST_FFMPEG")
    found = find_ffmpeg(programs["argument"])
    assert found == Ffmpeg(programs["argument"], "argument")
    assert found.version == "argument"


def test_the_version_is_asked_once(programs: dict[str, Path]) -> None:
    found = find_ffmpeg(programs["argument"])
    assert found.version == "argument"
    programs["argument"].unlink()
    assert found.version == "argument"


def test_a_name_that_leads_nowhere_is_an_error(
    programs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSMOS_FAST_FFMPEG", "/nowhere/ffmpeg")
    with pytest.raises(MediaError, match="COSMOS_FAST_FFMPEG = '/nowhere/ffmpeg'"):
        find_ffmpeg()
    programs["argument"].write_text("#!/bin/sh\necho something else\n", "utf-8")
    with pytest.raises(MediaError, match="does not say that it is ffmpeg"):
        _ = find_ffmpeg(programs["argument"]).version


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_nothing_is_needed_to_import_and_the_first_use_names_the_cure() -> None:
    code = (
        "import sys\n"
        "for name in ('ffmpeg', 'imageio_ffmpeg', 'PIL'): sys.modules[name] = None\n"
        "import cosmos_fast.media as media\n"
        "import numpy as np\n"
        "media.frames_from(np.zeros((8, 8, 3), np.uint8), size=media.arrays.Size(4, 4),\n"
        "                  num_frames=1, fit='cover', fps=1)\n"
        "try: media.find_ffmpeg()\n"
        "except media.discovery.MediaError as error: print(error)\n"
    )
    run = run_python(code, PATH="/nowhere", COSMOS_FAST_FFMPEG="")
    assert run.returncode == 0, run.stderr
    assert "pip install imageio-ffmpeg" in run.stdout


@pytest.mark.parametrize("owner", ["typed-ffmpeg", None])
def test_another_module_of_that_name_is_told_to_go(
    owner: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ffmpeg").mkdir()
    (tmp_path / "ffmpeg" / "__init__.py").write_text("def input(*a): ...\n", "utf-8")
    if owner:
        info = tmp_path / f"{owner.replace('-', '_')}-4.6.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {owner}\nVersion: 4.6.2\n", "utf-8")
        (info / "RECORD").write_text("ffmpeg/__init__.py,,\n", "utf-8")
    picture = tmp_path / "picture.png"
    picture.write_bytes(still(photo(), "PNG"))
    for name in [name for name in sys.modules if name.split(".")[0] == "ffmpeg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MediaError, match=r"ffmpeg-python==0\.2\.0") as caught:
        read_frames(picture, size=SIZE, num_frames=1)
    assert f"pip uninstall {owner or 'the package that brought it'}," in str(caught.value)
    monkeypatch.delitem(sys.modules, "ffmpeg")


@pytest.mark.parametrize(("alpha", "deep"), [(False, False), (True, True)])
def test_stripes_of_a_picture_have_the_bytes_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alpha: bool, deep: bool
) -> None:
    grain = np.random.default_rng(0).integers(0, 256, (203, 301, 3), np.uint8)
    path = tmp_path / "photo.jpg"
    path.write_bytes(still(grain, "jpeg", quality=90))
    made = []
    for threads in (1, 4, 7):
        monkeypatch.setattr(argv, "STILL_SCALER_THREADS", threads)
        command = argv.still(find_ffmpeg(), MediaLimits(), deep=deep, alpha=alpha)
        given = [value for key, value in pairwise(command) if key == "-filter_threads"]
        assert given[-1] == str(threads)  # of an option given twice the last counts
        with path.open("rb") as file:
            run = subprocess.run(command, stdin=file, check=True, stdout=subprocess.PIPE)
        made.append(run.stdout)
    assert len(made[0]) > 301 * 203 * 3
    assert made[0] == made[1] == made[2]
