"""Hostile and broken files, each with the words that its refusal must hold."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attacks.media.seeds import HEIGHT, WIDTH, ffmpeg, photo, remuxed, still, video


@dataclass(frozen=True)
class Bad:
    """What stands under a name, and what the error must say."""

    name: str
    make: Callable[[], bytes]
    says: str
    """A regular expression."""
    frames: int = 5

    def put(self, folder: Path) -> Path:
        path = folder / self.name
        path.write_bytes(self.make())
        return path


@dataclass(frozen=True)
class BadPlace:
    """A name under which there is no file."""

    name: str
    make: Callable[[Path], object]
    says: str
    frames: int = 5

    def put(self, folder: Path) -> Path:
        path = folder / self.name
        self.make(path)
        return path


def cut(make: Callable[[], bytes], tenth: float) -> Callable[[], bytes]:
    return lambda: (whole := make())[: max(1, int(len(whole) * tenth / 10))]


def png_of(width: int, height: int, data: bytes, *, depth: int = 8, color: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def packed(count: int) -> bytes:
    return zlib.compress(bytes(count))


def bomb() -> bytes:
    """A sound PNG of 16384 x 16384 black pixels: 33 MB of rows in 32 kB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 16_384 // 8)
    data = b"".join(packer.compress(row) for _ in range(16_384)) + packer.flush()
    return png_of(16_384, 16_384, data, depth=1, color=0)


def jpeg_with(edit: Callable[[bytearray], object]) -> Callable[[], bytes]:
    def make() -> bytes:
        data = bytearray(still(photo(), "JPEG"))
        edit(data)
        return bytes(data)

    return make


def huge_jpeg(data: bytearray) -> None:
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"


def no_tables(data: bytearray) -> None:
    at = data.index(b"\xff\xdb")
    data[at + 1] = 0xE5  # an application segment: the decoder skips it


def damaged_video(share: float) -> Callable[[], bytes]:
    """The coded data of the last frames overwritten."""

    def make() -> bytes:
        data = bytearray(video(".mp4", ("-c:v", "libx264", "-g", "900", "-pix_fmt", "yuv420p")))
        start = data.index(b"mdat") + 4
        end = start - 8 + struct.unpack(">I", data[start - 8 : start - 4])[0]
        first = end - int((end - start) * share)
        data[first:end] = bytes((i * 197 + 31) % 256 for i in range(end - first))
        return bytes(data)

    return make


def sizes_change() -> bytes:
    parts = [video(".ts", height=height, frames=frames) for height, frames in ((48, 6), (96, 3))]
    return remuxed(b"".join(parts), ".mkv")


def sound_only() -> bytes:
    tone = ("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac")
    return ffmpeg(*tone, "-f", "mp4", "-movflags", "frag_keyframe+empty_moov", "pipe:1")


def tall_video() -> bytes:
    return video(".mkv", ("-c:v", "ffv1"), frames=6, height=8208, width=16)


def wide_video() -> bytes:
    """Within the sides, beyond the pixels."""
    return video(
        ".mkv", ("-c:v", "rawvideo", "-pix_fmt", "gray"), frames=5, height=4112, width=8192
    )


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is at most 108 bytes long
        server.bind(path.name)
        os.chdir(here)


def animated() -> bytes:
    from PIL import Image

    frames = [Image.fromarray(photo()), Image.fromarray(255 - photo())]
    return still(frames[0], "WEBP", save_all=True, append_images=frames[1:])


def heif() -> bytes:
    return struct.pack(">I4s4sI4s", 20, b"ftyp", b"heic", 0, b"mif1") + bytes(100)


def text(content: str) -> Callable[[], bytes]:
    return lambda: content.encode()


def wrong_checksum() -> bytes:
    data = bytearray(png())
    data[45] ^= 1
    return bytes(data)


def no_index() -> bytes:
    return mp4()[: mp4().index(b"moov") - 4]


def only_an_index() -> bytes:
    return b"\0\0\0\x10ftypisom\0\0\2\0" + mp4()[mp4().index(b"moov") - 4 :]


def noise() -> bytes:
    return bytes((i * i * 7 + i) % 251 + 3 for i in range(5000))


def mp4() -> bytes:
    return video()


def index_first() -> bytes:
    return remuxed(video(), ".mp4", "-movflags", "+faststart")


def mkv() -> bytes:
    return remuxed(video(), ".mkv")


def avi() -> bytes:
    return video(".avi", ("-c:v", "mpeg4"))


def png() -> bytes:
    return still(photo(), "PNG")


def jpg() -> bytes:
    return still(photo(), "JPEG")


def webp() -> bytes:
    return still(photo(), "WEBP")


def as_first_box(kind: bytes) -> Callable[[], bytes]:
    return lambda: struct.pack(">I4s", 0xFFFF_FFFF, kind) + mp4()


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{target}'\n"

CUT = "cut off"
UNDECODABLE = "ffmpeg failed|no picture|limit|lacks"

