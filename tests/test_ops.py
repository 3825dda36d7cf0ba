"""What Ops picks, and that its choices compute the same."""

from __future__ import annotations

import dataclasses
import sys
import sysconfig
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cosmos_fast.config import DiTConfig
from cosmos_fast.errors import InputError
from cosmos_fast.model.attention import AttentionSpec, cudnn_attention, torch_attention
from cosmos_fast.model.attention_table import (
    ELSEWHERE,
    TABLE,
    preferences,
    self_test_error,
    shape_class,
)
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.linear_table import (
    DESIGNS,
    Following,
    Gated,
    Normed,
    design,
)
from cosmos_fast.model.linear_table import self_test_error as product_error
from cosmos_fast.model.obstacles import gluon_obstacle_of, launcher_obstacle
from cosmos_fast.model.ops import (
    Ops,
    TableAttention,
    _failure,
    _with_kernels,
    no_product,
    table_product,
)
from cosmos_fast.model.ops.backends import candidates
from cosmos_fast_kernels import reference
from cosmos_fast_kernels.linear_hopper import DESIGNS as HOPPER_DESIGNS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEC = AttentionSpec(scale=0.3)


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    logits = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * scale
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v.double())


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def test_a_cpu_runs_plain_torch() -> None:
    ops = Ops.select("cpu", torch.bfloat16)
    assert set(ops.names.values()) == {"torch", "torch sdpa"}
    assert ops.qk_norm_rope is reference.qk_norm_rope
    assert ops.attention is torch_attention


def test_names_cover_every_operation() -> None:
    operations = {field.name for field in dataclasses.fields(Ops)} - {"names", "folds_padding"}
    assert set(Ops().names) == operations
    assert set(_with_kernels(torch_attention, dict(Ops().names)).names) == operations


