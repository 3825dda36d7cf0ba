"""The fused norm and rotation of q and k against plain torch, in the interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch

from cosmos_fast_kernels import reference
from cosmos_fast_kernels.qk_norm_rope import head_norm, qk_norm_rope
from rounding import assert_rounded_once

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
FLOAT32_ERROR = 1e-6
"""Of the norm and the rotation, whose two products cancel, relative to the largest feature."""
SHAPES = {
    "one_token": (1, 1, 16, 128),
    "three_tokens_of_2b": (1, 3, 16, 128),
    "batch_of_14b": (2, 2, 40, 128),
    "0.6b": (1, 2, 20, 64),
    "three_heads_of_64": (2, 5, 3, 64),
    "one_head_of_6": (1, 9, 1, 6),
    "five_heads_of_24": (1, 4, 5, 24),
}
Six = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def given(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """q and k as views of one projection, with features far from the others, as real ones have."""
    batch, tokens, heads, features = shape
    qkv = torch.randn(batch, tokens, 3, heads, features, device=DEVICE)
    qkv[..., features // 3] += 30
    qkv[:, :, :, 0] *= 20
    qkv[:, tokens // 2] *= 1e-4
    angles = torch.rand(tokens, features // 2, device=DEVICE) * 100
    q, k, v = qkv.to(dtype).unbind(2)
    return {
        "q": q,
        "k": k,
        "v": v,
        "q_weight": torch.rand(features, device=DEVICE).to(dtype) + 0.5,
        "k_weight": torch.rand(features, device=DEVICE).to(dtype) - 0.5,
        "cos": angles.cos(),
        "sin": angles.sin(),
    }


def exact_norm(one: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    x, weight = one[name].double(), one[f"{name}_weight"].double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def exact(one: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in float64, unrounded, from the formula."""
    results = []
    for name in ("q", "k"):
        x = exact_norm(one, name)
        cos = torch.cat((one["cos"], one["cos"]), -1).double()[:, None]
        sin = torch.cat((one["sin"], one["sin"]), -1).double()[:, None]
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), -1)
        results.append(x * cos + turned * sin)
    return results[0], results[1]


def arguments(one: dict[str, torch.Tensor]) -> Six:
    return one["q"], one["k"], one["q_weight"], one["k_weight"], one["cos"], one["sin"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_qk_norm_rope_of_strided_views(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    one = given(shape, dtype)
    untouched = {name: tensor.clone() for name, tensor in one.items()}
    out = torch.full((2, *shape), float("nan"), dtype=dtype, device=DEVICE)
    q, k = qk_norm_rope(*arguments(one), EPS, out=(out[0], out[1]))
    expected = exact(one)
    assert_rounded_once(q, expected[0], arithmetic=FLOAT32_ERROR)
    assert_rounded_once(k, expected[1], arithmetic=FLOAT32_ERROR)
    for name, tensor in one.items():
        assert torch.equal(tensor, untouched[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_qk_norm_rope_over_its_own_input(dtype: torch.dtype) -> None:
    one = given((2, 9, 3, 64), dtype)
    expected, v = exact(one), one["v"].clone()
    q, k = qk_norm_rope(*arguments(one), EPS, out=(one["q"], one["k"]))
    assert q is one["q"]
    assert k is one["k"]
    assert_rounded_once(q, expected[0], arithmetic=FLOAT32_ERROR)
    assert_rounded_once(k, expected[1], arithmetic=FLOAT32_ERROR)
    assert torch.equal(one["v"], v)


@pytest.mark.parametrize("tokens", [63, pytest.param(1000, marks=pytest.mark.gpu)])
def test_qk_norm_rope_of_many_tokens(tokens: int) -> None:
    one = given((1, tokens, 3, 64), torch.bfloat16)
    q, k = qk_norm_rope(*arguments(one), EPS)
    expected = exact(one)
    assert_rounded_once(q, expected[0], arithmetic=FLOAT32_ERROR)
    assert_rounded_once(k, expected[1], arithmetic=FLOAT32_ERROR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 64), (1, 2, 40, 128)], ids=str)
def test_head_norm_of_strided_views(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    one = given(shape, dtype)
    out = torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)
    expected = exact_norm(one, "k")
    assert head_norm(one["k"], one["k_weight"], EPS, out=out) is out
    assert_rounded_once(out, expected, arithmetic=FLOAT32_ERROR)
    assert torch.equal(head_norm(one["k"], one["k_weight"], EPS), out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 64), (1, 2, 40, 128)], ids=str)