BAD = [
    *(Bad(f"mp4 cut at {tenth}.mp4", cut(mp4, tenth), "cut off|index|empty|unknown|text")
      for tenth in (0.1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9.9)),
    *(Bad(f"mp4, index first, cut at {tenth}.mp4", cut(index_first, tenth), CUT)
      for tenth in (3, 6, 9, 9.95)),
    *(Bad(f"mkv cut at {tenth}.mkv", cut(mkv, tenth), CUT) for tenth in (2, 5, 9.9)),
    *(Bad(f"avi cut at {tenth}.avi", cut(avi, tenth), CUT) for tenth in (2, 5, 9)),
    *(Bad(f"png cut at {tenth}.png", cut(png, tenth), CUT, 1) for tenth in (1, 5, 9.9)),
    *(Bad(f"jpg cut at {tenth}.jpg", cut(jpg, tenth), CUT, 1) for tenth in (1, 5, 9.9)),
    *(Bad(f"webp cut at {tenth}.webp", cut(webp, tenth), CUT, 1) for tenth in (1, 5, 9.9)),
    Bad("empty.mp4", bytes, "empty"),
    Bad("empty.png", bytes, "empty", 1),
    Bad("text.mp4", text("hello"), "it is text"),
    Bad("text.jpg", text("hello"), "it is text", 1),
    Bad("zeros.mp4", lambda: bytes(1 << 20), "unknown kind"),
    Bad("noise.mp4", noise, "unknown kind"),
    Bad("playlist.mp4", text(PLAYLIST.format(target="/etc/hostname")), "a playlist"),
    Bad("concat.mp4", text(CONCAT.format(target="/etc/hostname")), "it is text"),
    Bad("subtitles.mp4", text("1\n00:00:00,000 --> 00:00:01,000\nhello\n"), "it is text"),
    Bad("svg.png", text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "it is text", 1),
    Bad("sdp.mp4", text("v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"), "it is text"),
    Bad("a.gif", lambda: still(photo(), "GIF"), "a GIF", 1),
    Bad("a.bmp", lambda: still(photo(), "BMP"), "a BMP", 1),
    Bad("a.tiff", lambda: still(photo(), "TIFF"), "a TIFF", 1),
    Bad("a.pdf", text("%PDF-1.7\n"), "a PDF", 1),
    Bad("a.ts", lambda: remuxed(video(), ".ts"), "an MPEG stream"),
    Bad("a.ogv", lambda: b"OggS" + bytes(100), "an Ogg file"),
    Bad("a.flv", lambda: remuxed(video(), ".flv"), "a Flash video"),
    Bad("a.heic", heif, "HEIF or AVIF", 1),
    Bad("animated.webp", animated, "animated WebP", 1),
    Bad("a picture.png", png, "a picture is one frame where 5 are asked for"),
    Bad("one frame.mp4", lambda: video(frames=1), "has 1 frames? where 5 are asked for"),
    Bad("four frames.mkv", lambda: remuxed(video(frames=4), ".mkv"), "has 4 frames? where 5"),
    Bad("sound only.mp4", sound_only, "no moving pictures"),
    Bad("sizes change.mkv", sizes_change, "size changes"),
    Bad("8208 rows.mkv", tall_video, "limit of 8192"),
    Bad("34 megapixels.mkv", wide_video, UNDECODABLE),
    Bad("bomb.png", bomb, UNDECODABLE, 1),
    Bad("60000x60000.png", lambda: png_of(60_000, 60_000, packed(99)), UNDECODABLE, 1),
    Bad("0x0.png", lambda: png_of(0, 0, packed(0)), UNDECODABLE, 1),
    Bad("65535x65535.jpg", jpeg_with(huge_jpeg), UNDECODABLE, 1),
    Bad("no quantisation.jpg", jpeg_with(no_tables), UNDECODABLE, 1),
    Bad("only markers.jpg", lambda: b"\xff\xd8\xff\xe0\x00\x04xx\xff\xd9", UNDECODABLE, 1),
    Bad("short rows.png", lambda: png_of(WIDTH, HEIGHT, packed(500)), UNDECODABLE, 1),
    Bad("not deflated.png", lambda: png_of(WIDTH, HEIGHT, bytes(500)), UNDECODABLE, 1),
    Bad("wrong checksum.png", wrong_checksum, UNDECODABLE, 1),
    Bad("only a header.png", lambda: png()[:33] + png()[-12:], UNDECODABLE, 1),
    Bad("no chunks.webp", lambda: b"RIFF\4\0\0\0WEBP", UNDECODABLE, 1),
    Bad("damaged end.mp4", damaged_video(0.2), "ffmpeg failed|frames where"),
    Bad("damaged.mp4", damaged_video(0.9), "ffmpeg failed|frames where"),
    Bad("no index.mp4", no_index, "no index"),
    Bad("only an index.mp4", only_an_index, "ffmpeg failed|frames where"),
    Bad("a box of 4 GB.mp4", as_first_box(b"free"), CUT),
    Bad("a box of no length.mp4", lambda: struct.pack(">I4s", 3, b"free") + mp4(), CUT),
    Bad("only EBML.mkv", lambda: mkv()[:40], CUT),
    BadPlace("a folder.mp4", lambda path: path.mkdir(), "regular file"),
    BadPlace("a pipe.mp4", os.mkfifo, "regular file"),
    BadPlace("a socket.mp4", listening, "cannot be opened"),
    BadPlace("a device.mp4", lambda path: path.symlink_to("/dev/zero"), "regular file"),
    BadPlace("a terminal.mp4", lambda path: path.symlink_to("/dev/tty"), "opened|regular file"),
    BadPlace("missing.mp4", lambda path: None, "No such file"),
    BadPlace("dangling.mp4", lambda path: path.symlink_to("nowhere"), "No such file"),
    BadPlace("endless.mp4", lambda path: path.symlink_to(path.name), "symbolic links"),
    BadPlace("a process.mp4", lambda path: path.symlink_to("/proc/self/mem"), "could not be read"),
    BadPlace("x" * 300 + ".mp4", lambda path: None, "File name too long"),
    BadPlace("no\0name.mp4", lambda path: None, "null"),
]  # fmt: skip
