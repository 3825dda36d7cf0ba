"""Nearest-neighbour doubling against plain torch, in the interpreter or on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F

from cosmos_fast_kernels import reference
from cosmos_fast_kernels import upsample as module
from cosmos_fast_kernels.upsample import upsample
from rounding import assert_rounded_once

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {"one": (1, 1, 1, 1, 24), "odd": (2, 3, 5, 3, 40), "wide": (1, 2, 2, 3, 384)}


@pytest.fixture
def _empty_is_nan() -> Iterator[None]:
    """What torch allocates holds NaN, and not by chance what was there before."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1, device=DEVICE).new_empty(1000).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def interpolated(x_BTHWC: torch.Tensor, bias_C: torch.Tensor, in_time: bool) -> torch.Tensor:
    """In float64, by torch's own interpolation."""
    wide = x_BTHWC.double() + bias_C.double()
    if in_time:
        earlier, later = wide.chunk(2, dim=4)
        wide = torch.stack((earlier, later), dim=2).flatten(1, 2)
    pictures = wide.flatten(0, 1).permute(0, 3, 1, 2)
    doubled = F.interpolate(pictures, scale_factor=2.0, mode="nearest-exact")
    return doubled.permute(0, 2, 3, 1).unflatten(0, wide.shape[:2])


@pytest.mark.usefixtures("_empty_is_nan")
@pytest.mark.parametrize("in_time", [False, True], ids=["pictures", "pairs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_upsample_is_torchs(shape: tuple[int, ...], dtype: torch.dtype, in_time: bool) -> None:
    x = torch.randn(shape, device=DEVICE).to(dtype)
    bias = torch.randn(shape[4], device=DEVICE).to(dtype)
    exact = interpolated(x, bias, in_time)
    assert_rounded_once(upsample(x, bias, in_time=in_time), exact, arithmetic=1e-6)
    plain = reference.upsample(x, bias, in_time=in_time)
    assert_rounded_once(plain, exact, arithmetic=1e-6, by_kernel=False)


def test_without_a_bias_values_are_copied() -> None:
    x = torch.randn(1, 2, 3, 4, 24, device=DEVICE).bfloat16()
    assert torch.equal(upsample(x, None, in_time=False)[:, :, 1::2, ::2], x)


@pytest.mark.usefixtures("_empty_is_nan")
def test_more_positions_than_one_program_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 2, 9, 7, 24, device=DEVICE)
    whole = upsample(x, None, in_time=True)
    assert torch.isfinite(whole).all()
    monkeypatch.setattr(module, "_TILE", 256)
    assert torch.equal(upsample(x, None, in_time=True), whole)


@pytest.mark.usefixtures("_empty_is_nan")
@pytest.mark.parametrize("border", [1, 2])
@pytest.mark.parametrize("in_time", [False, True], ids=["pictures", "pairs"])
@pytest.mark.parametrize("shape", [*SHAPES.values(), (2, 2, 9, 7, 24)], ids=[*SHAPES, "ragged"])
def test_a_border_is_left_around_the_same_rows(
    shape: tuple[int, ...], in_time: bool, border: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, bias = torch.randn(shape, device=DEVICE), torch.randn(shape[4], device=DEVICE)
    whole = upsample(x, bias, in_time=in_time)
    monkeypatch.setattr(module, "_TILE", 512)
    for double in (upsample, reference.upsample):
        wide = double(x, bias, in_time=in_time, border=border)
        assert wide.is_contiguous()
        assert torch.equal(wide[:, :, border:-border], whole)
        for untouched in (wide[:, :, :border], wide[:, :, -border:]):
            assert untouched.isnan().all()
    with pytest.raises(ValueError, match="border = -1"):
        upsample(x, bias, in_time=in_time, border=-1)


def test_empty_input_gives_empty_output() -> None:
    x = torch.zeros(1, 0, 3, 4, 24, device=DEVICE)
    assert upsample(x, None, in_time=False).shape == (1, 0, 6, 8, 24)


@pytest.mark.parametrize(
    ("shape", "bias", "words"),
    [
        ((3, 4, 24), None, r"\(B, T, H, W, C\)"),
        ((1, 1, 2, 2, 23), None, "multiple of 2"),
        ((1, 1, 2, 2, 24), torch.zeros(12), "bias of shape"),
    ],
    ids=["axes", "odd_pairs", "bias"],
)
def test_refuses(shape: tuple[int, ...], bias: torch.Tensor | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        upsample(torch.zeros(shape), bias, in_time=True)


def test_refuses_channels_first() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        upsample(torch.zeros(1, 24, 1, 2, 3).permute(0, 2, 3, 4, 1), None, in_time=False)