def test_one_tensor_alone_gets_the_same_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    one = given(shape, dtype)
    _, expected = qk_norm_rope(*arguments(one), EPS)
    angles = (one["cos"], one["sin"])
    out = torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)
    assert head_norm(one["k"], one["k_weight"], EPS, angles, out=out) is out
    assert torch.equal(out, expected)
    assert_rounded_once(out, exact(one)[1], arithmetic=FLOAT32_ERROR)
    with pytest.raises(ValueError, match="cos of shape"):
        head_norm(one["k"], one["k_weight"], EPS, (one["cos"][:, 1:], one["sin"]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_rounds_once_too(dtype: torch.dtype) -> None:
    one = given((2, 9, 3, 64), dtype)
    q, k = reference.qk_norm_rope(*arguments(one), EPS)
    expected = exact(one)
    assert_rounded_once(q, expected[0], arithmetic=FLOAT32_ERROR, by_kernel=False)
    assert_rounded_once(k, expected[1], arithmetic=FLOAT32_ERROR, by_kernel=False)


def test_zero_heads_stay_zero() -> None:
    x = torch.zeros(1, 3, 2, 64, device=DEVICE)
    assert not head_norm(x, torch.ones(64, device=DEVICE), EPS).any()


def test_offsets_beyond_32_bits() -> None:
    """The last token starts beyond what 32 bits can count; most pages are never touched."""
    stride = 2**30 + 64
    room = torch.empty(2 * stride + 64, dtype=torch.float16, device=DEVICE)
    x = room.as_strided((1, 3, 1, 64), (0, stride, 64, 1))
    x.copy_(torch.randn(1, 3, 1, 64))
    one = {"k": x, "k_weight": torch.rand(64, device=DEVICE).half()}
    result = head_norm(x, one["k_weight"], EPS)
    assert_rounded_once(result, exact_norm(one, "k"), arithmetic=FLOAT32_ERROR)


def test_empty_input_gives_empty_output() -> None:
    x = torch.zeros(1, 0, 2, 64, device=DEVICE)
    assert head_norm(x, torch.ones(64, device=DEVICE), EPS).shape == (1, 0, 2, 64)


WRONG = {
    "odd_features": ("q", lambda q: q[..., :63], "even D"),
    "dtype": ("q", lambda q: q.double(), "even D"),
    "last_axis": ("q", lambda q: q.transpose(2, 3).contiguous().transpose(2, 3), "end in 1"),
    "other_k": ("k", lambda k: k[:, :4], "as q"),
    "weight": ("k_weight", lambda weight: weight[:63], "contiguous"),
    "table_rows": ("cos", lambda cos: cos[:4], r"\(5, 32\)"),
    "table_dtype": ("sin", lambda sin: sin.double(), "float32"),
    "table_order": ("sin", lambda sin: sin.t().contiguous().t(), "contiguous"),
}


@pytest.mark.parametrize("name", WRONG)
def test_qk_norm_rope_refuses(name: str) -> None:
    key, change, words = WRONG[name]
    one = given((1, 5, 2, 64), torch.float32)
    one[key] = change(one[key])
    with pytest.raises(ValueError, match=words):
        qk_norm_rope(*arguments(one), EPS)


def test_qk_norm_rope_refuses_an_output_of_another_shape() -> None:
    one = given((1, 5, 2, 64), torch.float32)
    with pytest.raises(ValueError, match="out of shape"):
        qk_norm_rope(*arguments(one), EPS, out=(one["q"][:, :4], one["k"]))
