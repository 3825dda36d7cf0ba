"""The fused LayerNorm and modulation against plain torch, in the interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch

from cosmos_fast_kernels import reference
from cosmos_fast_kernels.layernorm_modulate import layernorm_modulate
from rounding import assert_rounded_once

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
FLOAT32_ERROR = 3e-6
"""Of mean, variance and modulation, relative to the largest feature of a token."""
SHAPES = {
    "one_token": (1, 1, 1, 2048),
    "63_tokens": (1, 7, 9, 1280),
    "batch_of_14b": (2, 3, 1, 5120),
    "width_not_a_power_of_two": (2, 2, 3, 100),
}
"""Batch, frames, tokens of a frame, width."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def given(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tokens with a few features far from the others, and chunks of one modulation vector."""
    batch, frames, each, width = shape
    x = torch.randn(batch, frames * each, width, device=DEVICE)
    x[..., width // 3] += 200
    x[..., width // 5] *= 50
    x[:, 0] += 500
    modulation = torch.randn(batch, frames, 3 * width, device=DEVICE).to(dtype)
    shift, scale, _ = modulation.chunk(3, dim=-1)
    return {"x": x.to(dtype), "shift": shift, "scale": scale}


def exact(one: dict[str, torch.Tensor], frame: torch.Tensor) -> torch.Tensor:
    """The same in float64, unrounded, from the formula."""
    x = one["x"].double()
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    return normed * (1 + one["scale"].double()[:, frame]) + one["shift"].double()[:, frame]


def raster(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(shape[1], device=DEVICE).repeat_interleave(shape[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_layernorm_modulate_in_raster_order(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    one = given(shape, dtype)
    untouched = one["x"].clone()
    out = torch.full_like(one["x"], float("nan"))
    result = layernorm_modulate(one["x"], one["shift"], one["scale"], None, EPS, out=out)
    assert result is out
    assert_rounded_once(out, exact(one, raster(shape)), arithmetic=FLOAT32_ERROR)
    assert torch.equal(one["x"], untouched)


def test_layernorm_modulate_of_1000_tokens() -> None:
    shape = (1, 10, 100, 192)
    one = given(shape, torch.bfloat16)
    result = layernorm_modulate(one["x"], one["shift"], one["scale"], None, EPS)
    assert_rounded_once(result, exact(one, raster(shape)), arithmetic=FLOAT32_ERROR)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_layernorm_modulate_by_frame_of_each_token(index: torch.dtype) -> None:
    shape = (2, 5, 9, 192)
    one = given(shape, torch.float32)
    frame = raster(shape)[torch.randperm(45)]
    result = layernorm_modulate(one["x"], one["shift"], one["scale"], frame.to(index), EPS)
    assert_rounded_once(result, exact(one, frame), arithmetic=FLOAT32_ERROR)
    plain = reference.layernorm_modulate(one["x"], one["shift"], one["scale"], frame, EPS)
    assert_rounded_once(plain, exact(one, frame), arithmetic=FLOAT32_ERROR, by_kernel=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_rounds_once_too(dtype: torch.dtype) -> None:
    shape = (2, 3, 5, 192)
    one = given(shape, dtype)
    result = reference.layernorm_modulate(one["x"], one["shift"], one["scale"], None, EPS)
    assert_rounded_once(
        result, exact(one, raster(shape)), arithmetic=FLOAT32_ERROR, by_kernel=False
    )


def test_non_contiguous_tokens_and_shared_modulation() -> None:
    shape = (2, 3, 5, 192)
    one = given(shape, torch.float32)
    one["x"] = torch.stack((one["x"], one["x"] * 7), dim=2)[:, :, 0]
    one["shift"] = one["shift"][:1, :1].expand(1, 3, -1)
    one["scale"] = one["scale"][:1, :1].expand(1, 3, -1)
    result = layernorm_modulate(one["x"], one["shift"], one["scale"], None, EPS)
    assert_rounded_once(result, exact(one, raster(shape)), arithmetic=FLOAT32_ERROR)


def test_modulation_may_be_of_another_dtype() -> None:
    shape = (1, 2, 3, 64)
    one = given(shape, torch.bfloat16)
    one["shift"], one["scale"] = one["shift"].float(), one["scale"].float()
    result = layernorm_modulate(one["x"], one["shift"], one["scale"], None, EPS)
    assert result.dtype == torch.bfloat16
    assert_rounded_once(result, exact(one, raster(shape)), arithmetic=FLOAT32_ERROR)


def test_layernorm_modulate_over_its_own_input() -> None:
    shape = (1, 2, 3, 64)
    one = given(shape, torch.float32)
    expected = exact(one, raster(shape))
    result = layernorm_modulate(one["x"], one["shift"], one["scale"], None, EPS, out=one["x"])
    assert_rounded_once(result, expected, arithmetic=FLOAT32_ERROR)


def test_constant_token_becomes_the_shift() -> None:
    x = torch.full((1, 1, 192), 7.0, device=DEVICE)
    shift, scale = torch.randn(2, 1, 1, 192, device=DEVICE).unbind()
    assert torch.equal(layernorm_modulate(x, shift, scale, None, EPS), shift)


def test_offsets_beyond_32_bits() -> None:
    """The last token starts beyond what 32 bits can count; most pages are never touched."""
    stride = 2**30 + 64
    room = torch.empty(2 * stride + 64, dtype=torch.float16, device=DEVICE)
    x = room.as_strided((1, 3, 64), (0, stride, 1))
    x.copy_(torch.randn(1, 3, 64))
    shift, scale = torch.randn(2, 1, 1, 64, device=DEVICE, dtype=torch.float16).unbind()
    one = {"x": x, "shift": shift, "scale": scale}
    result = layernorm_modulate(x, shift, scale, None, EPS)
    assert_rounded_once(result, exact(one, raster((1, 1, 3))), arithmetic=FLOAT32_ERROR)


WRONG = {
    "axes": ("x", lambda x: x[0], r"\(B, N, D\)"),
    "dtype": ("x", lambda x: x.double(), "bfloat16, float16 or float32"),
    "last_axis": ("x", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), "last axis"),
    "width": ("shift", lambda shift: shift[..., :63], r"\(B, T, 64\)"),
    "other_scale": ("scale", lambda scale: scale[:, :1], "scale of shape"),
    "batch": ("x", lambda x: x[:1].expand(3, -1, -1), "batch 2: 1 or 3"),
    "uneven_frames": ("x", lambda x: x[:, :5], "evenly"),
}


@pytest.mark.parametrize("name", WRONG)
def test_layernorm_modulate_refuses(name: str) -> None:
    key, change, words = WRONG[name]
    one = given((2, 2, 3, 64), torch.float32)
    one[key] = change(one[key])
    with pytest.raises(ValueError, match=words):
        layernorm_modulate(one["x"], one["shift"], one["scale"], None, EPS)


WRONG_INDEX = {
    "length": torch.zeros(5, dtype=torch.int64),
    "dtype": torch.zeros(6),
    "strided": torch.zeros(6, 2, dtype=torch.int64)[:, 0],
}


@pytest.mark.parametrize("name", WRONG_INDEX)
def test_layernorm_modulate_refuses_a_wrong_index(name: str) -> None:
    one = given((2, 2, 3, 64), torch.float32)
    with pytest.raises(ValueError, match="frame_N"):
        layernorm_modulate(one["x"], one["shift"], one["scale"], WRONG_INDEX[name], EPS)
