"""Pictures and videos in and out: ffmpeg decides what they say, the Rust core moves the bytes.

Nothing here needs ffmpeg until something is read from a file or written.
"""

from cosmos_fast.media.arrays import frames_ahead, frames_from
from cosmos_fast.media.discovery import Ffmpeg, find_ffmpeg
from cosmos_fast.media.limits import Fit, MediaLimits
from cosmos_fast.media.reading import read_frames, read_span
from cosmos_fast.media.writing import VideoWriter, write_png

__all__ = [
    "Ffmpeg",
    "Fit",
    "MediaLimits",
    "VideoWriter",
    "find_ffmpeg",
    "frames_ahead",
    "frames_from",
    "read_frames",
    "read_span",
    "write_png",
]
