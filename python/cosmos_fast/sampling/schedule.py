"""Noise levels of the solver's steps."""

from typing import Final

from cosmos_fast.errors import InputError

SIGMA_MAX: Final = 80.0
SIGMA_MIN: Final = 0.002
RHO: Final = 7.0
MAX_STEPS: Final = 1000


def sigmas(
    num_steps: int, *, sigma_max: float = SIGMA_MAX, sigma_min: float = SIGMA_MIN
) -> tuple[float, ...]:
    """The power-law schedule of Karras et al. 2022 (arXiv 2206.00364, eq. 5), rho 7.

    Args:
        num_steps: solver steps K, 1 to 1000.
        sigma_max, sigma_min: first and last noise level.

    Returns:
        K + 1 falling levels, computed in float64; the last one is that of the clean-up evaluation.
    """
    if isinstance(num_steps, bool) or not 1 <= num_steps <= MAX_STEPS:
        raise InputError(f"{num_steps = }: 1 to {MAX_STEPS} solver steps are possible")
    high, low = sigma_max ** (1 / RHO), sigma_min ** (1 / RHO)
    return tuple((high + i / num_steps * (low - high)) ** RHO for i in range(num_steps + 1))
