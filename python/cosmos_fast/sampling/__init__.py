"""From noise to latents: plain functions over a predictor ``predict(x, sigma, step) -> x0``.

Solvers see only the predictor. Guidance, guidance thinning, step caching and other
parameterisations are functions that take predictors and return predictors.
"""

from cosmos_fast.sampling.noise import noise_ahead, reference_noise
from cosmos_fast.sampling.predictor import (
    Predictor,
    Velocity,
    denoiser,
    flow_time,
    frame_times,
    guided,
)
from cosmos_fast.sampling.schedule import SIGMA_MAX, SIGMA_MIN, sigmas
from cosmos_fast.sampling.solver import adams_bashforth

__all__ = [
    "SIGMA_MAX",
    "SIGMA_MIN",
    "Predictor",
    "Velocity",
    "adams_bashforth",
    "denoiser",
    "flow_time",
    "frame_times",
    "guided",
    "noise_ahead",
    "reference_noise",
    "sigmas",
]
