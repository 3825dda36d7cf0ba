"""Resizing in Rust and on a device against torchvision's float resize, after truncation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cosmos_fast._core import resize, resize_windows
from cosmos_fast.errors import InputError
from cosmos_fast.media import fitting
from cosmos_fast.media.fitting import fit_tensor
from cosmos_fast.types import Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosmos_fast.media import Fit

EQUAL_SHARE = 0.999
"""Of the pixels; the others may be one level off."""


def by_torchvision(pictures: np.ndarray, size: Size, fit: Fit) -> np.ndarray:
    """The reference's geometry and arithmetic, written with torchvision."""
    unit = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    height, width = pictures.shape[1:3]
    if fit == "cover":
        scale = max(size.width / width, size.height / height)
        covering = [math.ceil(scale * height), math.ceil(scale * width)]
        unit = F.resize(unit, covering, interpolation=InterpolationMode.BILINEAR, antialias=True)
        unit = F.center_crop(unit, list(size))
    else:
        unit = F.resize(unit, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
        unit = unit.clamp(0, 1)
    return (unit * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def by_core(pictures: np.ndarray, size: Size, fit: Fit) -> np.ndarray:
    target = np.full((len(pictures), *size, 3), 0xA5, dtype=np.uint8)
    resize(pictures, target, fit=fit)
    return target


def by_tensor(pictures: np.ndarray, size: Size, fit: Fit) -> np.ndarray:
    return fit_tensor(torch.from_numpy(pictures), size, fit).numpy()


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = np.abs(ours.astype(np.int16) - theirs)
    assert difference.max() <= 1
    assert (difference == 0).mean() >= EQUAL_SHARE


def pictures(height: int, width: int, kind: str) -> np.ndarray:
    """Noise, one colour, or blocks: on flat areas a last bit decides over a whole level."""
    random = np.random.default_rng(height * 8191 + width)
    if kind == "noise":
        return random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    side = 1 << 20 if kind == "flat" else 19
    blocks = random.integers(0, 256, (2, height // side + 1, width // side + 1, 3), dtype=np.uint8)
    large = blocks.repeat(min(side, height), axis=1).repeat(min(side, width), axis=2)
    return np.ascontiguousarray(large[:, :height, :width])


WAYS = [pytest.param(by_core, id="core"), pytest.param(by_tensor, id="tensor")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fit", ["cover", "stretch"])
@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 420), st.integers(1, 420)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    kind=st.sampled_from(["noise", "flat", "blocks"]),
)
def test_it_equals_torchvision(
    way: Callable[[np.ndarray, Size, Fit], np.ndarray],
    fit: Fit,
    source: tuple[int, int],
    target: tuple[int, int],
    kind: str,
) -> None:
    clip = pictures(*source, kind)
    assert_close(way(clip, Size(*target), fit), by_torchvision(clip, Size(*target), fit))


@pytest.mark.parametrize("fit", ["cover", "stretch"])
@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 420), st.integers(1, 420)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    kind=st.sampled_from(["noise", "flat", "blocks"]),
    block=st.sampled_from([1, 4096, fitting._BLOCK]),
)
def test_a_tensor_is_fitted_bit_for_bit_as_the_core_does(
    fit: Fit, source: tuple[int, int], target: tuple[int, int], kind: str, block: int
) -> None:
    clip = pictures(*source, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_BLOCK", block)
        found = by_tensor(clip, Size(*target), fit)
    assert np.array_equal(found, by_core(clip, Size(*target), fit))


@pytest.mark.parametrize(
    ("source", "target", "fit", "message"),
    [
        ((4, 4), (0, 4), "cover", "at least 1"),
        ((0, 4), (4, 4), "cover", "at least 1"),
        ((4, 4), (4, (1 << 20) + 1), "stretch", "1048577 pixels"),
        ((4, 4), (4, 4), "contain", "fit"),
    ],
)
def test_windows_of_what_cannot_be_fitted_are_refused(
    source: tuple[int, int], target: tuple[int, int], fit: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resize_windows(source, target, fit=fit)


@pytest.mark.parametrize("fit", ["cover", "stretch"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param((912, 1368), (108, 192), id="a quarter of 5472x3648 to 768x432"),
        pytest.param((1080, 1920), (432, 768), id="full HD to 480"),
        pytest.param((480, 640), (704, 1280), id="enlarged"),
        pytest.param((704, 1280), (704, 1280), id="same size"),
        pytest.param((1280, 704), (704, 1280), id="portrait to landscape"),
        pytest.param((433, 769), (432, 768), id="one pixel less"),
        pytest.param((3, 4001), (16, 16), id="a strip"),
    ],
)
def test_ratios_of_real_use_equal_torchvision(
    source: tuple[int, int], target: tuple[int, int], fit: Fit
) -> None:
    for kind in ("noise", "blocks"):
        clip = pictures(*source, kind)
        ours = by_core(clip, Size(*target), fit)
        assert_close(ours, by_torchvision(clip, Size(*target), fit))
        assert np.array_equal(by_tensor(clip, Size(*target), fit), ours)


@pytest.mark.slow
def test_a_photograph_of_20_megapixels_equals_torchvision(parity: Callable[..., None]) -> None:
    clip = pictures(3648, 5472, "blocks")[:1]
    for fit in ("cover", "stretch"):
        size = Size(432, 768)
        ours, theirs = by_core(clip, size, fit), by_torchvision(clip, size, fit)
        difference = np.abs(ours.astype(np.int16) - theirs)
        name, rival = f"resize of 5472 x 3648, {fit}", "torchvision, antialiased"
        parity(name, f"{rival}: levels", int(difference.max()), 1)
        parity(
            name, f"{rival}: share that differs", float((difference > 0).mean()), 1 - EQUAL_SHARE
        )


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        pytest.param((2, 4, 4, 3), (1, 4, 4, 3), "the target holds", id="frames differ"),
        pytest.param((1, 4, 4, 4), (1, 4, 4, 3), r"\(T, H, W, 3\)", id="four channels"),
        pytest.param((4, 4, 3), (1, 4, 4, 3), r"\(T, H, W, 3\)", id="a picture"),
        pytest.param((1, 0, 4, 3), (1, 4, 4, 3), "at least 1", id="empty"),
        pytest.param((1, 4, 4, 3), (1, 4, 0, 3), "at least 1", id="into nothing"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    source: tuple[int, ...], target: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resize(np.zeros(source, np.uint8), np.zeros(target, np.uint8), fit="cover")


def test_arrays_that_cannot_be_used_are_refused() -> None:
    good = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(InputError, match="C order"):
        resize(good[:, :, ::-1], good, fit="cover")
    with pytest.raises(InputError, match="fit"):
        resize(good, good.copy(), fit="contain")
    frozen = good.copy()
    frozen.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        resize(good, frozen, fit="cover")
    with pytest.raises(BufferError):
        resize(good.astype(np.float32), good, fit="cover")
