"""Bytes to the network's range and back, against torch doing what the reference does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_fast._core import denormalize, normalize
from cosmos_fast.errors import InputError

AXES = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 130))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory as NumPy sees it; bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


@DTYPES
@settings(max_examples=40, deadline=None)
@given(axes=AXES, seed=st.integers(0, 1 << 30))
def test_normalize_equals_torch_in_that_dtype(
    dtype: torch.dtype, axes: tuple[int, int, int], seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*axes, 3), dtype=np.uint8)
    target = torch.full((3, *axes), float("nan"), dtype=dtype)
    normalize(pixels, bits(target))
    expected = torch.from_numpy(pixels).permute(3, 0, 1, 2).to(dtype) / 127.5 - 1
    assert torch.equal(target, expected)


@DTYPES
@settings(max_examples=40, deadline=None)
@given(axes=AXES, seed=st.integers(0, 1 << 30))
def test_denormalize_equals_torch_and_covers_overshoot(
    dtype: torch.dtype, axes: tuple[int, int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    video = (torch.rand((3, *axes), generator=generator) * 3 - 1.5).to(dtype)
    target = np.full((*axes, 3), 0xA5, dtype=np.uint8)
    denormalize(bits(video), target)
    unit = ((video.float() + 1) / 2).clamp(0, 1)
    expected = (unit * 255 + 0.5).to(torch.uint8).permute(1, 2, 3, 0)
    assert torch.equal(torch.from_numpy(target), expected)


@DTYPES
def test_every_byte_comes_back(dtype: torch.dtype) -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    video = torch.empty((3, 1, 16, 16), dtype=dtype)
    normalize(pixels, bits(video))
    back = np.empty_like(pixels)
    denormalize(bits(video), back)
    # bfloat16 holds 8 bits of the sum, so the darkest and brightest half share levels.
    assert np.abs(back.astype(int) - pixels).max() <= (0 if dtype == torch.float32 else 1)


def test_not_a_number_is_black() -> None:
    target = np.full((1, 1, 1, 3), 7, dtype=np.uint8)
    denormalize(np.array([np.nan, np.inf, -np.inf], np.float32).reshape(3, 1, 1, 1), target)
    assert target.ravel().tolist() == [0, 255, 0]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param((1, 4, 4, 3), (3, 1, 4, 5), id="widths differ"),
        pytest.param((1, 4, 4, 4), (3, 1, 4, 4), id="four channels"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    source: tuple[int, ...], target: tuple[int, ...]
) -> None:
    with pytest.raises(InputError):
        normalize(np.zeros(source, np.uint8), np.zeros(target, np.float32))
