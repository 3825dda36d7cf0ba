"""Portable attention in Triton's interpreter, on shapes and data that break kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from cosmos_fast.model.attention_table import ERROR_LIMIT, classes_of, self_test_error
from cosmos_fast.model.ops.backends import candidates
from cosmos_fast_kernels.attention import BLOCKS, Blocks, KeyBlocks, attention

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cosmos_fast.model.attention_table import ShapeClass

SMALL = Blocks(rows=32, keys=32, num_warps=4, num_stages=1)


@pytest.fixture(autouse=True)
def _interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two faults of Triton 3.6's interpreter: NumPy 2.4 refuses int() of its one-element arrays,
    and its dot multiplies the bits of bfloat16 as integers."""
    if request.node.get_closest_marker("gpu"):
        return
    if torch.cuda.is_available():
        pytest.skip("no interpreter beside a GPU: the last test runs the compiled kernels")
    patch_tensor, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patched(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def widened_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widened_dot)


def projected(
    queries: int,
    keys: int,
    *,
    batch: int = 1,
    heads: int = 2,
    features: int = 64,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v as views of one projection, with channels of k far from zero, and heavy tokens."""
    q, k, v = (
        torch.randn(batch, length, 3, heads, features).to(dtype)[:, :, index]
        for index, length in enumerate((queries, keys, keys))
    )
    k[..., ::16] += torch.linspace(10, 50, features // 16).to(dtype)
    q[..., 5] += 1
    k[:, :2, :, 5] += 30
    v[:, -1:] *= 8
    return q, k, v


def expected(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    zero_keys: int = 0,
    seen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, log-sum-exp) in float64; ``seen``: which key each query may attend to."""
    scores = torch.einsum("bshd,bthd->bhst", q.double(), k.double()) * q.shape[-1] ** -0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    scores = torch.cat([scores, scores.new_zeros(*scores.shape[:3], zero_keys)], -1)
    log_sum_exp = scores.logsumexp(-1)
    weights = (scores - log_sum_exp[..., None]).exp()[..., : k.shape[1]].nan_to_num(0)
    return torch.einsum("bhst,bthd->bshd", weights, v.double()), log_sum_exp.transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("queries", "keys", "batch", "features"),
    [(1, 1, 1, 64), (63, 1000, 1, 64), (1000, 63, 1, 64), (33, 65, 2, 128), (64, 96, 2, 128)],
)
def test_attention_matches_float64(
    queries: int,
    keys: int,
    batch: int,
    features: int,
    dtype: torch.dtype,
    tolerance: Mapping[torch.dtype, dict[str, float]],
) -> None:
    q, k, v = projected(queries, keys, batch=batch, features=features, dtype=dtype)
    out = torch.full(q.shape, math.nan, dtype=dtype)
    _, log_sum_exp = attention(
        q, k, v, scale=features**-0.5, log_sum_exp=True, out=out, blocks=SMALL
    )
    exact, exact_sums = expected(q, k, v)
    relative = (out.double() - exact).norm() / exact.norm()
    assert relative < tolerance[dtype]["rtol"]
    assert log_sum_exp is not None
    torch.testing.assert_close(log_sum_exp.double(), exact_sums, rtol=1e-5, atol=1e-4)


def test_offsets_beyond_32_bits() -> None:
    """The last rows start beyond what 32 bits can count; most pages are never touched."""
    stride = 2**30 + 256
    room = torch.empty(2 * stride + 256, dtype=torch.float16)
    q, k, v, out = (
        room.as_strided((1, 3, 1, 64), (0, stride, 64, 1), 64 * place) for place in range(4)
    )
    for one in (q, k, v):
        one.copy_(torch.randn(1, 3, 1, 64))
    out.fill_(math.nan)
    attention(q, k, v, scale=0.125, out=out, blocks=SMALL)
    exact, _ = expected(q, k, v)
    assert (out.double() - exact).norm() / exact.norm() < 1e-3


@pytest.mark.parametrize(("keys", "zero_keys"), [(0, 512), (1, 511), (40, 472), (100, 0)])
def test_folded_padding_counts_as_keys_of_zeros(keys: int, zero_keys: int) -> None:
    q, k, v = projected(50, keys, dtype=torch.bfloat16)
    folded, sums = attention(
        q, k, v, scale=0.125, zero_keys=zero_keys, log_sum_exp=True, blocks=SMALL
    )
    zeros = torch.zeros(1, zero_keys, *k.shape[2:], dtype=k.dtype)
    spelled_out, spelled_out_sums = attention(
        q, torch.cat([k, zeros], 1), torch.cat([v, zeros], 1), scale=0.125, log_sum_exp=True,
        blocks=SMALL,
    )  # fmt: skip
    # Only the rounding of P differs, by the maximum it is relative to.
    torch.testing.assert_close(folded, spelled_out, rtol=1.6e-2, atol=1e-3)
    torch.testing.assert_close(sums, spelled_out_sums, rtol=1e-5, atol=1e-5)


