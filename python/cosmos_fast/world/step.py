"""What a step of worlds gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cosmos_fast.types import Latents
    from cosmos_fast.world.frames import BatchFrames
    from cosmos_fast.world.state import WorldState
    from cosmos_fast.world.timing import StepReport


@dataclass(frozen=True)
class WorldStep:
    """One chunk of N worlds. Everything stays on the device."""

    frames: BatchFrames | None
    """uint8 (N, chunk, H, W, 3): the new frames of the first sample, which the state follows;
    None with ``decode=False``."""
    latents: Latents
    """float32 (N, 16, T', h, w) of that sample, the given frames' latents included."""
    state: tuple[WorldState, ...]
    """What to advance next."""
    valid: torch.Tensor
    """bool (N, chunk): False after the end of a short chunk, and for a whole world whose actions
    (on a device, where nobody waits to look at them) or latents were not finite or in range."""
    verdict: str
    """The guardrail's, on texts and frames; "not checked" with ``decode=False``, which shows
    nothing, and where there is no guardrail."""
    report: StepReport
    futures: BatchFrames | None = None
    """uint8 (N, K, chunk, H, W, 3): every sample; None for one sample or with ``decode=False``."""
    future_latents: torch.Tensor | None = None
    """float32 (N, K, 16, T', h, w); None for one sample."""
    disagreement: torch.Tensor | None = None
    """float32 (N, chunk): how far the samples are apart: the standard deviation of their latents,
    root mean square over channels and positions; about 0 where the model is sure, towards 1 where
    it guesses. None for one sample."""
