"""The reference's noise: the same numbers for the same seed on every machine."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextmanager
def noise_ahead(shape: tuple[int, ...], seed: int) -> Iterator[Future[torch.Tensor]]:
    """:func:`reference_noise` for a body that has other things to do meanwhile.

    Its millions of numbers come one after another, on one core: 0.04 s of a clip at 480p, 0.1 to
    0.2 s at 720p. NumPy lets go of the interpreter while it draws them, so that they cost a body
    nothing that waits for files or a device.

    Args:
        shape, seed: as for :func:`reference_noise`.

    Yields:
        The noise, or the error that drawing it met, once ``result()`` is asked for it. Its thread
        has ended when the body has, by an error too: what is left to draw is waited for. Where a
        thread cannot be had, it is drawn before the body begins.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="cosmos-fast noise") as thread:
        try:
            drawn = thread.submit(reference_noise, shape, seed)
        except RuntimeError:  # no thread is to be had: its host's main thread has ended, say
            drawn = Future()
            try:
                drawn.set_result(reference_noise(shape, seed))
            except Exception as error:
                drawn.set_exception(error)
        yield drawn
