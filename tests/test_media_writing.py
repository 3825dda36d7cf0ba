"""Writing: what is in the file, and that there is a whole file or none."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from attacks.media.seeds import photo
from cosmos_fast.errors import InputError, MediaError
from cosmos_fast.media import VideoWriter, read_frames, write_png
from cosmos_fast.types import Frames, Size

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = Size(48, 64)


def clip(frames: int = 20) -> np.ndarray:
    """uint8 (frames, 48, 64, 3): the photo, moving."""
    return np.stack([np.roll(photo(), index, axis=1) for index in range(frames)])


def save(path: Path, frames: np.ndarray, **options: object) -> Path:
    size = Size(*frames.shape[1:3])
    given = {"size": size, "fps": 16, **options}
    with VideoWriter(path, **given) as writer:  # type: ignore[arg-type]
        for start in range(0, len(frames), 7):
            writer.write(frames[start : start + 7])
    return path


def load(path: Path, like: np.ndarray) -> np.ndarray:
    size = Size(*like.shape[1:3])
    return np.asarray(read_frames(path, size=size, num_frames=len(like)))


def described(path: Path) -> str:
    """What ffmpeg says of a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_an_mp4_holds_what_was_written(tmp_path: Path) -> None:
    tags = {"comment": "AI-generated video", "title": "M\u00e4rz = \u2603; 'x' \\ \n#"}
    path = save(tmp_path / "a.mp4", clip(), crf=5, metadata=tags)
    assert np.abs(load(path, clip()).astype(int) - clip()).mean() < 4
    said = described(path)
    assert "h264" in said
    assert re.search(r"yuv420p\(tv, bt709, progressive\), 64x48.* 16 fps", said)
    assert "comment         : AI-generated video" in said
    assert "title           : M\u00e4rz = \u2603; 'x' \\" in said
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "a player must not need the whole file"


@pytest.mark.parametrize(
    "color",
    [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)],
    ids=str,
)
def test_colors_survive_the_matrix_that_the_file_names(
    color: tuple[int, int, int], tmp_path: Path
) -> None:
    frames = np.full((4, *SIZE, 3), color, dtype=np.uint8)
    path = save(tmp_path / "a.mp4", frames, crf=1)
    assert np.abs(load(path, frames).astype(int) - frames).max() <= 3


