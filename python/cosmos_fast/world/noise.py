"""The noise a chunk starts from: a function of the world's own key, never of its neighbours."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import torch

from cosmos_fast.errors import InputError
from cosmos_fast.sampling import reference_noise
from cosmos_fast.sampling.noise import MAX_SEED

NoiseKind = Literal["device", "shared", "reference"]
"""``"device"``: drawn on the device, keyed by the world's seed, its chunk and the sample.
``"shared"``: the same without the seed, so that all worlds meet the same luck (common random
numbers). ``"reference"``: NVIDIA's NumPy noise; the seed moves on with time as in its scripts."""


def check_noise(kind: str) -> NoiseKind:
    """
    Raises:
        InputError: no such kind.
    """
    if kind not in get_args(NoiseKind):
        raise InputError(f"noise = {kind!r}: one of {', '.join(get_args(NoiseKind))} is needed")
    return kind  # type: ignore[return-value]


def chunk_noise(
    kind: NoiseKind,
    shape: tuple[int, ...],
    device: torch.device,
    *,
    seed: int,
    chunk: int,
    sample: int,
    stride: int,
) -> torch.Tensor:
    """Standard normal float32 noise of ``shape`` on ``device``.

    Args:
        seed: of the world.
        chunk: chunks that the world has lived through.
        sample: number of the future.
        stride: what a chunk adds to the seed of the reference's noise; its action script counts
            actions, its long-video script chunks.
    """
    if kind == "reference":
        if sample:
            raise InputError('noise = "reference" has one future a seed; use samples=1')
        return reference_noise(shape, (seed + chunk * stride) % (MAX_SEED + 1)).to(device)
    name = f"cosmos-fast world noise: {'' if kind == 'shared' else seed} {chunk} {sample}"
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
    generator = torch.Generator(device)
    generator.manual_seed(key)
    return torch.randn(shape, generator=generator, device=device)