def test_scores_far_below_zero_still_lose_to_folded_padding() -> None:
    q, k, v = (torch.ones(1, 3, 1, 64, dtype=torch.bfloat16) for _ in range(3))
    out, sums = attention(q, -300 * k, v, scale=1.0, zero_keys=4, log_sum_exp=True, blocks=SMALL)
    assert not out.any()
    assert sums is not None
    torch.testing.assert_close(sums, torch.full_like(sums, math.log(4)))


def test_listed_blocks_are_attended_and_no_others() -> None:
    lists = ((0, 2), (1,), (), (2, 1, 0))
    q, k, v = projected(400, 300, heads=1, dtype=torch.float16)
    out = torch.full(q.shape, math.nan, dtype=q.dtype)
    _, sums = attention(
        q, k, v, scale=0.125, log_sum_exp=True, out=out, blocks=SMALL,
        key_blocks=KeyBlocks.from_lists(lists, "cpu"),
    )  # fmt: skip
    seen = torch.zeros(4, 3, dtype=torch.bool)
    for row, chosen in enumerate(lists):
        seen[row, list(chosen)] = True
    seen = seen.repeat_interleave(128, 0).repeat_interleave(128, 1)[:400, :300]
    exact, exact_sums = expected(q, k, v, seen=seen)
    assert (out.double() - exact).norm() / exact.norm() < 2e-3
    assert not out[:, 256:384].any()
    assert sums is not None
    torch.testing.assert_close(sums.double(), exact_sums, rtol=1e-5, atol=1e-4)


def test_output_goes_where_it_is_asked_to() -> None:
    q, k, v = projected(40, 50, dtype=torch.bfloat16)
    wide = torch.full((1, 40, 3, 2, 64), math.nan, dtype=q.dtype)
    returned, nothing = attention(q, k, v, scale=0.125, out=wide[:, :, 1], blocks=SMALL)
    assert returned.data_ptr() == wide[:, :, 1].data_ptr()
    assert nothing is None
    assert torch.equal(returned, attention(q, k, v, scale=0.125, blocks=SMALL)[0])
    assert wide[:, :, ::2].isnan().all()


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    plain = {name: torch.zeros(1, 8, 2, 64, dtype=torch.bfloat16) for name in ("q", "k", "v")}
    return plain | changes


@pytest.mark.parametrize(
    ("changes", "numbers", "message"),
    [
        ({"q": torch.zeros(8, 2, 64)}, {}, r"q of shape \(8, 2, 64\)"),
        ({"k": torch.zeros(1, 8, 2, 96, dtype=torch.bfloat16)}, {}, "64 or 128"),
        ({"k": torch.zeros(1, 8, 2, 64)}, {}, "k of torch.float32"),
        ({"v": torch.zeros(1, 9, 2, 64, dtype=torch.bfloat16)}, {}, "only the length of k and v"),
        ({"out": torch.zeros(1, 9, 2, 64, dtype=torch.bfloat16)}, {}, r"out of \(1, 9, 2, 64\)"),
        ({}, {"scale": 0.0}, "scale = 0.0"),
        ({}, {"zero_keys": -1}, "zero_keys = -1"),
        ({}, {"key_blocks": KeyBlocks.from_lists(((0,), (0,)), "cpu")}, "1 are needed"),
    ],
)
def test_what_cannot_be_taken_is_refused(
    changes: dict[str, torch.Tensor], numbers: dict[str, Any], message: str
) -> None:
    given = tensors(**changes)
    arguments = {"scale": 0.125, "out": given.get("out")} | numbers
    with pytest.raises(ValueError, match=message):
        attention(given["q"], given["k"], given["v"], **arguments)


def test_shipped_blocks_divide_a_listed_block() -> None:
    for blocks in BLOCKS.values():
        assert 128 % blocks.rows == 128 % blocks.keys == 0


