"""From the network's velocity to a prediction of the clean latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from cosmos_fast.types import Conditioning

Predictor = Callable[[torch.Tensor, float, int], torch.Tensor]
"""``predict(x, sigma, step) -> x0``: noisy latents float32 (B, 16, T, h, w) at noise level
``sigma``, the number of the evaluation from 0, to predicted clean latents of the same shape."""

Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""``velocity(x, time_BT, mask_B1THW, step)``: the network. Latents as it wants them, flow time per
latent frame (float32, 0 to 1), condition mask, number of the evaluation; returns float32."""


def flow_time(sigma: float) -> float:
    """Rectified-flow time of a noise level, sigma / (1 + sigma), in float32 as the reference."""
    level = np.float32(sigma)
    return float(level / (np.float32(1) + level))


def frame_times(given: Conditioning, sigma: float) -> torch.Tensor:
    """Flow time of each latent frame at noise level ``sigma``: float32 (T,).

    Frames that are given as a whole have a near-zero time of their own, whatever ``sigma``.
    """
    whole = given.mask if given.mask.ndim == 1 else given.mask.amin(dim=(1, 2))
    return torch.where(whole > 0, given.sigma / (1 + given.sigma), flow_time(sigma))


def denoiser(velocity: Velocity, given: Conditioning) -> Predictor:
    """A rectified-flow network as a predictor, with frame-replace conditioning.

    The network sees given latents clean and unscaled at their own near-zero time, the rest scaled
    by 1 - t; its velocity becomes x0 = (1 - t) x - t F; given latents are put back at the end.
    (Rectified flow in sigma terms: NVIDIA Cosmos-Predict2, ``RectifiedFlowScaling``.)
    """
    mask = given.mask_11THW
    batch, _, frames, height, width = given.latents.shape
    network_mask = mask.expand(batch, 1, frames, height, width)

    def predict(x: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
        time = flow_time(sigma)
        network_x = torch.lerp((1 - time) * x, given.latents, mask)
        times = frame_times(given, sigma).expand(batch, frames)
        flow = velocity(network_x, times, network_mask, step)
        x0 = (1 - time) * x - time * flow
        return torch.where(mask > 0, given.latents, x0)

    return predict


def guided(conditional: Predictor, unconditional: Predictor | None, guidance: float) -> Predictor:
    """Classifier-free guidance in the reference's convention: x0_c + g (x0_c - x0_u).

    g is one less than the scale of Ho and Salimans (arXiv 2207.12598); g = 0 is the conditional
    prediction alone.

    Args:
        unconditional: None runs the conditional branch alone.
    """
    if unconditional is None or guidance == 0:
        return conditional

    def predict(x: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
        x0 = conditional(x, sigma, step)
        return x0 + guidance * (x0 - unconditional(x, sigma, step))

    return predict
