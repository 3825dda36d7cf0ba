"""Awkward files that must be read, with the frames they hold."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from attacks.media.seeds import (
    FRAMES,
    HEIGHT,
    WIDTH,
    ffmpeg,
    level,
    photo,
    remuxed,
    still,
    video,
)

H264 = ("-c:v", "libx264", "-g", "12", "-pix_fmt", "yuv420p")


@dataclass(frozen=True)
class GoodStill:
    """A picture file and what it shows."""

    name: str
    make: Callable[[], bytes]
    shows: Callable[[], np.ndarray]
    """uint8 (48, 64, 3)."""
    tolerance: int = 0
    """Largest difference in levels on average; 0 is equality."""
    note: str = ""


@dataclass(frozen=True)
class GoodVideo:
    """A video file whose last frames have known levels."""

    name: str
    make: Callable[[], bytes]
    last: int = FRAMES - 1
    """Index of the last frame."""
    fps: float = 10.0
    turned: bool = False
    """Shown with rows and columns exchanged."""


def exif(orientation: int, *, big_endian: bool = False) -> bytes:
    """EXIF data that say nothing but the orientation."""
    order = ">" if big_endian else "<"
    head = struct.pack(f"{order}2sHI", b"MM" if big_endian else b"II", 42, 8)
    return b"Exif\0\0" + head + struct.pack(f"{order}HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def stored_for(orientation: int) -> np.ndarray:
    """The picture whose stored form, turned as the tag says, is the photo: by PIL's own table."""
    upright = Image.fromarray(photo())
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    return np.asarray(upright if undo is None else upright.transpose(undo))


def oriented(orientation: int, kind: str, *, big_endian: bool = False) -> Callable[[], bytes]:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    data = exif(orientation, big_endian=big_endian)
    return lambda: still(stored_for(orientation), kind, exif=data, **options)


def with_alpha() -> Image.Image:
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    return Image.fromarray(np.dstack([photo(), alpha]))


