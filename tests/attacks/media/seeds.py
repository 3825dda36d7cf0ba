"""Sound pictures and videos, from which the awkward and hostile ones are made.

Each frame of a video is one grey level, so that a decoded frame says which one it is.
"""

from __future__ import annotations

import functools
import io
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

HEIGHT, WIDTH, FRAMES, FPS = 48, 64, 30, 10


def level(frame: int) -> int:
    """The grey of a frame of the seed videos."""
    return 30 + 6 * frame


def ffmpeg(*arguments: str | Path, source: bytes | None = None) -> bytes:
    """Runs the real ffmpeg and returns what it prints."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-loglevel", "error"]
    if source is not None:
        command.remove("-nostdin")
    run = subprocess.run(
        [*command, "-y", *map(str, arguments)], input=source, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    return run.stdout


def raw_frames(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """rgb24 frames, each of one level."""
    levels = np.array([level(index) for index in range(frames)], dtype=np.uint8)
    return levels.repeat(height * width * 3).tobytes()


@functools.cache
def video(
    suffix: str = ".mp4",
    options: tuple[str, ...] = ("-c:v", "libx264", "-g", "12", "-pix_fmt", "yuv420p"),
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
    before: tuple[str, ...] = (),
) -> bytes:
    """A video of ``frames`` grey frames.

    Args:
        suffix: container.
        options: of ffmpeg, between input and output.
        frames: how many.
        height: rows.
        width: columns.
        before: of ffmpeg, before the input.
    """
    size = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"video{suffix}")
        # Full-range RGB to limited BT.601, which is what untagged files are read as.
        source = raw_frames(frames, height, width)
        ffmpeg(*before, *size, "-i", "pipe:0", *options, path, source=source)
        return path.read_bytes()


@functools.cache
def remuxed(source: bytes, suffix: str, *options: str, before: tuple[str, ...] = ()) -> bytes:
    """``source`` in another container or with other side data, its packets as they are."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given"), Path(folder, f"made{suffix}")
        given.write_bytes(source)
        ffmpeg(*before, "-i", given, "-c", "copy", *options, made)
        return made.read_bytes()


@functools.cache
def photo() -> np.ndarray:
    """uint8 (48, 64, 3): smooth, each corner of another colour, so that turns show."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = (x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), (x + y) * 255 // 110)
    return np.stack(channels, axis=-1).astype(np.uint8)


def still(picture: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """``picture`` as a file of ``kind``, as PIL writes it."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()