def test_kernels_asked_for_where_they_cannot_run_are_an_error() -> None:
    with pytest.raises(InputError, match="not a CUDA device"):
        Ops.select("cpu", torch.bfloat16, kernels=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(InputError, match="torch sees no CUDA device"):
        Ops.select("cuda", torch.bfloat16)


def test_launcher_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "gcc or clang is not found" in str(launcher_obstacle())
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler is not found" in str(launcher_obstacle())


def test_launcher_without_python_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert "python3-dev" in str(launcher_obstacle())
    (tmp_path / "Python.h").touch()
    assert launcher_obstacle() is None


@pytest.mark.parametrize("version", ["3.6.0", "3.9.0", "3.10.1", "4.0.0", "3.6.0+git1234", "main"])
def test_gluon_of_a_newer_triton_is_tried(version: str) -> None:
    assert gluon_obstacle_of(version) is None


def test_gluon_of_an_older_triton_is_told_with_the_cure() -> None:
    told = str(gluon_obstacle_of("3.5.1"))
    assert "triton 3.5.1: kernels for Hopper need 3.6" in told
    assert "pip install --upgrade torch" in told


def test_kernels_run_every_operation_and_agree_with_torch() -> None:
    ours = _with_kernels(torch_attention, {"attention": "torch sdpa"})
    kernels = {name for name, runs in ours.names.items() if runs == "triton"}
    assert kernels == set(Ops().names) - {"attention", "product"}
    assert not ours.decodes(torch.zeros(1)), "the decoder between kernels needs a GPU"
    x, y = torch.randn(2, 2, 12, 96)
    gate, shift, scale = torch.randn(3, 2, 3, 96)
    expected = reference.gated_layernorm_modulate(x, gate, y, shift, scale, None, 1e-6)
    found = ours.gated_layernorm_modulate(x.clone(), gate, y.clone(), shift, scale, None, 1e-6)
    torch.testing.assert_close(found, expected)


def test_a_choice_without_a_wheel_is_the_next_one_of_the_table() -> None:
    table = TableAttention(
        (9, 0), {"fa3": torch_attention, "hopper": torch_attention}, torch_attention
    )
    assert table._chosen(SPEC) == "fa3"
    assert table.without("fa3")._chosen(SPEC) == "hopper"


@pytest.mark.parametrize("keys", [1, 7, 63])
def test_torch_attention_of_strided_views(keys: int) -> None:
    qkv = torch.randn(2, 63, 3, 4, 16)
    q, k, v = qkv[:, :, 0], qkv[:, :keys, 1], qkv[:, :keys, 2]
    attended = torch_attention(q, k, v, SPEC)
    assert attended.log_sum_exp_BSH is None
    torch.testing.assert_close(
        attended.out_BSHD.double(), formula(q, k, v, 0.3), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "change",
    [{"key_blocks": ((0,),)}, {"precision": "8bit"}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("attention", [torch_attention, cudnn_attention], ids=["torch", "cudnn"])
def test_dense_attention_refuses_what_it_has_not(attention: Callable, change: dict) -> None:
    q, k, v = torch.randn(3, 1, 2, 1, 8).unbind()
    with pytest.raises(InputError, match=next(iter(change))):
        attention(q, k, v, dataclasses.replace(SPEC, **change))


def test_torch_attention_tells_the_sums_when_asked() -> None:
    q, k, v = torch.randn(3, 2, 9, 3, 16).unbind()
    attended = torch_attention(q, k, v, dataclasses.replace(SPEC, log_sum_exp=True))
    scores = torch.einsum("bqhd,bkhd->bqhk", q.double(), k.double()) * SPEC.scale
    assert attended.log_sum_exp_BSH is not None
    torch.testing.assert_close(attended.log_sum_exp_BSH.double(), scores.logsumexp(-1))
    torch.testing.assert_close(attended.out_BSHD, torch_attention(q, k, v, SPEC).out_BSHD)


@pytest.mark.parametrize(
    "attention",
    [torch_attention, pytest.param(cudnn_attention, marks=pytest.mark.gpu)],
    ids=["torch", "cudnn"],
)
def test_folded_padding_counts_as_rows_of_zeros(attention: Callable) -> None:
    q, k, v = torch.randn(3, 1, 7, 2, 8).unbind()
    zeros = torch.zeros(1, 5, 2, 8)
    spelled_out = formula(q, torch.cat((k, zeros), 1), torch.cat((v, zeros), 1), SPEC.scale)
    folded = attention(q, k, v, dataclasses.replace(SPEC, zero_keys=5)).out_BSHD
    torch.testing.assert_close(folded.double(), spelled_out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keys", [0, 5])
def test_sums_of_torch_attention_count_folded_padding(keys: int) -> None:
    q, k, v = torch.randn(3, 1, 7, 2, 8).unbind()
    spec = dataclasses.replace(SPEC, zero_keys=keys, log_sum_exp=True)
    scores = torch.einsum("bqhd,bkhd->bqhk", q.double(), k.double()) * SPEC.scale
    exact = torch.nn.functional.pad(scores, (0, keys)).logsumexp(-1)
    sums = torch_attention(q, k, v, spec).log_sum_exp_BSH
    assert sums is not None
    torch.testing.assert_close(sums.double(), exact, rtol=1e-5, atol=1e-5)


def named(name: str, calls: list[str]) -> Callable:
    def attend(q, k, v, spec, /):
        calls.append(name)
        return torch_attention(q, k, v, dataclasses.replace(spec, key_blocks=None))

    return attend


SELF, CROSS = AttentionSpec(0.1), AttentionSpec(0.1, "cross")
CHOICES = {
    "wheel_first": (("fa3", "hopper", "portable"), SELF, "fa3"),
    "own_without_the_wheel": (("hopper", "portable"), SELF, "hopper"),
    "cross": (("fa3", "hopper", "portable"), CROSS, "hopper"),
    "folded": (("fa3", "hopper"), dataclasses.replace(CROSS, zero_keys=3), "hopper"),
    "folded_after_a_failure": (("portable",), dataclasses.replace(CROSS, zero_keys=3), "portable"),
    "listed": (("fa3", "hopper", "portable"), AttentionSpec(0.1, key_blocks=((0,),)), "portable"),
    "nothing_passed": ((), SELF, "fallback"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_table_chooses_by_class_and_by_what_passed(name: str) -> None:
    passed, spec, expected = CHOICES[name]
    calls: list[str] = []
    backends: Any = {one: named(one, calls) for one in passed}
    attend: Any = TableAttention((9, 0), backends, named("fallback", calls))
    half = torch.randn(3, 1, 4, 2, 64).bfloat16().unbind()
    attend(*half, spec)
    assert calls == [expected]


@pytest.mark.parametrize("backend", ["fa3", "hopper"])
def test_what_no_kernel_takes_goes_to_the_fallback(backend: Any) -> None:
    calls: list[str] = []
    taken = named(backend, calls)
    attend: Any = TableAttention((9, 0), {backend: taken}, named("fallback", calls))
    attend(*torch.randn(3, 1, 4, 2, 64).unbind(), SELF)  # float32
    attend(*torch.randn(3, 1, 4, 2, 16).bfloat16().unbind(), SELF)  # heads of 16
    attend(*torch.randn(3, 1, 4, 2, 68).bfloat16()[..., 1:65].unbind(), SELF)  # not TMA's steps
    attend(*torch.randn(3, 1, 4, 64, 8).bfloat16().transpose(3, 4).unbind(), SELF)
    attend(*torch.randn(3, 1, 4, 2, 64).bfloat16().requires_grad_().unbind(), SELF)
    assert calls == ["fallback"] * 5


def test_a_list_of_blocks_takes_rows_that_lie_apart_to_the_fallback() -> None:
    calls: list[str] = []
    portable: Any = {"portable": named("portable", calls)}
    attend: Any = TableAttention((9, 0), portable, named("fallback", calls))
    spec = AttentionSpec(0.1, key_blocks=((0,),))
    qkv = torch.randn(3, 1, 4, 64, 8).bfloat16().transpose(3, 4)
    attend(*qkv.unbind(), spec)
    attend(*qkv.contiguous().unbind(), spec)
    assert calls == ["fallback", "portable"]


def test_a_triton_with_another_gluon_fails_the_test_and_not_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cosmos_fast_kernels.attention_hopper", None)  # as if absent
    found = candidates((9, 0), torch.bfloat16, 64)
    assert "ModuleNotFoundError" in str(
        _failure(found["hopper"], 64, torch.bfloat16, "cpu", ["self"])
    )


def test_the_report_names_what_runs_and_what_failed() -> None:
    backends: Any = {"hopper": torch_attention}
    attend = TableAttention((9, 0), backends, cudnn_attention, {"fa3": "relative error 1e+00"})
    assert attend.folds_padding
    assert attend.description == (
        "self gluon (own, sm_90a), cross gluon (own, sm_90a); fa3 failed: relative error 1e+00"
    )
    assert (
        TableAttention((8, 9), {}, torch_attention).description
        == "self torch sdpa, cross torch sdpa"
    )
    assert not TableAttention((8, 9), {}, torch_attention).folds_padding


@pytest.mark.skipif(bool(find_spec("fa3_fwd_interface")), reason="the wheel is installed")
def test_a_wheel_of_no_known_version_is_named_all_the_same() -> None:
    attend = TableAttention((9, 0), {"fa3": torch_attention}, torch_attention)
    assert attend.description == "self fa3-fwd, cross torch sdpa"


def test_every_row_of_the_table_covers_every_class() -> None:
    for row in (*TABLE.values(), ELSEWHERE):
        assert set(row) == set(ELSEWHERE)
        assert all(row.values())
    assert preferences((10, 3), "self") == TABLE[10, 0]["self"]
    assert preferences((12, 0), "self") == ELSEWHERE["self"]
    assert shape_class(dataclasses.replace(CROSS, zero_keys=1)) == "folded"


@pytest.mark.gpu
@torch.inference_mode()
def test_a_gpu_s_choice_is_right_and_says_so() -> None:
    ops = Ops.select("cuda", torch.bfloat16)
    assert "failed" not in ops.names["attention"]
    for spec in (SELF, CROSS, dataclasses.replace(CROSS, zero_keys=212)):
        assert self_test_error(ops.attention, 128, torch.bfloat16, "cuda") <= 5e-3, spec


def rounded_product(
    epilogue: str, name: str, x: torch.Tensor, weight: torch.Tensor, following: Following
) -> torch.Tensor:
    """In plain torch, rounded once."""
    if isinstance(following, Gated):
        given = (following.residual_BND[0], following.gate_BTD[0], following.frame_N)
        return reference.linear_gated_residual(x[0], weight, *given)[None]
    if isinstance(following, Normed):
        return reference.linear_head_norm(x[0], weight, *following)[None]
    multiply = reference.linear_gelu if epilogue == "gelu" else torch.nn.functional.linear
    return multiply(x, weight)


def test_self_test_of_products_finds_what_is_wrong() -> None:
    def off_in_one(epilogue: str, value: float) -> float:
        def product(*given: Any) -> torch.Tensor:
            out = rounded_product(*given)
            if given[0] == epilogue:
                out[0, -1] = value
            return out

        return product_error(product, 64, "cpu")

    assert max(product_error(rounded_product, features, "cpu") for features in (64, 128)) <= 2.5e-3
    for epilogue in {epilogue for epilogue, _ in DESIGNS}:
        assert off_in_one(epilogue, 0.0) > 5e-3
        assert not off_in_one(epilogue, float("nan")) <= 5e-3


def test_the_table_of_products_names_designs_that_are_tested() -> None:
    named = {
        (epilogue, design(epilogue, rows, inputs))
        for epilogue, _ in DESIGNS
        for rows in (1, 4800, 84_480)
        for inputs in (64, 2048, 5120, 8192, 20_480)
    }
    assert {one for one in named if one[1] is not None} == set(DESIGNS)
    assert {name for _, name in DESIGNS} <= set(HOPPER_DESIGNS)
    assert design("gelu", 63, 2048) is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x[:, :63], id="few rows"),
        pytest.param(lambda x: x.float(), id="float32"),
        pytest.param(lambda x: x[..., 1:], id="address"),
        pytest.param(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), id="strides"),
        pytest.param(lambda x: torch.stack((x[0], x[0]), 2).unbind(2)[0][None], id="rows apart"),
        pytest.param(lambda x: x[:, :1].expand(-1, 4096, -1), id="one row for all"),
        pytest.param(lambda x: x.clone().requires_grad_(), id="gradient"),
    ],
)
def test_what_the_kernel_cannot_take_is_left_to_torch(change: Callable[..., Any]) -> None:
    x, weight = torch.zeros(1, 4096, 72).bfloat16(), torch.zeros(64, 64).bfloat16()
    assert table_product("none", change(x)[..., :64], weight, None) is None


@pytest.mark.gpu
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_products_of_a_gpu_are_those_of_torch(batch: int, indexed: bool) -> None:
    """What the engine asks for: views of a modulation, several clips, tokens in another order."""
    ops, plain = (Ops.select("cuda", torch.bfloat16, kernels=kernels) for kernels in (True, False))
    if torch.cuda.get_device_capability() == (9, 0):
        assert ops.names["product"] == "gluon (own, sm_90a)"
    assert plain.product is no_product
    tokens, width = 3 * 1100, 256
    x, y = (torch.randn(batch, tokens, width, device="cuda").bfloat16() for _ in range(2))
    y[..., 9] *= 60
    weight = (torch.randn(width, width, device="cuda") * width**-0.5).bfloat16()
    wide = (torch.randn(4 * width, width, device="cuda") * width**-0.5).bfloat16()
    three, norm = wide[width:].contiguous(), torch.rand(128, device="cuda").bfloat16() + 0.5
    angle = torch.rand(tokens, 64, device="cuda") * 6
    shift, scale, gate = torch.randn(batch, 3, 3 * width, device="cuda").bfloat16().chunk(3, -1)
    frame = torch.randint(3, (tokens,), device="cuda") if indexed else None

    def results(one: Ops, dtype: torch.dtype) -> list[torch.Tensor]:
        def cast(*tensors: torch.Tensor) -> Any:
            return [tensor.to(dtype, copy=True) for tensor in tensors]

        following = (*cast(y, weight, shift, scale), frame, 1e-6)
        turned = (*cast(y, three, norm, norm.flip(0)), angle.cos(), angle.sin(), 1e-6)
        normed = (*cast(y, weight, norm), 1e-6)
        gated = (*cast(x, gate, y, weight), frame)
        return [
            *one.linear_qk_norm_rope(*turned),
            one.linear_head_norm(*normed),
            one.linear_gelu(*cast(y, wide)),
            one.linear_gated_residual(*gated),
            *one.linear_gated_layernorm_modulate(*cast(x, gate), *following),
        ]

    exact = results(Ops(), torch.float64)
    for ours, theirs, wanted in zip(
        results(ops, torch.bfloat16), results(plain, torch.bfloat16), exact, strict=True
    ):
        assert relative_error(ours, wanted) <= 1.1 * relative_error(theirs, wanted)


@pytest.fixture
def small() -> DiT:
    config = DiTConfig(num_layers=1, num_heads=3, head_dim=64, adaln_rank=8, text_dim=16)
    torch.manual_seed(5)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return DiT(config, Ops()).to(device)


def with_kernels(dit: DiT) -> DiT:
    other = DiT(dit.config, _with_kernels(torch_attention, {})).to(dit.patch_embed.weight.device)
    other.load_state_dict(dit.state_dict())
    return other


def velocity(dit: DiT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    device = dit.patch_embed.weight.device
    x = torch.randn(1, 16, 2, 4, 4, generator=generator).to(device)
    rows = torch.randn(1, 5, 16, generator=generator).to(device)
    t, mask = torch.tensor([[1e-4, 0.5]], device=device), torch.ones(1, 1, 1, 1, 1, device=device)
    return dit(x, t, mask, dit.text_context(rows))


@torch.inference_mode()
def test_kernels_and_torch_give_one_velocity(small: DiT) -> None:
    assert relative_error(velocity(with_kernels(small)), velocity(small)) <= 1e-5


def test_training_with_kernels_goes_through_torch(small: DiT) -> None:
    plain, fused = small, with_kernels(small)
    for dit in (plain, fused):
        velocity(dit).square().mean().backward()
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_attention_can_be_replaced() -> None:
    calls = []

    def counted(q, k, v, spec, /):
        calls.append(spec.role)
        return torch_attention(q, k, v, spec)

    config = DiTConfig(num_layers=2, num_heads=1, head_dim=64, adaln_rank=8, text_dim=16)
    velocity(DiT(config, dataclasses.replace(Ops(), attention=counted)))
    assert calls == ["self", "cross"] * 2


@pytest.mark.gpu
def test_a_gpu_gets_kernels_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops = Ops.select("cuda", torch.bfloat16, kernels=True)
    assert ops.names["qk_norm_rope"] == ops.names["layernorm_modulate"] == "triton"
    assert Ops.select("cuda", torch.bfloat16, kernels=False).names["qk_norm_rope"] == "torch"


@pytest.mark.gpu
def test_a_gpu_without_a_compiler_warns_once_and_runs_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.warns(RuntimeWarning, match="C compiler") as caught:
        ops = Ops.select("cuda", torch.bfloat16)
    assert len(caught) == 1
    assert ops.qk_norm_rope is reference.qk_norm_rope


@pytest.mark.gpu
@pytest.mark.parametrize("features", [64, 128])
@pytest.mark.parametrize("keys", [1, 63, 512, 1000])
@torch.inference_mode()
def test_cudnn_attention_of_strided_views(
    features: int, keys: int, measured: Callable[[str], None]
) -> None:
    qkv = torch.randn(2, 1000, 3, 4, features, device="cuda", dtype=torch.bfloat16)
    qkv[:, :, 1, :, 5] += 20  # keys of real networks have such channels
    q, k, v = qkv[:, :, 0], qkv[:, :keys, 1], qkv[:, :keys, 2]
    spec = AttentionSpec(scale=features**-0.5)
    exact = formula(q, k, v, spec.scale)
    ours = relative_error(cudnn_attention(q, k, v, spec).out_BSHD, exact)
    torchs = relative_error(torch_attention(q, k, v, spec).out_BSHD, exact)
    measured(f"relative error {ours:.1e}, torch's choice {torchs:.1e}")
    assert ours <= 1e-2


@pytest.mark.gpu
def test_cudnn_attention_with_gradients_goes_through_torch() -> None:
    q, k, v = torch.randn(3, 1, 64, 2, 64, device="cuda", dtype=torch.bfloat16).unbind()
    q.requires_grad_()
    cudnn_attention(q, k, v, SPEC).out_BSHD.sum().backward()
    assert q.grad is not None
