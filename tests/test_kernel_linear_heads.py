"""Products into heads that are normed and turned: refusals anywhere, the rest on Hopper."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from cosmos_fast_kernels import reference
from cosmos_fast_kernels.linear_hopper import (
    DESIGNS,
    linear,
    linear_head_norm,
    linear_qk_norm_rope,
)
from cosmos_fast_kernels.linear_hopper_pipeline import LinearConfig
from test_kernel_linear import SUMMATION, given, guarded

Six = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
EPILOGUES = ("norm", "rope")
EPS = 1e-6
ARITHMETIC = 2.0**-20
"""Of norm and rotation in float32, relative to the terms of each sum."""


class Case(NamedTuple):
    """Sizes of one product; of "rope" there are three times as many heads."""

    sequences: int
    tokens: int
    inputs: int
    heads: int
    features: int

    def given(self, epilogue: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Inputs with a few features and rows far from the others."""
        outputs = self.heads * self.features * (3 if epilogue == "rope" else 1)
        one = given((self.sequences * self.tokens, self.inputs, outputs), device)
        angles = torch.rand(self.tokens, self.features // 2, device=device) * 100
        return {
            "x": one["x"],
            "weight": one["weight"],
            "q_norm": (torch.rand(self.features, device=device) + 0.5).bfloat16(),
            "k_norm": (torch.rand(self.features, device=device) - 1.5).bfloat16(),
            "cos": angles.cos(),
            "sin": angles.sin(),
        }


SHAPES = {
    "one_row": Case(1, 1, 64, 1, 64),
    "one_row_each": Case(3, 1, 64, 1, 128),
    "63_rows": Case(1, 63, 128, 5, 64),
    "ragged_tiles": Case(3, 100, 192, 3, 128),
    "many_tiles": Case(2, 2400, 320, 16, 128),
    "2b": Case(1, 1297, 2048, 16, 128),
}


def rotates(epilogue: str) -> bool:
    return epilogue == "rope"


def six(one: dict[str, torch.Tensor]) -> Six:
    """What "rope" takes, in its order."""
    return one["x"], one["weight"], one["q_norm"], one["k_norm"], one["cos"], one["sin"]


def fused(one: dict[str, torch.Tensor], epilogue: str, **options: Any) -> torch.Tensor:
    if not rotates(epilogue):
        return linear_head_norm(one["x"], one["weight"], one["q_norm"], EPS, **options)
    return linear_qk_norm_rope(*six(one), EPS, **options)


def normed(
    product_MHD: torch.Tensor, off_MHD: torch.Tensor, norm_D: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm in float64, and how far off it is where the product is by ``off``.

    Each number is off by its own error and by that of the factor, at most factor · rms(off).
    """
    factor = (product_MHD.square().mean(-1, keepdim=True) + EPS).rsqrt()
    exact = product_MHD * factor * norm_D.double()
    shared = factor * off_MHD.square().mean(-1, keepdim=True).sqrt() + ARITHMETIC
    return exact, (off_MHD * factor * norm_D.double().abs() + exact.abs() * shared) * 1.01


def turned(
    exact_MHD: torch.Tensor, off_MHD: torch.Tensor, one: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rotation of feature j and its partner j + D / 2, likewise."""
    sequences = len(exact_MHD) // len(one["cos"])
    cos, sin = (one[name].double().repeat(sequences, 1)[:, None] for name in ("cos", "sin"))
    first, second = exact_MHD.chunk(2, dim=-1)
    exact = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    first, second = (off_MHD + exact_MHD.abs() * ARITHMETIC).chunk(2, dim=-1)
    cos, sin = cos.abs(), sin.abs()
    return exact, torch.cat((first * cos + second * sin, first * sin + second * cos), dim=-1)


def after(
    one: dict[str, torch.Tensor], epilogue: str, product: torch.Tensor, off: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The epilogue in float64, and how far off it is where the product is by ``off``."""
    features = len(one["q_norm"])
    if not rotates(epilogue):
        heads = (product.unflatten(1, (-1, features)), off.unflatten(1, (-1, features)))
        exact, off = normed(*heads, one["q_norm"])
        return exact.flatten(1), off.flatten(1)
    products = product.unflatten(1, (3, -1, features)).unbind(1)
    offs = off.unflatten(1, (3, -1, features)).unbind(1)
    q = turned(*normed(products[0], offs[0], one["q_norm"]), one)
    k = turned(*normed(products[1], offs[1], one["k_norm"]), one)
    exact = torch.stack((q[0], k[0], products[2]), dim=1)
    return exact.flatten(1), torch.stack((q[1], k[1], offs[2]), dim=1).flatten(1)


def assert_exact(ours: torch.Tensor, one: dict[str, torch.Tensor], epilogue: str) -> None:
    """``ours`` is within half a step of bfloat16, and what float32 sums may be off, of float64."""
    x, weight = one["x"].double(), one["weight"].double()
    sums = x.abs() @ weight.abs().T * SUMMATION
    assert_within(ours, *after(one, epilogue, x @ weight.T, sums))


def assert_within(ours: torch.Tensor, exact: torch.Tensor, off: torch.Tensor) -> None:
    excess = (ours.double() - exact).abs() - (exact.abs() * 2.0**-8 + off * 1.01 + 1e-9)
    worst = excess.argmax()
    assert excess.flatten()[worst] <= 0, (  # NaN fails too
        f"element {int(worst)}: {ours.flatten()[worst]} where {exact.flatten()[worst]} is exact"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_element_and_nothing_else(shape: Case, epilogue: str, design: str) -> None:
    one = shape.given(epilogue, "cuda")
    untouched = {name: tensor.clone() for name, tensor in one.items()}
    out, room = guarded(len(one["x"]), len(one["weight"]))
    assert fused(one, epilogue, out=out, config=DESIGNS[design]) is out
    assert_exact(out, one, epilogue)
    out.fill_(float("nan"))
    assert room.isnan().all(), "written beyond its end"
    for name, tensor in one.items():
        assert torch.equal(tensor, untouched[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_rows_apart_and_norms_in_float32(epilogue: str) -> None:
    one = Case(3, 107, 256, 3, 128).given(epilogue, "cuda")
    for name in ("x", "weight"):
        one[name] = torch.cat((one[name], one[name] * 7), dim=1)[:, : one[name].shape[1]]
    for name in ("q_norm", "k_norm"):
        one[name] = one[name].float() * 1.003
    assert_exact(fused(one, epilogue), one, epilogue)


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_runs_agree(epilogue: str, design: str) -> None:
    """Hundreds of tiles a program, again and again: a race would differ."""
    one = Case(1, 27_216, 2048, 16, 128).given(epilogue, "cuda")
    first = fused(one, epilogue, config=DESIGNS[design])
    for _ in range(20):
        assert torch.equal(fused(one, epilogue, config=DESIGNS[design]), first)


@pytest.mark.gpu
@pytest.mark.parametrize("features", [64, 128])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_rounded_first_as_two_kernels(epilogue: str, features: int) -> None:
    """The epilogue of the rounded product, whatever that is."""
    one = Case(2, 2400, 2048, 1024 // features, features).given(epilogue, "cuda")
    product = linear(one["x"], one["weight"], config=DESIGNS["turns"]).double()
    ours = fused(one, epilogue, round_first=True)
    assert_within(ours, *after(one, epilogue, product, torch.zeros_like(product)))


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_not_a_number_stays_one(epilogue: str) -> None:
    one = Case(2, 100, 64, 2, 128).given(epilogue, "cuda")
    one["x"][130, 5] = float("nan")
    bad = fused(one, epilogue).isnan()
    assert bad[130].all()
    assert bad.sum() == len(one["weight"])


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_rows_of_zeros_stay_zero(epilogue: str) -> None:
    one = Case(1, 130, 64, 2, 64).given(epilogue, "cuda")
    one["x"][7] = 0.0
    assert not fused(one, epilogue)[7].any()


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("features", [64, 128])
def test_references_round_once(features: int, epilogue: str) -> None:
    one = Case(3, 5, 64, 2, features).given(epilogue)
    if rotates(epilogue):
        ours = reference.linear_qk_norm_rope(*six(one), EPS)
    else:
        ours = reference.linear_head_norm(one["x"], one["weight"], one["q_norm"], EPS)
    assert ours.shape == (15, len(one["weight"]))
    assert_exact(ours, one, epilogue)


WRONG = {
    "features": ("q_norm", lambda norm: norm[:32], "heads of 32 features"),
    "outputs": ("weight", lambda weight: weight[:256], "a multiple of 384"),
    "other_norm": ("k_norm", lambda norm: norm[:64], r"k_norm of shape \(64,\)"),
    "norm_dtype": ("q_norm", lambda norm: norm.half(), "q_norm of shape .*float16"),
    "norm_dtypes": ("k_norm", lambda norm: norm.float(), "one dtype"),
    "norm_apart": ("k_norm", lambda norm: norm.repeat(2)[::2], "k_norm of strides"),
    "angles": ("sin", lambda sin: sin[:, :32], r"sin of shape \(6, 32\)"),
    "table_rows": ("sin", lambda sin: sin[:5], r"sin of shape \(5, 64\)"),
    "table_dtype": ("cos", lambda cos: cos.double(), "float32"),
    "table_order": ("cos", lambda cos: cos.t().contiguous().t(), "cos of strides"),
    "sequences": ("x", lambda x: x[:7], "sequences of 6 tokens"),
    "axes": ("x", lambda x: x[None], r"\(M, K\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses(name: str) -> None:
    key, change, words = WRONG[name]
    one = Case(2, 6, 64, 2, 128).given("rope")
    one[key] = change(one[key])
    with pytest.raises(ValueError, match=words):
        fused(one, "rope")


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_refuses_tiles_that_cut_heads(epilogue: str) -> None:
    one = Case(1, 6, 64, 2, 128).given(epilogue)
    with pytest.raises(ValueError, match="whole heads of 128 features"):
        fused(one, epilogue, config=LinearConfig(columns=64, pieces=1))


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_no_rows_give_no_rows(epilogue: str) -> None:
    one = Case(1, 6, 64, 2, 128).given(epilogue)
    one["x"] = one["x"][:0]
    assert fused(one, epilogue).shape == (0, len(one["weight"]))
