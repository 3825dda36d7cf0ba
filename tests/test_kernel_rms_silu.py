"""What stands between two causal convolutions, against plain torch, interpreted or on a GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import triton

from cosmos_fast_kernels import reference
from cosmos_fast_kernels import rms_silu as module
from cosmos_fast_kernels.rms_silu import Assembled, rms_silu
from rounding import assert_rounded_once

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NORM_ERROR = 2e-6
"""Of the norm and of SiLU in float32, relative to the largest channel of a position."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {
    "one_frame": (1, 1, 3, 5, 96),
    "four_frames_of_a_batch": (2, 4, 2, 3, 24),
    "width_of_the_middle": (1, 2, 1, 7, 384),
}


def given(shape: tuple[int, ...], dtype: torch.dtype, history: int = 2) -> dict[str, Any]:
    """Features with a channel and a position far from the others, and one of zeros."""
    batch, _, height, width, channels = shape
    x, residual = torch.randn(2, *shape, device=DEVICE).unbind()
    x[..., channels // 3] *= 60
    residual[..., 0, 0, :] += 40
    gamma, bias, residual_bias = (torch.rand(3, channels, device=DEVICE) + 0.5).to(dtype).unbind()
    earlier = torch.randn(batch, history, height, width, channels, device=DEVICE).to(dtype)
    return {
        "x": x.to(dtype),
        "gamma": gamma,
        "bias": bias,
        "residual": residual.to(dtype),
        "residual_bias": residual_bias,
        "earlier": earlier,
        "history": history,
    }


def run(one: dict[str, Any], **changes: Any) -> Any:
    options = {name: changes.pop(name) for name in ("border", "out") if name in changes}
    return rms_silu(*(one | changes).values(), keep_total=True, **options)


def poisoned(x: torch.Tensor, history: int = 2, border: int = 0) -> Assembled:
    """Outputs of NaN: what nobody writes shows."""
    batch, frames, height, *rest = x.shape
    total, padded, kept = (
        torch.full((batch, length, rows, *rest), math.nan, dtype=x.dtype, device=DEVICE)
        for length, rows in (
            (frames, height),
            (frames + history, height + 2 * border),
            (history, height),
        )
    )
    return Assembled(total, padded, kept)


def exact_sum(one: dict[str, Any]) -> torch.Tensor:
    total = one["x"].double()
    for name in ("bias", "residual", "residual_bias"):
        if one[name] is not None:
            total = total + one[name].double()
    return total


def exact_silu(total: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Of the rounded sum, in float64, from the formula."""
    wide = total.double()
    length = wide.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    normed = wide / length * wide.shape[-1] ** 0.5 * gamma.double()
    return normed * normed.sigmoid()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sum_norm_and_history(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    one = given(shape, dtype)
    untouched = {n: t.clone() for n, t in one.items() if isinstance(t, torch.Tensor)}
    total, padded, kept = rms_silu(*one.values(), keep_total=True, out=poisoned(one["x"]))
    assert total is not None
    assert_rounded_once(total, exact_sum(one), arithmetic=1e-6)
    assert torch.equal(padded[:, :2], one["earlier"])
    exact = exact_silu(total, one["gamma"])
    assert_rounded_once(padded[:, 2:], exact, arithmetic=NORM_ERROR)
    assert torch.equal(kept, padded[:, -2:])
    for name, tensor in untouched.items():
        assert torch.equal(one[name], tensor), name


NOTHING = ("bias", "residual", "residual_bias", "earlier")


@pytest.mark.parametrize("absent", NOTHING)
def test_what_is_absent_counts_as_zeros(absent: str) -> None:
    one = given((1, 3, 2, 2, 24), torch.float32)
    zeros = torch.zeros_like(one[absent])
    for ours, theirs in zip(run(one, **{absent: None}), run(one, **{absent: zeros}), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("history", [0, 1, 2])
def test_without_a_norm_the_sum_is_assembled(history: int) -> None:
    one = given((2, 3, 2, 3, 40), torch.bfloat16, history)
    total, padded, kept = run(one, gamma=None)
    assert total is not None
    assert torch.equal(padded[:, history:], total)
    assert torch.equal(padded[:, :history], one["earlier"])
    assert kept.shape[1] == history
    assert torch.equal(kept, padded[:, 3:])


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_last_frames_go_where_they_are_wanted(frames: int) -> None:
    one = given((2, frames, 2, 3, 24), torch.float32)
    fresh = run(one)[2]
    for assemble in (rms_silu, reference.rms_silu):
        place = torch.full_like(one["earlier"], math.nan)
        kept = assemble(*one.values(), keep_total=False, kept_BTHWC=place)[2]
        assert kept is place
        torch.testing.assert_close(place, fresh)
    with pytest.raises(ValueError, match="read while it is written"):
        rms_silu(*one.values(), keep_total=False, kept_BTHWC=one["earlier"])


@pytest.mark.parametrize("border", [1, 3])
@pytest.mark.parametrize("history", [0, 1, 2])
@pytest.mark.parametrize(
    "shape", [*SHAPES.values(), (2, 1, 70, 7, 24)], ids=[*SHAPES, "ragged_programs"]
)
def test_a_border_stays_as_it_was_around_the_same_rows(
    shape: tuple[int, ...], history: int, border: int
) -> None:
    one = given(shape, torch.float32, history)
    plain = run(one)
    out = poisoned(one["x"], history, border)
    room = torch.full((out.padded.numel() + 8192,), math.nan, device=DEVICE)
    out = out._replace(padded=room[4096:-4096].view(out.padded.shape))
    total, padded, kept = run(one, border=border, out=out)
    assert torch.equal(total, plain.total)
    assert torch.equal(kept, plain.kept)
    assert torch.equal(padded[:, :, border:-border], plain.padded)
    for untouched in (padded[:, :, :border], padded[:, :, -border:], room[:4096], room[-4096:]):
        assert untouched.isnan().all()
    beginning = run(one, earlier=None, border=border)
    assert torch.equal(beginning.padded[:, :, border:-border], run(one, earlier=None).padded)
    assert beginning.padded.is_contiguous()
    by_torch = reference.rms_silu(*one.values(), keep_total=True, border=border)
    for found, expected in zip(by_torch, (total, padded, kept), strict=True):
        assert found is not None
        inside = slice(border, -border) if found.shape == padded.shape else slice(None)
        torch.testing.assert_close(found[:, :, inside], expected[:, :, inside])


def test_refuses_a_border_of_less_than_nothing() -> None:
    with pytest.raises(ValueError, match="border = -1"):
        run(given((1, 1, 2, 2, 24), torch.float32), border=-1)


def test_a_vector_of_zeros_stays_finite() -> None:
    one = given((1, 1, 1, 2, 24), torch.float32)
    one |= {"x": torch.zeros_like(one["x"]), "residual": None, "bias": None, "residual_bias": None}
    assert not run(one)[1][:, 2:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_rounds_once_too(dtype: torch.dtype) -> None:
    one = given((2, 3, 2, 3, 40), dtype)
    total, padded, kept = reference.rms_silu(*one.values(), keep_total=True)
    assert total is not None
    assert_rounded_once(total, exact_sum(one), arithmetic=1e-6, by_kernel=False)
    exact = exact_silu(total, one["gamma"])
    assert_rounded_once(padded[:, 2:], exact, arithmetic=NORM_ERROR, by_kernel=False)
    assert torch.equal(kept, padded[:, -2:])
    assert reference.rms_silu(*one.values(), keep_total=False)[0] is None


@pytest.mark.parametrize("channels", [24, 96])
def test_more_positions_than_one_program_holds(channels: int) -> None:
    of_one_program = module._TILE // triton.next_power_of_2(channels)
    width = 7
    height = 2 * of_one_program // width + 2  # two programs and a ragged third
    assert height * width % of_one_program
    one = given((2, 1, height, width, channels), torch.float32)
    whole = rms_silu(*one.values(), keep_total=True, out=poisoned(one["x"]))
    rows = of_one_program // width  # each part is one program, and ragged
    for top in range(0, height, rows):
        part = {
            name: value[:, :, top : top + rows].contiguous()
            if name in ("x", "residual", "earlier")
            else value
            for name, value in one.items()
        }
        for ours, theirs in zip(whole, run(part), strict=True):
            assert ours is not None
            assert torch.equal(ours[:, :, top : top + rows], theirs)


def test_a_ragged_program_writes_nothing_behind_its_last_position() -> None:
    one = given((1, 1, 3, 5, 96), torch.float32)
    behind = 4096
    shapes = [made.shape for made in poisoned(one["x"])]
    rooms = [torch.full((math.prod(s) + behind,), math.nan, device=DEVICE) for s in shapes]
    outs = [room[:-behind].view(shape) for room, shape in zip(rooms, shapes, strict=True)]
    rms_silu(*one.values(), keep_total=True, out=Assembled(*outs))
    for room, out in zip(rooms, outs, strict=True):
        assert not out.isnan().any()
        assert room[-behind:].isnan().all()


WRONG = {
    "axes": ({"x": torch.zeros(3, 5)}, r"\(B, T, H, W, C\)"),
    "dtype": ({"residual": torch.zeros(1, 3, 2, 2, 24, dtype=torch.float64)}, "residual of shape"),
    "order": (
        {"x": torch.zeros(1, 24, 3, 2, 2, device=DEVICE).permute(0, 2, 3, 4, 1)},
        "x: a contiguous",
    ),
    "history": ({"earlier": torch.zeros(1, 1, 2, 2, 24)}, "earlier of shape"),
    "gamma": ({"gamma": torch.ones(23)}, "gamma of shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses(name: str) -> None:
    changes, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        run(given((1, 3, 2, 2, 24), torch.float32), **changes)


def test_refuses_an_output_of_another_shape() -> None:
    one = given((1, 3, 2, 2, 24), torch.float32)
    with pytest.raises(ValueError, match="padded of another shape"):
        rms_silu(
            *one.values(), keep_total=True, out=poisoned(one["x"][:, :2])._replace(total=one["x"])
        )
