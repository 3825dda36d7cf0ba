"""ffmpeg's command lines: built with ffmpeg-python, run by the Rust core.

No path of a user stands on a command line. The file is opened before, by us, and ffmpeg gets the
descriptor: it reads from its standard input and writes to its standard output, which it opens
again as ``/dev/fd/0`` and ``/dev/fd/1`` so that it can seek. So ``-i``, ``concat:a|b``, ``%03d``,
``http://...`` and names that are no text are names and nothing else.
"""

from __future__ import annotations

import importlib
import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cosmos_fast.media.discovery import Ffmpeg
    from cosmos_fast.media.encoding import Encoding
    from cosmos_fast.media.limits import MediaLimits
    from cosmos_fast.types import Size

INPUT: Final = "file:/dev/fd/0"
OUTPUT: Final = "file:/dev/fd/1"

VIDEO_FORMATS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
STILL_FORMATS: Final = "png_pipe,jpeg_pipe,webp_pipe"

DECODER_THREADS: Final = 2
"""Each more costs memory by the picture; the last few frames are soon decoded."""
LOOKAHEAD: Final = 20
"""Frames that x264 looks ahead. Half of its default: a short clip would otherwise be decoded half
before its encoding began. At the same crf, 81 frames of a real video: -0.04 dB, -1 % of bytes."""

REFERENCES: Final = 2
SUBPIXEL: Final = 6
"""x264's effort beside its preset's 3 and 7: a third less processor time for a real video, at the
same crf 0.00 dB and +0.7 % of bytes."""

MOST_ENCODER_THREADS: Final = 16

STILL_SCALER_THREADS: Final = 4
"""Of ffmpeg's conversion of one large picture to RGB; each takes its own stripe of rows, and the
bytes stay the same."""

_GLOBALS: Final = ("-nostdin", "-hide_banner", "-xerror")
_STILL_SCALER: Final = "bilinear+accurate_rnd+full_chroma_int"
"""With ``-idct int`` the nearest to libjpeg, through which the reference reads pictures. Videos
take ffmpeg's own default, which gives the bytes that PyAV gives the reference."""


def still(ffmpeg: Ffmpeg, limits: MediaLimits, *, deep: bool, alpha: bool) -> list[str]:
    """Decodes a picture from standard input to one PPM or, with transparency, PAM picture."""
    samples = {
        (False, False): ("ppm", "rgb24"),
        (False, True): ("ppm", "rgb48be"),
        (True, False): ("pam", "rgba"),
        (True, True): ("pam", "rgba64be"),
    }
    codec, pixels = samples[alpha, deep]
    options = _reading("pipe", STILL_FORMATS, limits) | {"threads": 1, "noautorotate": None}
    options["idct"] = "int"
    options["err_detect"] = "crccheck+explode"  # PNG has checksums, which are not looked at else
    more = {"frames:v": 1, "sws_flags": _STILL_SCALER}
    flags = ("-filter_threads", str(STILL_SCALER_THREADS))
    return _pictures(ffmpeg, "pipe:0", options, codec, pixels, *flags, **more)


def video(ffmpeg: Ffmpeg, limits: MediaLimits, *, tail_seconds: float | None) -> list[str]:
    """Decodes a video, or its last ``tail_seconds``, to a stream of PPM pictures."""
    options = _reading("file", VIDEO_FORMATS, limits) | {"threads": DECODER_THREADS}
    return _pictures(ffmpeg, INPUT, options | _tail(tail_seconds), "ppm", "rgb24")


def span(ffmpeg: Ffmpeg, limits: MediaLimits, *, start: float, frames: int) -> list[str]:
    """Decodes ``frames`` frames of a video from ``start`` seconds on to a stream of PPM pictures.

    ffmpeg decodes from the key frame before, and drops what is earlier.
    """
    options = _reading("file", VIDEO_FORMATS, limits) | {"threads": DECODER_THREADS}
    if start > 0:
        options["ss"] = f"{start:.6f}"
    return _pictures(ffmpeg, INPUT, options, "ppm", "rgb24", **{"frames:v": frames})


def packets(ffmpeg: Ffmpeg, limits: MediaLimits, *, tail_seconds: float | None) -> list[str]:
    """Lists the packets of a video, or those from the last key frame before its last
    ``tail_seconds`` on, one a line with time and duration; decodes nothing."""
    options = _reading("file", VIDEO_FORMATS, limits) | _tail(tail_seconds)
    listing = {"c": "copy", "f": "framecrc"}
    return _compile(ffmpeg, _ffmpeg_python().input(INPUT, **options)["V:0"], "pipe:1", listing)


