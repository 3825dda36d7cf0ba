"""The test of attention when an engine starts: what is wrong in any form is caught, and replaced.

Wrong attentions stand beside torch's; the portable kernel's own test is in test_kernel_attention.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from cosmos_fast.model.attention import (
    Attended,
    Attention,
    AttentionSpec,
    torch_attention,
)
from cosmos_fast.model.attention_table import (
    ERROR_LIMIT,
    LONG_KEYS,
    QUERIES,
    SHORT_KEYS,
    Backend,
    ShapeClass,
    classes_of,
    self_test_error,
)
from cosmos_fast.model.ops import TableAttention, _failure
from cosmos_fast_kernels.attention_hopper import shipped
from cosmos_fast_kernels.attention_hopper_pipeline import HopperConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HALF = torch.bfloat16
DENSE: tuple[ShapeClass, ...] = ("self", "cross", "folded", "merged")
HOPPER = (9, 0)
WRONG: Mapping[str, Callable[[AttentionSpec, int], bool]] = {
    "long": lambda spec, keys: keys > 1024,
    "short": lambda spec, keys: keys <= 1024,
    "folded": lambda spec, keys: spec.zero_keys > 0,
    "merged": lambda spec, keys: spec.log_sum_exp,
    "long and merged": lambda spec, keys: spec.log_sum_exp and keys > 1024,
}
"""Where an attention is wrong, by what it is asked for and the number of keys."""


def wrong_where(applies: Callable[[AttentionSpec, int], bool]) -> Attention:
    """Right, but for one row of the output where ``applies``."""

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
    ) -> Attended:
        attended = torch_attention(q, k, v, spec)
        if applies(spec, k.shape[1]):
            attended.out_BSHD[:, 131] += 0.1
        return attended

    return attend


def listed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /, *, skip: int = 0
) -> Attended:
    """Attention to blocks of keys, in plain torch, without the first ``skip`` of each list."""
    if spec.key_blocks is None:
        return torch_attention(q, k, v, spec)
    parts = []
    for rows, blocks in zip(q.split(128, 1), spec.key_blocks, strict=True):
        keys, values = (
            torch.cat([each[:, 128 * one : 128 * (one + 1)] for one in blocks[skip:]], 1)
            for each in (k, v)
        )
        parts.append(torch_attention(rows, keys, values, replace(spec, key_blocks=None)).out_BSHD)
    return Attended(torch.cat(parts, 1))


def biased(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /) -> Attended:
    return torch_attention(q, k, v, replace(spec, scale=1.02 * spec.scale))


def forgetful(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
) -> Attended:
    return torch_attention(q, k, v, replace(spec, zero_keys=0))


def unwritten(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
) -> Attended:
    return torch_attention(q, k, v * (float("nan") if spec.zero_keys else 1), spec)


def in_base_2(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
) -> Attended:
    attended = torch_attention(q, k, v, spec)
    sums = attended.log_sum_exp_BSH
    return attended._replace(log_sum_exp_BSH=None if sums is None else sums * 1.4427)


def without_sums(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
) -> Attended:
    return torch_attention(q, k, v, replace(spec, log_sum_exp=False))


def broken(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /) -> Attended:
    raise OSError("no compiler")


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ERROR_LIMIT)
def test_what_is_right_passes_well_within_the_limit(head_dim: int, dtype: torch.dtype) -> None:
    assert self_test_error(torch_attention, head_dim, dtype, "cpu") <= ERROR_LIMIT[dtype] / 2
    assert self_test_error(listed, head_dim, dtype, "cpu", ["listed"]) <= ERROR_LIMIT[dtype] / 2


@pytest.mark.parametrize("wrong", [biased, forgetful, unwritten, in_base_2])
def test_what_is_wrong_is_told_by_its_error(wrong: Attention) -> None:
    assert "relative error" in str(_failure(wrong, 64, HALF, "cpu", DENSE))


def test_what_fails_is_told_by_its_message() -> None:
    assert _failure(torch_attention, 128, HALF, "cpu", DENSE) is None
    assert _failure(broken, 64, HALF, "cpu", DENSE) == "OSError: no compiler"
    assert "no log-sum-exp came" in str(_failure(without_sums, 64, HALF, "cpu", DENSE))
    assert _failure(without_sums, 64, HALF, "cpu", ["self"]) is None


def test_a_block_left_out_of_a_list_is_told() -> None:
    def skipping(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
    ) -> Attended:
        return listed(q, k, v, spec, skip=1)

    assert "relative error" in str(_failure(skipping, 64, HALF, "cpu", ["listed"]))
    assert "InputError" in str(_failure(torch_attention, 64, HALF, "cpu", ["listed"]))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_lengths_reach_every_design_and_leave_every_block_ragged(head_dim: int) -> None:
    designs = {keys: shipped(head_dim, keys) for keys in (SHORT_KEYS, LONG_KEYS)}
    every: set[HopperConfig] = {shipped(head_dim, keys) for keys in range(1, 90_000, 64)}
    assert set(designs.values()) == every
    for keys, config in designs.items():
        assert keys % (config.keys + config.tail)
        assert QUERIES % (config.rows * config.consumers)


@pytest.mark.parametrize("name", WRONG)
def test_a_kernel_wrong_in_one_design_falls_back(name: str) -> None:
    found: dict[Backend, Attention] = {"hopper": wrong_where(WRONG[name]), "portable": listed}
    fallbacks: dict[Backend, Attention] = {"sdpa": torch_attention}
    with pytest.warns(RuntimeWarning, match=r"attention falls back: \{'hopper': 'relative error"):
        chosen = TableAttention.passing(HOPPER, found, fallbacks, 64, HALF, "cpu")
    assert chosen.description.startswith(
        "self torch sdpa, cross triton (own); hopper failed: relative"
    )
    assert chosen._chosen(AttentionSpec(0.1, log_sum_exp=True)) == "portable"


@pytest.mark.parametrize("name", ["long", "short", "folded"])
def test_a_wrong_cudnn_falls_back_to_what_torch_prefers(name: str) -> None:
    fallbacks: dict[Backend, Attention] = {
        "cudnn": wrong_where(WRONG[name]),
        "sdpa": torch_attention,
    }
    with pytest.warns(RuntimeWarning, match=r"attention falls back: \{'cudnn': 'relative error"):
        chosen = TableAttention.passing(HOPPER, {"portable": listed}, fallbacks, 64, HALF, "cpu")
    assert chosen.description.startswith("self torch sdpa, cross triton (own); cudnn failed: ")
    q, k, v = torch.randn(3, 1, 1100, 2, 64).to(HALF).unbind()
    spec = AttentionSpec(0.1)
    assert torch.equal(chosen(q, k, v, spec).out_BSHD, torch_attention(q, k, v, spec).out_BSHD)


def test_the_last_resort_is_kept_and_reported() -> None:
    with pytest.warns(RuntimeWarning, match=r"'sdpa': 'relative error"):
        chosen = TableAttention.passing(
            (8, 9), {"portable": listed}, {"sdpa": biased}, 64, HALF, "cpu"
        )
    assert chosen.description.startswith("self torch sdpa, cross torch sdpa; sdpa failed: ")


def test_a_fallback_answers_for_sums_only_where_no_kernel_would() -> None:
    fallbacks: dict[Backend, Attention] = {"cudnn": in_base_2, "sdpa": torch_attention}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = TableAttention.passing(HOPPER, {"portable": listed}, fallbacks, 64, HALF, "cpu")
    assert "failed" not in chosen.description
    with pytest.warns(RuntimeWarning, match="'portable'.*'cudnn'"):
        chosen = TableAttention.passing(HOPPER, {"portable": broken}, fallbacks, 64, HALF, "cpu")
    assert "portable failed" in chosen.description
    assert "cudnn failed" in chosen.description


def test_each_backend_is_tested_for_what_the_table_names_it() -> None:
    assert classes_of("fa3", HOPPER) == ("self",)
    assert classes_of("hopper", HOPPER) == DENSE
    assert set(classes_of("portable", HOPPER)) == {"folded", "listed", "merged"}
    assert set(classes_of("portable", (8, 9))) == {"listed", "merged"}


def test_what_nobody_will_ask_for_is_neither_tested_nor_taken() -> None:
    asked: dict[str, list[AttentionSpec]] = {"hopper": [], "portable": []}

    def noting(name: str) -> Attention:
        def attend(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
        ) -> Attended:
            asked[name].append(spec)
            return torch_attention(q, k, v, spec)

        return attend

    found: dict[Backend, Attention] = {name: noting(name) for name in ("hopper", "portable")}
    chosen = TableAttention.passing(
        HOPPER, found, {"sdpa": torch_attention}, 64, HALF, "cpu", ("self", "cross", "folded")
    )
    assert asked["hopper"]
    assert not any(spec.log_sum_exp for spec in asked["hopper"])
    assert not asked["portable"]  # behind a kernel that passed
    assert chosen._chosen(AttentionSpec(0.1)) == "hopper"
    assert chosen._chosen(AttentionSpec(0.1, "cross", zero_keys=1)) == "hopper"
    assert chosen._chosen(AttentionSpec(0.1, log_sum_exp=True)) is None
    assert chosen.without("hopper")._chosen(AttentionSpec(0.1, log_sum_exp=True)) is None

    found["hopper"] = broken
    with pytest.warns(RuntimeWarning, match="'hopper': 'OSError: no compiler'"):
        chosen = TableAttention.passing(
            HOPPER, found, {"sdpa": torch_attention}, 64, HALF, "cpu", ("self", "cross", "folded")
        )
    assert {spec.zero_keys > 0 for spec in asked["portable"]} == {True}
    assert chosen._chosen(AttentionSpec(0.1, "cross", zero_keys=1)) == "portable"
