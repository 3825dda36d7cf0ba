"""The state of a world as a value: what its next chunk depends on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from cosmos_fast.sampling.noise import check_seed
from cosmos_fast.types import Frames

if TYPE_CHECKING:
    import torch

    from cosmos_fast.config import Profile
    from cosmos_fast.types import NoText, Size, TextEmbedding
    from cosmos_fast.world.script import Script


class Tail:
    """The frames a chunk starts from; shared by every fork.

    After ``decode=False`` they are still latents; decoding them once is the only thing that ever
    happens to a tail, and changes nothing of what it stands for.

    ``frames`` and ``latents`` are what the model continues, as it made them; behind a guardrail
    they are for the engine alone, which has not had them checked or blurred. ``shown`` is what may
    be looked at.
    """

    def __init__(
        self,
        given: int,
        *,
        frames: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        start: int = 0,
        shown: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            given: k, frames that are given to the next chunk.
            frames: uint8 (k, H, W, 3) on the device.
            latents: in their place, float32 (16, T', h, w) of the chunk they are part of.
            start: the first of the k among the decoded frames of ``latents``.
            shown: the k frames as a guardrail lets them through, like ``frames``; None where it
                saw none.
        """
        self.given: Final = given
        self.start: Final = start
        self.latents: Final = latents
        self.frames = frames
        self.shown: Final = shown


@dataclass(frozen=True, eq=False)
class WorldState:
    """One world at the end of a chunk: immutable, and worth a few references in memory.

    Made by ``World.reset`` and :func:`advance`; any state may be advanced any number of times,
    beside any others. Its future depends on it and on the actions alone.
    """

    seed: int
    """Of its noise."""
    chunks: int
    """Chunks lived through since the reset."""
    size: Size
    tail: Tail = field(repr=False)
    script: Script = field(repr=False)
    """What it follows."""
    profile: Profile = field(repr=False)
    """Of the checkpoint that it belongs to."""

    @property
    def frames(self) -> Frames | None:
        """The last frames, uint8 (k, H, W, 3), as they were published: a copy, to write on.

        None after a step with ``decode=False``: nobody has looked at them.
        """
        if self.tail.shown is None:
            return None
        return Frames(self.tail.shown.clone(), self.profile.fps)

    @property
    def text(self) -> TextEmbedding | NoText:
        """What the transformer attended to where the world began."""
        return self.script.text

    def with_seed(self, seed: int) -> WorldState:
        """The same past under other noise.

        Raises:
            InputError: not an integer of 0 to 2**32 - 1.
        """
        return replace(self, seed=check_seed(seed))