def encode(ffmpeg: Ffmpeg, encoding: Encoding) -> list[str]:
    """Encodes raw frames from standard input to the file on standard output.

    H.264 takes yuv420p that is BT.709, limited range, already; the others take rgb24.
    """
    kind, size = encoding.kind, encoding.size
    raw = {
        "f": "rawvideo",
        "pix_fmt": "yuv420p" if kind == "mp4" else "rgb24",
        "s": f"{size.width}x{size.height}",
        "r": str(Fraction(encoding.fps).limit_denominator(100_000)),
        "protocol_whitelist": "pipe",
    }
    threads = min(len(os.sched_getaffinity(0)), MOST_ENCODER_THREADS)
    options: dict[str, Any] = {"fps_mode": "passthrough", "threads": threads}
    if kind == "mp4":
        tags = {
            "color_range": "tv",
            "colorspace": "bt709",
            "color_primaries": "bt709",
            "color_trc": "bt709",
            "chroma_sample_location": "left",
        }
        raw |= tags
        options |= {"c:v": "libx264", "pix_fmt": "yuv420p", "crf": encoding.crf} | tags
        options |= {"refs": REFERENCES, "subq": SUBPIXEL, "rc-lookahead": LOOKAHEAD}
        options |= {"f": "mp4", "movflags": "+faststart"}
    elif kind == "mkv":
        options |= {"c:v": "ffv1", "level": 3, "slicecrc": 1, "pix_fmt": "bgr0", "f": "matroska"}
    else:
        options |= {"c:v": "png", "pix_fmt": "rgb24", "f": "image2", "start_number": 0}
    # ffmpeg-python takes each option once; the numbers are ignored after "g", for global.
    for index, (key, value) in enumerate(encoding.metadata.items()):
        options[f"metadata:g:{index}"] = f"{key}={value}"
    target = f"{OUTPUT}/%05d.png" if kind == "png" else OUTPUT
    source = _ffmpeg_python().input("pipe:0", **raw)
    return _compile(ffmpeg, source, target, options, "-y")


def encode_picture(ffmpeg: Ffmpeg, size: Size) -> list[str]:
    """Encodes one raw rgb24 picture from standard input as the PNG on standard output."""
    raw = {"f": "rawvideo", "pix_fmt": "rgb24", "s": f"{size.width}x{size.height}"}
    options = {"frames:v": 1, "c:v": "png", "pix_fmt": "rgb24", "f": "image2pipe"}
    source = _ffmpeg_python().input("pipe:0", protocol_whitelist="pipe", **raw)
    return _compile(ffmpeg, source, OUTPUT, options, "-y")


def _reading(protocols: str, formats: str, limits: MediaLimits) -> dict[str, Any]:
    return {
        "protocol_whitelist": protocols,
        "format_whitelist": formats,
        "max_pixels": limits.max_pixels,
        # A change of size becomes a warning, which the Rust core turns into an error. Otherwise
        # ffmpeg would scale what follows, or cut it to the first size, and not say so.
        "reinit_filter": 0,
    }


def _tail(seconds: float | None) -> dict[str, Any]:
    return {} if seconds is None else {"sseof": f"-{seconds:.6f}"}


def _pictures(
    ffmpeg: Ffmpeg,
    source: str,
    options: dict[str, Any],
    codec: str,
    pixels: str,
    *flags: str,
    **more: Any,
) -> list[str]:
    output = {
        "an": None,
        "sn": None,
        "dn": None,
        "fps_mode": "passthrough",
        "f": "image2pipe",
        "c:v": codec,
        "pix_fmt": pixels,
    }
    stream = _ffmpeg_python().input(source, **options)["V:0"]
    return _compile(ffmpeg, stream, "pipe:1", output | more, *flags)


def _compile(
    ffmpeg: Ffmpeg, stream: Any, target: str, options: Mapping[str, Any], *flags: str
) -> list[str]:
    output = _ffmpeg_python().output(stream, target, **options)
    globals_ = (*_GLOBALS, "-filter_threads", "1", "-loglevel", "level+warning", *flags)
    return [os.fspath(ffmpeg.path), *globals_, *map(str, _ffmpeg_python().get_args(output))]


def _ffmpeg_python() -> Any:
    """The module ``ffmpeg`` where it is ffmpeg-python's; several packages bring one of that name.

    Raises:
        MediaError: it is missing, or another package's.
    """
    try:
        module = importlib.import_module("ffmpeg")
    except ImportError as error:
        raise MediaError(
            "ffmpeg-python is missing or broken: pip install --force-reinstall ffmpeg-python==0.2.0"
        ) from error
    source = getattr(module, "__file__", None)
    is_ours = source is not None and Path(source).with_name("_run.py").is_file()
    if is_ours and all(hasattr(module, name) for name in ("input", "output", "get_args")):
        return module
    from importlib.metadata import packages_distributions

    owners = set(packages_distributions().get("ffmpeg", ())) - {"ffmpeg-python"}
    culprits = " ".join(sorted(owners)) or "the package that brought it"
    raise MediaError(
        f"the module 'ffmpeg' at {source} is not ffmpeg-python's: pip uninstall {culprits}, then "
        "pip install --force-reinstall ffmpeg-python==0.2.0"
    )