@pytest.mark.parametrize("wanted", classes_of("portable", (9, 0)))
def test_attention_passes_its_test_at_the_start_of_an_engine(wanted: ShapeClass) -> None:
    """Through the seam, in each form in which an engine may choose it."""
    attend = candidates((8, 9), torch.float16, 64)["portable"]
    error = self_test_error(attend, 64, torch.float16, "cpu", [wanted])
    assert error <= ERROR_LIMIT[torch.float16]


@pytest.mark.gpu
@pytest.mark.parametrize("features", [64, 128])
@pytest.mark.parametrize(
    ("queries", "keys", "zero_keys"), [(1, 1, 0), (63, 1000, 0), (2000, 40, 472)]
)
def test_kernels_of_this_gpu_match_float64(
    queries: int, keys: int, zero_keys: int, features: int
) -> None:
    q, k, v = (
        one.cuda()
        for one in projected(queries, keys, batch=2, features=features, dtype=torch.bfloat16)
    )
    exact, exact_sums = expected(q, k, v, zero_keys)
    kernels: list[Any] = [attention]
    if torch.cuda.get_device_capability()[0] == 9:
        from cosmos_fast_kernels.attention_hopper import hopper_attention

        kernels.append(hopper_attention)
    for kernel in kernels:
        out = torch.full(q.shape, math.nan, dtype=q.dtype, device="cuda")
        arguments = {"scale": features**-0.5, "zero_keys": zero_keys, "log_sum_exp": True}
        _, sums = kernel(q, k, v, out=out, **arguments)
        assert (out.double() - exact).norm() / exact.norm() < 5e-3
        assert sums is not None
        torch.testing.assert_close(sums.double(), exact_sums, rtol=1e-4, atol=1e-3)


EARLY: dict[str, Any] = {"free": "named", "turns": "named", "early_values": True}


@pytest.mark.gpu
@pytest.mark.parametrize("features", [64, 128])
@pytest.mark.parametrize("rises", [False, True], ids=["level", "rising"])
@pytest.mark.parametrize(
    "design",
    [
        {"free": "named"},
        {"free": "named", "turns": "named", "tail": 32},
        {"free": "named", "turns": "none", "q_registers": True},
        {"free": "named", "turns": "none", "skip_decay": True},
        {"free": "named", "turns": "none", "skip_decay": True, "q_registers": True},
        {"free": "named", "turns": "none", "stages": 3, "q_stages": 1},
        EARLY | {"late_keys": True},
        EARLY | {"q_registers": True},
        EARLY | {"q_registers": True, "skip_decay": True},
        EARLY | {"q_registers": True, "stages": 3, "q_stages": 1},
        EARLY | {"late_keys": True, "skip_decay": True},
        EARLY | {"tail": 32},
        EARLY | {"tail": 32, "skip_decay": True},
        {"free": "named", "turns": "none", "skip_decay": True, "slack": 8.0, "q_registers": True},
        {"free": "named", "turns": "none", "skip_decay": True, "slack": 8.0, "tail": 32},
    ],
    ids=lambda design: " ".join(f"{name}={value}" for name, value in design.items()),
)
def test_designs_for_hopper_match_float64(
    design: dict[str, Any], rises: bool, features: int
) -> None:
    """``rising``: maxima that grow with the position, in some rows at most blocks, in some never,
    in steps below and above the slack."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("designs for compute capability 9.0")
    from cosmos_fast_kernels.attention_hopper import hopper_attention
    from cosmos_fast_kernels.attention_hopper_pipeline import HopperConfig

    config = HopperConfig(head_dim=features, **design)
    for queries, keys, zero_keys in [(1, 1, 0), (63, 1000, 0), (2000, 40, 472), (4800, 2000, 3)]:
        q, k, v = projected(queries, keys, batch=2, features=features, dtype=torch.bfloat16)
        if rises:
            k[..., 5] += torch.arange(keys, dtype=k.dtype)[None, :, None] / 16
            q[..., 5] = torch.linspace(-4, 4, queries).to(q.dtype)[None, :, None]
        q, k, v = q.cuda(), k.cuda(), v.cuda()
        exact, exact_sums = expected(q, k, v, zero_keys)
        out = torch.full(q.shape, math.nan, dtype=q.dtype, device="cuda")
        arguments = {"scale": features**-0.5, "zero_keys": zero_keys, "log_sum_exp": True}
        _, sums = hopper_attention(q, k, v, out=out, config=config, **arguments)
        assert (out.double() - exact).norm() / exact.norm() < 5e-3
        assert sums is not None
        torch.testing.assert_close(sums.double(), exact_sums, rtol=1e-4, atol=1e-3)