def on_black() -> np.ndarray:
    pixels = np.asarray(with_alpha()).astype(np.uint32)
    return ((pixels[..., :3] * pixels[..., 3:] * 2 + 255) // 510).astype(np.uint8)


def grey() -> np.ndarray:
    return np.repeat(np.asarray(Image.fromarray(photo()).convert("L"))[..., None], 3, axis=2)


def deep(pixels: str, *, offset: int = 0) -> bytes:
    """A 16-bit PNG whose high bytes are the photo's; ``offset`` is the low byte."""
    wide = photo().astype(np.uint16) * 256 + offset
    if pixels == "rgba64be":
        wide = np.dstack([wide, np.full((HEIGHT, WIDTH), 65_535, np.uint16)])
    if pixels == "gray16be":
        wide = wide[..., 0]
    source = wide.astype(">u2").tobytes()
    raw = ("-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{WIDTH}x{HEIGHT}", "-i", "pipe:0")
    return ffmpeg(*raw, "-f", "image2pipe", "-c:v", "png", "pipe:1", source=source)


def rounded(offset: int) -> np.ndarray:
    wide = photo().astype(np.uint32) * 256 + offset
    return ((wide * 255 + 32_767) // 65_535).astype(np.uint8)


def interlaced() -> bytes:
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-i", "pipe:0")
    adam7 = ("-flags", "+ildct", "-f", "image2pipe", "-c:v", "png", "pipe:1")
    return ffmpeg(*raw, *adam7, source=photo().tobytes())


def thumbnail_inside() -> bytes:
    """A JPEG whose EXIF data hold a whole little JPEG, end marker included."""
    small = still(photo()[::4, ::4], "JPEG")
    image = Image.open(io.BytesIO(still(photo(), "JPEG", quality=100, subsampling=0)))
    return still(image, "JPEG", quality=100, subsampling=0, exif=exif(1) + small)


def palette() -> Image.Image:
    return Image.fromarray(photo()).quantize(64)


def see_through_palette() -> Image.Image:
    image = palette()
    image.info["transparency"] = 3
    return image


def palette_on_black() -> np.ndarray:
    pixels = np.asarray(palette().convert("RGB")).copy()
    pixels[np.asarray(palette()) == 3] = 0
    return pixels


def one_bit() -> Image.Image:
    return Image.fromarray(grey()[..., 0]).convert("1")


def jpeg(picture: np.ndarray | Image.Image, **options: object) -> Callable[[], bytes]:
    return lambda: still(picture, "JPEG", **{"quality": 98, "subsampling": 0, **options})


def png(picture: np.ndarray | Image.Image) -> Callable[[], bytes]:
    return lambda: still(picture, "PNG")


def webp(picture: np.ndarray | Image.Image) -> Callable[[], bytes]:
    return lambda: still(picture, "WEBP", lossless=True, exact=True)


def followed_by(make: Callable[[], bytes], rubbish: bytes) -> Callable[[], bytes]:
    return lambda: make() + rubbish * 50


def rgb(image: Image.Image) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(image.convert("RGB"))


def grey_alpha() -> Image.Image:
    return Image.fromarray(grey()[..., 0]).convert("LA")


def cmyk() -> Image.Image:
    return Image.fromarray(photo()).convert("CMYK")


STILLS = [
    GoodStill("a.png", png(photo()), photo),
    GoodStill("A.PNG", png(photo()), photo),
    GoodStill("a.jpg", jpeg(photo()), photo, 2),
    GoodStill("a.JPEG", jpeg(photo(), quality=95, subsampling=2), photo, 3),
    GoodStill("progressive.Jpg", jpeg(photo(), progressive=True), photo, 2),
    GoodStill("grey.jpg", jpeg(grey()[..., 0]), grey, 2),
    GoodStill("cmyk.jpg", jpeg(cmyk()), photo, 6),
    GoodStill("a.webp", webp(photo()), photo),
    GoodStill("lossy.WEBP", lambda: still(photo(), "WEBP", quality=95), photo, 5),
    GoodStill("png that is called.jpg", png(photo()), photo),
    GoodStill("no extension", png(photo()), photo),
    GoodStill("grey.png", png(grey()[..., 0]), grey),
    GoodStill("grey alpha.png", png(grey_alpha()), grey),
    GoodStill("alpha.png", png(with_alpha()), on_black),
    GoodStill("alpha.webp", webp(with_alpha()), on_black),
    GoodStill("palette.png", png(palette()), rgb(palette())),
    GoodStill("see-through palette.png", png(see_through_palette()), palette_on_black),
    GoodStill("one bit.png", png(one_bit()), rgb(one_bit())),
    GoodStill("interlaced.png", interlaced, photo),
    GoodStill("16 bit.png", lambda: deep("rgb48be"), lambda: rounded(0)),
    GoodStill("16 bit, low bytes.png", lambda: deep("rgb48be", offset=200), lambda: rounded(200)),
    GoodStill("16 bit alpha.png", lambda: deep("rgba64be"), lambda: rounded(0)),
    GoodStill("16 bit grey.png", lambda: deep("gray16be"), lambda: rounded(0)[..., :1]),
    GoodStill("followed by rubbish.jpg", followed_by(jpeg(photo()), b"\0rest"), photo, 2),
    GoodStill("followed by a zip.png", followed_by(png(photo()), b"PK\3\4"), photo),
    GoodStill("thumbnail inside.jpg", thumbnail_inside, photo, 2),
    GoodStill("orientation 1.jpg", oriented(1, "JPEG"), photo, 2),
    *(
        GoodStill(f"orientation {tag}.jpg", oriented(tag, "JPEG"), photo, 2, note="EXIF")
        for tag in range(2, 9)
    ),
    GoodStill("orientation 6.png", oriented(6, "PNG", big_endian=True), photo, note="right"),
    GoodStill("orientation 8.webp", oriented(8, "WEBP"), photo, note="left"),
    GoodStill("orientation 77.jpg", jpeg(photo(), exif=exif(77)), photo, 2),
]


def rotated(degrees: int) -> bytes:
    return remuxed(video(), ".mp4", before=("-display_rotation", str(degrees)))


def variable_rate() -> bytes:
    """The second half at a quarter of the speed."""
    slower = ("-vf", "setpts='if(lt(N,15),PTS,PTS*4-15*3/TB/10)'", "-fps_mode", "vfr")
    return video(".mp4", (*slower, *H264))


def with_sound() -> bytes:
    tone = ("-f", "lavfi", "-i", "sine=duration=4", "-c:a", "aac", "-map", "0:v", "-map", "1:a")
    return video(".mp4", (*tone, *H264))


def with_cover() -> bytes:
    """A picture that players show for the file."""
    with tempfile.TemporaryDirectory() as folder:
        cover = Path(folder, "cover.jpg")
        cover.write_bytes(still(255 - photo(), "JPEG"))
        both = ("-map", "1", "-map", "0", "-disposition:v:1", "attached_pic")
        return remuxed(video(), ".mp4", *both, before=("-i", str(cover)))


def streamed() -> bytes:
    """Matroska as it comes through a pipe: no length, no index."""
    return remuxed(video(), ".mkv", "-live", "1", "-f", "matroska")


def codec(name: str, *more: str) -> tuple[str, ...]:
    return ("-c:v", name, *more)


VIDEOS = [
    GoodVideo("a.mp4", video),
    GoodVideo("A.MP4", video),
    GoodVideo("a.mov", lambda: remuxed(video(), ".mov")),
    GoodVideo("a.mkv", lambda: remuxed(video(), ".mkv")),
    GoodVideo("vp9.webm", lambda: video(".webm", codec("libvpx-vp9", "-pix_fmt", "yuv420p"))),
    GoodVideo("av1.mp4", lambda: video(".mp4", codec("libsvtav1", "-pix_fmt", "yuv420p"))),
    GoodVideo("hevc 10 bit.mp4", lambda: video(".mp4", codec(
        "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=error"))),
    GoodVideo("h264 10 bit.mkv", lambda: video(
        ".mkv", codec("libx264", "-pix_fmt", "yuv420p10le"))),
    GoodVideo("mpeg4.avi", lambda: video(".avi", codec("mpeg4", "-q:v", "2"))),
    GoodVideo("every frame a key.avi", lambda: video(".avi", codec("mjpeg", "-q:v", "2"))),
    GoodVideo("lossless.mkv", lambda: video(".mkv", codec("ffv1"))),
    GoodVideo("uncompressed.avi", lambda: video(".avi", codec("rawvideo", "-pix_fmt", "bgr24"))),
    GoodVideo("one group.mp4", lambda: video(".mp4", codec("libx264", "-g", "900"))),
    GoodVideo("short groups.mp4", lambda: video(".mp4", codec("libx264", "-g", "2"))),
    GoodVideo("open groups.mp4", lambda: video(".mp4", codec(
        "libx264", "-g", "9", "-x264-params", "open-gop=1:bframes=3"))),
    GoodVideo("index first.mp4", lambda: remuxed(video(), ".mp4", "-movflags", "+faststart")),
    GoodVideo("fragmented.mp4", lambda: remuxed(
        video(), ".mp4", "-movflags", "+frag_keyframe+empty_moov")),
    GoodVideo("streamed.mkv", streamed),
    GoodVideo("odd size.mkv", lambda: video(".mkv", codec("ffv1"), height=47, width=63)),
    GoodVideo("rotated 90.mp4", lambda: rotated(90), turned=True),
    GoodVideo("rotated -90.mp4", lambda: rotated(-90), turned=True),
    GoodVideo("rotated 180.mp4", lambda: rotated(180)),
    GoodVideo("variable rate.mp4", variable_rate),
    GoodVideo("longer sound.mp4", with_sound),
    GoodVideo("cover picture.mp4", with_cover),
    GoodVideo("exactly five.mp4", lambda: video(frames=5), last=4),
    GoodVideo("mp4 that is called.mkv", video),
    GoodVideo("-i.mp4", video),
    GoodVideo("concat:a|b.mp4", video),
    GoodVideo("%03d [*] ~ $(x) 'y' \"z\".mp4", video),
    GoodVideo("two\nlines\x1b[2J.mp4", video),
    GoodVideo("n\u00e4me \U0001f3ac.mp4", video),
    GoodVideo("x" * 251 + ".mp4", video),
]  # fmt: skip


def levels_of(case: GoodVideo, count: int) -> list[int]:
    return [level(index) for index in range(case.last - count + 1, case.last + 1)]