def test_quality_is_a_setting(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (10, *SIZE, 3), dtype=np.uint8)
    sizes = [
        save(tmp_path / f"{crf}.mp4", noise, crf=crf).stat().st_size for crf in (0, 15, 25, 51)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[2]


@pytest.mark.parametrize("shape", [SIZE, Size(47, 63), Size(1, 1)], ids=str)
def test_lossless_files_hold_every_bit(shape: Size, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, *shape, 3), dtype=np.uint8)
    assert np.array_equal(load(save(tmp_path / "a.mkv", noise), noise), noise)
    assert np.array_equal(np.load(save(tmp_path / "a.npy", noise), allow_pickle=False), noise)
    folder = save(tmp_path / "pictures" / "%05d.png", noise).parent
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{index:05d}.png" for index in range(9)]
    pictures = [load(folder / name, noise[:1])[0] for name in names]
    assert np.array_equal(np.stack(pictures), noise)
    png = write_png(tmp_path / "a.png", noise[0])
    assert np.array_equal(load(png, noise[:1]), noise[:1])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda frames: frames, id="array"),
        pytest.param(torch.from_numpy, id="tensor"),
        pytest.param(lambda frames: Frames(frames, 16), id="Frames"),
        pytest.param(lambda frames: frames[:, :, ::-1][:, :, ::-1], id="another order"),
    ],
)
def test_frames_of_any_form_are_taken(make: Callable[[np.ndarray], object], tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with VideoWriter(path, size=SIZE, fps=16) as writer:
        writer.write(make(clip()))  # type: ignore[arg-type]
    assert np.array_equal(load(path, clip()), clip())


def test_a_file_is_seen_when_it_is_published_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "a.mp4"
    writer = VideoWriter(path, size=SIZE, fps=16)
    writer.write(clip())
    assert not list(path.parent.iterdir())
    unpublished = writer.finish()
    assert not list(path.parent.iterdir())
    data, frames = unpublished.read_bytes(), load(unpublished, clip())
    assert writer.publish() == path
    assert path.read_bytes() == data
    assert np.array_equal(load(path, clip()), frames)
    assert writer.close() == path
    assert os.listdir(path.parent) == ["a.mp4"]  # noqa: PTH208
    assert oct(path.stat().st_mode & 0o777) == oct(0o666 & ~current_umask())


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_file_of_that_name_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("old")
    with pytest.raises(InputError):
        save(path, clip()[:, :, :, :2])
    assert path.read_text() == "old"
    save(path, clip())
    assert path.stat().st_size > 1000
    assert os.listdir(tmp_path) == ["a.mp4"]  # noqa: PTH208


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.npy", "pictures/%05d.png"])
@pytest.mark.parametrize("how", ["error", "Ctrl-C", "abort", "dropped", "no frames"])
def test_nothing_is_left_of_what_was_not_finished(name: str, how: str, tmp_path: Path) -> None:
    def begin() -> VideoWriter:
        writer = VideoWriter(tmp_path / name, size=SIZE, fps=16)
        if how != "no frames":
            writer.write(clip())
        return writer

    if how in {"error", "Ctrl-C"}:
        kind: type[BaseException] = ValueError if how == "error" else KeyboardInterrupt
        with pytest.raises(kind), begin():
            raise kind
    elif how == "abort":
        writer = begin()
        writer.abort()
        writer.abort()
        with pytest.raises(InputError, match="aborted"):
            writer.close()
    elif how == "dropped":
        writer = begin()
        del writer
    else:
        with pytest.raises(MediaError, match="at least one"), begin():
            pass
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"path": "a.gif"}, r"must end in \.mp4", id="another kind"),
        pytest.param({"path": "a"}, r"must end in \.mp4", id="no kind"),
        pytest.param({"path": "%d.png"}, r"must end in \.mp4", id="another pattern"),
        pytest.param({"size": Size(47, 64)}, "even sides", id="odd rows"),
        pytest.param({"size": Size(48, 63)}, r"even sides; use \.mkv", id="odd columns"),
        pytest.param({"size": Size(0, 64)}, "from 1 to", id="no rows"),
        pytest.param({"size": Size(48, 10_000)}, "from 1 to", id="too wide"),
        pytest.param({"fps": 0}, "frames per second", id="no rate"),
        pytest.param({"fps": float("nan")}, "frames per second", id="not a rate"),
        pytest.param({"crf": 52}, "crf", id="no quality"),
        pytest.param({"crf": 1.5}, "crf", id="half a quality"),
        pytest.param({"metadata": {"author": "x"}}, "'author': a video holds", id="unknown tag"),
        pytest.param({"metadata": {"title": "a\0b"}}, "null", id="null in a tag"),
        pytest.param({"metadata": {"title": "x" * 20_000}}, "20000 characters", id="long tag"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    given = {"path": "a.mp4", "size": SIZE, "fps": 16, **options}
    path = tmp_path / "new" / str(given.pop("path"))
    with pytest.raises(InputError, match=message):
        VideoWriter(path, **given)  # type: ignore[arg-type]
    assert not path.parent.exists()


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(np.zeros((2, 48, 63, 3), np.uint8), id="another size"),
        pytest.param(np.zeros((48, 64, 3), np.uint8), id="a picture"),
        pytest.param(np.zeros((2, 48, 64, 4), np.uint8), id="four channels"),
        pytest.param(np.zeros((2, 48, 64, 3), np.float32), id="floats"),
    ],
)
def test_wrong_frames_are_refused_and_the_writer_goes_on(
    frames: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.mkv"
    with VideoWriter(path, size=SIZE, fps=16) as writer:
        writer.write(clip()[:2])
        with pytest.raises(InputError, match="uint8 of shape"):
            writer.write(frames)
        writer.write(clip()[2:])
    assert np.array_equal(load(path, clip()), clip())
    with pytest.raises(InputError, match="published"):
        writer.write(clip())


@pytest.mark.parametrize(
    "name", ["-y.mp4", "%d %s.mp4", "two\nlines.mp4", "pipe:1.mp4", "\u00e4\U0001f3ac.mp4"]
)
def test_names_are_names(name: str, tmp_path: Path) -> None:
    save(tmp_path / "50%d" / name, clip())
    assert os.listdir(tmp_path / "50%d") == [name]  # noqa: PTH208
    save(tmp_path / "50%d" / "more" / "%05d.png", clip(2))
    assert len(list((tmp_path / "50%d" / "more").iterdir())) == 2


def test_a_link_is_replaced_and_a_device_is_not(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    link = tmp_path / "a.mp4"
    link.symlink_to("precious")
    save(link, clip())
    assert not link.is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"
    (tmp_path / "b.mp4").symlink_to("/dev/null")
    save(tmp_path / "b.mp4", clip())
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "c.mp4")
    (tmp_path / "d.mp4").mkdir()
    for name in ("c.mp4", "d.mp4"):
        with pytest.raises(MediaError, match="a file or nothing may be there"):
            VideoWriter(tmp_path / name, size=SIZE, fps=16)


def test_a_full_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    save(tmp_path / "pictures" / "%05d.png", clip(2))
    with pytest.raises(MediaError, match="an empty folder or nothing"):
        save(tmp_path / "pictures" / "%05d.png", clip(3))
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_the_caller_waits_for_a_slow_encoder(tmp_path: Path) -> None:
    """Frames do not pile up: the queue holds 8."""
    slow, go = tmp_path / "ffmpeg", tmp_path / "go"
    slow.write_text(
        f"#!/bin/sh\nuntil [ -e '{go}' ]; do sleep 0.02; done; exec cat > /dev/null\n", "utf-8"
    )
    slow.chmod(0o755)
    size = Size(512, 512)
    frames = np.zeros((1, *size, 3), np.uint8)
    writer = VideoWriter(tmp_path / "a.mkv", size=size, fps=16, ffmpeg=slow)

    def write(count: int) -> None:
        for _ in range(count):
            writer.write(frames)

    def begin(count: int) -> threading.Thread:
        thread = threading.Thread(target=write, args=[count])
        thread.start()
        return thread

    first = begin(8)
    first.join(20)
    taken = not first.is_alive()
    more = begin(3)  # one may leave the ring for the socket
    more.join(0.3)
    waited = more.is_alive()
    go.touch()
    first.join(20)
    more.join(20)
    writer.abort()
    assert taken
    assert waited
    assert not more.is_alive()


def test_a_picture_of_wrong_form_is_refused(tmp_path: Path) -> None:
    for picture in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match=r"uint8 \(H, W, 3\)"):
            write_png(tmp_path / "a.png", picture)
    assert not list(tmp_path.iterdir())
