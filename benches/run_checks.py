"""Whether whole runs are right: their latents beside float32, and the file that they wrote."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from harness import WrongResult, relative_error
from run_engines import in_float32, with_their_networks

from cosmos_fast._core import capture
from cosmos_fast.media import MediaLimits, argv, find_ffmpeg, read_frames
from cosmos_fast.media.reading import parse_packets
from cosmos_fast.types import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import cosmos_fast as cf

ERROR_RATIO = 1.1
"""How far ours may be from float32, in errors of diffusers' eager networks: the lossless gate."""

SHORT = {"num_frames": 5, "num_steps": 1}
"""What float32 is computed for: a given latent frame and one more, two evaluations of the network,
of which the first makes nearly all of the result."""


@dataclass(frozen=True)
class ShortRun:
    """Relative errors of the latents after the given frame, at :data:`SHORT`."""

    ours: float
    theirs: float
    """Of diffusers' networks, eager."""

    @property
    def limit(self) -> float:
        """What ours may be off."""
        return ERROR_RATIO * self.theirs

    @property
    def distance(self) -> float:
        """How far two results may lie apart that are each within the limit."""
        return 2 * self.limit


def short_run(
    engine: cf.Video2World, make: Callable[[cf.Video2World], cf.Clip], name: str
) -> ShortRun:
    """Ours and diffusers' networks, eager, beside our networks in float32, at :data:`SHORT`.

    Args:
        engine: ours, in bfloat16.
        make: a short clip by an engine.
        name: of the shape, for the errors.

    Raises:
        WrongResult: ours is too far off, or two runs of it differ.
        ImportError: diffusers is not here: then there is no bound.
    """
    theirs = with_their_networks(engine, compiled=False)
    first, second = make(engine), make(engine)
    if first.report.latents_sha256 != second.report.latents_sha256:
        raise WrongResult(f"{name}: two short runs of ours gave two results")
    with full_convolutions():
        exact = make(in_float32(engine))
    found = ShortRun(
        relative_error(made_latents(first), made_latents(exact)),
        relative_error(made_latents(make(theirs)), made_latents(exact)),
    )
    del exact, theirs
    gc.collect()
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()
    if not found.ours <= found.limit:  # NaN too
        raise WrongResult(
            f"{name}: latents of ours are {found.ours:.2e} from float32, beyond {found.limit:.2e}"
        )
    return found


@contextmanager
def full_convolutions() -> Iterator[None]:
    """float32 convolutions of a GPU in float32, and not in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def made_latents(clip: cf.Clip) -> torch.Tensor:
    """The latents after the first frame, which is given."""
    return clip.latents.tensor[:, :, 1:]


def verify_file(path: Path, size: tuple[int, int], num_frames: int) -> None:
    """Looks into a written file as the package looks into files it is given, and decodes it whole.

    Raises:
        WrongResult: it has other frames.
        MediaError: it cannot be read.
    """
    limits = MediaLimits()
    with path.open("rb") as source:
        listing = capture(
            argv.packets(find_ffmpeg(), limits, tail_seconds=None),
            limits=limits.process,
            most_bytes=1 << 20,
            source=source.fileno(),
        ).decode()
    height, width = size
    if f"#dimensions 0: {width}x{height}" not in listing.splitlines():
        raise WrongResult(f"{path.name} is not {width} x {height}: {listing[:300]}")
    number = parse_packets(listing).number
    if number != num_frames:
        raise WrongResult(f"{path.name} has {number} frames where {num_frames} were made")
    read_frames(path, size=Size(*size), num_frames=num_frames)
