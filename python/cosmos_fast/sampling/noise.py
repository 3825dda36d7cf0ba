"""The reference's noise: the same numbers for the same seed on every machine."""

import numpy as np
import torch

from cosmos_fast.errors import InputError

MAX_SEED = 2**32 - 1


def check_seed(seed: int) -> int:
    """
    Raises:
        InputError: ``seed`` is not an integer of 0 to 2**32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise InputError(f"{seed = }: an integer from 0 to {MAX_SEED} is needed")
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"{seed = }: NumPy's generator takes 0 to {MAX_SEED}")
    return int(seed)


def reference_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal noise as NVIDIA's code draws it.

    NumPy's legacy Mersenne Twister and polar method, filled in C order, float64 rounded to float32.
    The generator is private: NumPy's global state is neither read nor moved.

    Args:
        shape: (B, 16, T, h, w).
        seed: 0 to 2**32 - 1.

    Returns:
        float32 on the host, unit variance (the solver starts from 80 times this).
    """
    generator = np.random.RandomState(check_seed(seed))
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))
