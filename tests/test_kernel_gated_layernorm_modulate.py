"""The fused gate, residual, norm and modulation against plain torch, interpreted or on a GPU."""

from __future__ import annotations

import pytest
import torch

from cosmos_fast_kernels import reference
from cosmos_fast_kernels.gated_layernorm_modulate import gated_layernorm_modulate, gated_residual
from rounding import assert_rounded_once

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
NORM_ERROR = 3e-6
"""Of mean, variance and modulation, relative to the largest feature of a token."""
SUM_ERROR = 1e-6
SHAPES = {
    "one_token": (1, 1, 1, 2048),
    "63_tokens": (1, 7, 9, 1280),
    "batch_of_14b": (2, 3, 1, 5120),
    "width_not_a_power_of_two": (2, 2, 3, 100),
}
"""Batch, frames, tokens of a frame, width."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VECTORS = ("gate", "shift", "scale")


def given(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tokens with a few features far from the others, and chunks of two modulation vectors."""
    batch, frames, each, width = shape
    x, y = torch.randn(2, batch, frames * each, width, device=DEVICE).unbind()
    x[..., width // 3] += 200
    y[..., width // 5] *= 50
    x[:, 0] += 500
    modulation = torch.randn(batch, frames, 3 * width, device=DEVICE).to(dtype)
    vectors = dict(zip(VECTORS, modulation.chunk(3, dim=-1), strict=True))
    return {"x": x.to(dtype), "y": y.to(dtype)} | vectors


def exact_sum(one: dict[str, torch.Tensor], frame: torch.Tensor) -> torch.Tensor:
    return one["x"].double() + one["gate"].double()[:, frame] * one["y"].double()


def exact_norm(
    total: torch.Tensor, one: dict[str, torch.Tensor], frame: torch.Tensor
) -> torch.Tensor:
    """Of the rounded sum, in float64, from the formula."""
    wide = total.double()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    return normed * (1 + one["scale"].double()[:, frame]) + one["shift"].double()[:, frame]


def raster(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(shape[1], device=DEVICE).repeat_interleave(shape[2])


def fused(one: dict[str, torch.Tensor], frame: torch.Tensor | None = None, **options):
    return gated_layernorm_modulate(
        one["x"], one["gate"], one["y"], one["shift"], one["scale"], frame, EPS, **options
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sum_and_norm_in_raster_order(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    one = given(shape, dtype)
    untouched = {name: tensor.clone() for name, tensor in one.items()}
    out = torch.full((2, *one["x"].shape), float("nan"), dtype=dtype, device=DEVICE)
    total, normed = fused(one, out=(out[0], out[1]))
    assert_rounded_once(total, exact_sum(one, raster(shape)), arithmetic=SUM_ERROR)
    assert_rounded_once(normed, exact_norm(total, one, raster(shape)), arithmetic=NORM_ERROR)
    for name, tensor in one.items():
        assert torch.equal(tensor, untouched[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 7, 9, 100), (2, 3, 1, 2048)], ids=str)
def test_sum_alone(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    one = given(shape, dtype)
    out = torch.full_like(one["x"], float("nan"))
    assert gated_residual(one["x"], one["gate"], one["y"], None, out=out) is out
    assert_rounded_once(out, exact_sum(one, raster(shape)), arithmetic=SUM_ERROR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_rounds_sum_and_norm_once_each(dtype: torch.dtype) -> None:
    shape = (2, 3, 5, 192)
    one = given(shape, dtype)
    total, normed = reference.gated_layernorm_modulate(
        one["x"], one["gate"], one["y"], one["shift"], one["scale"], None, EPS
    )
    frame = raster(shape)
    assert_rounded_once(total, exact_sum(one, frame), arithmetic=SUM_ERROR, by_kernel=False)
    exact = exact_norm(total, one, frame)
    assert_rounded_once(normed, exact, arithmetic=NORM_ERROR, by_kernel=False)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_by_frame_of_each_token(index: torch.dtype) -> None:
    shape = (2, 5, 9, 192)
    one = given(shape, torch.float32)
    frame = raster(shape)[torch.randperm(45)]
    total, normed = fused(one, frame.to(index))
    assert_rounded_once(total, exact_sum(one, frame), arithmetic=SUM_ERROR)
    assert_rounded_once(normed, exact_norm(total, one, frame), arithmetic=NORM_ERROR)
    alone = gated_residual(one["x"], one["gate"], one["y"], frame.to(index))
    assert torch.equal(alone, total)


def test_over_its_own_inputs() -> None:
    shape = (2, 3, 5, 64)
    one = given(shape, torch.bfloat16)
    expected = fused(one)
    total, normed = fused(one, out=(one["x"], one["y"]))
    assert total is one["x"]
    assert normed is one["y"]
    assert torch.equal(total, expected[0])
    assert torch.equal(normed, expected[1])


def test_non_contiguous_tokens_and_shared_vectors() -> None:
    shape = (2, 3, 5, 192)
    one = given(shape, torch.float32)
    for name in ("x", "y"):
        one[name] = torch.stack((one[name], one[name] * 7), dim=2)[:, :, 0]
    for name in VECTORS:
        one[name] = one[name][:1, :1].expand(1, 3, -1)
    total, normed = fused(one)
    assert_rounded_once(total, exact_sum(one, raster(shape)), arithmetic=SUM_ERROR)
    assert_rounded_once(normed, exact_norm(total, one, raster(shape)), arithmetic=NORM_ERROR)


def test_offsets_beyond_32_bits() -> None:
    """The last token starts beyond what 32 bits can count; most pages are never touched."""
    stride = 2**30 + 64
    room = torch.empty(2 * stride + 64, dtype=torch.float16, device=DEVICE)
    x = room.as_strided((1, 3, 64), (0, stride, 1))
    x.copy_(torch.randn(1, 3, 64))
    one = given((1, 1, 3, 64), torch.float16) | {"x": x}
    total, _ = fused(one)
    assert_rounded_once(total, exact_sum(one, raster((1, 1, 3))), arithmetic=SUM_ERROR)


def test_empty_input_gives_empty_output() -> None:
    one = given((1, 1, 1, 64), torch.float32)
    one["x"], one["y"] = one["x"][:, :0], one["y"][:, :0]
    assert fused(one)[1].shape == (1, 0, 64)


def test_constant_sum_becomes_the_shift() -> None:
    one = given((1, 1, 1, 192), torch.float32)
    one |= {"x": torch.full_like(one["x"], 7.0), "y": torch.zeros_like(one["y"])}
    total, normed = fused(one)
    assert torch.equal(total, one["x"])
    assert torch.equal(normed, one["shift"])


WRONG = {
    "axes": ("x", lambda x: x[0], r"\(B, N, D\)"),
    "dtype": ("y", lambda y: y.double(), "both alike"),
    "length": ("y", lambda y: y[:, :5], "both alike"),
    "last_axis": ("y", lambda y: y.transpose(1, 2).contiguous().transpose(1, 2), "last axis"),
    "width": ("gate", lambda gate: gate[..., :63], r"\(B, T, 64\)"),
    "frames": ("shift", lambda shift: shift[:, :1], "shift of shape"),
    "batch": ("scale", lambda scale: scale.expand(2, -1, -1)[:1].repeat(3, 1, 1), "scale of shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses(name: str) -> None:
    key, change, words = WRONG[name]
    one = given((1, 2, 3, 64), torch.float32)
    one[key] = change(one[key])
    with pytest.raises(ValueError, match=words):
        fused(one)


def test_refuses_frames_that_tokens_do_not_share_evenly() -> None:
    one = given((1, 2, 3, 64), torch.float32)
    one["x"], one["y"] = one["x"][:, :5], one["y"][:, :5]
    with pytest.raises(ValueError, match="evenly"):
        fused(one)
