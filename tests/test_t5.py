"""The T5 encoder against transformers' own, and each prompt against itself in company."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from cosmos_fast.config import T5Config
from cosmos_fast.model.t5 import T5Encoder

ROWS = 512
SMALL = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4, buckets=32)
CONFIGS = {
    "small": SMALL,
    "wide heads": replace(SMALL, d_kv=24, num_heads=5),
    "one head of one": replace(SMALL, d_kv=1, num_heads=1),
    "more buckets": replace(SMALL, buckets=64, max_distance=256),
    "few buckets": replace(SMALL, buckets=6, max_distance=20),
    "odd sizes": replace(SMALL, d_model=33, d_ff=7, num_layers=1, epsilon=1e-3),
}
DTYPES = [torch.float32, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def made(config: T5Config, dtype: torch.dtype, scale: float = 1.0) -> tuple[T5Encoder, Any]:
    """Ours and theirs, of the same weights: drawn as T5's are, norms and bias wider.

    Args:
        scale: of both matrices of the feed-forward.
    """
    transformers: Any = pytest.importorskip("transformers")
    theirs = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.max_distance,
            layer_norm_epsilon=config.epsilon,
        )
    )
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif "bias" in name:
            torch.nn.init.normal_(parameter)
        elif "DenseReluDense" in name:
            parameter.data.mul_(scale)
    theirs = theirs.to(dtype).eval().requires_grad_(False)
    weights = dict(theirs.state_dict())
    del weights["encoder.embed_tokens.weight"]
    with torch.device("meta"):
        ours = T5Encoder(config)
    ours.load_state_dict(weights, strict=True, assign=True)
    return ours.requires_grad_(False), theirs


def tokens(config: T5Config, prompts: int, rows: int = ROWS) -> torch.Tensor:
    return torch.randint(config.vocab_size, (prompts, rows))


def by_transformers(theirs: Any, ids_N: torch.Tensor, length: int) -> torch.Tensor:
    mask = (torch.arange(len(ids_N), device=ids_N.device) < length).long()
    rows: torch.Tensor = theirs(ids_N[None], attention_mask=mask[None]).last_hidden_state[0]
    return rows[:length]


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rows_are_those_of_transformers_bit_for_bit(config: T5Config, dtype: torch.dtype) -> None:
    """On a CPU, where both come to the same kernels."""
    ours, theirs = made(config, dtype)
    lengths = [1, 2, 300, 511, 512]
    ids_PN = tokens(config, len(lengths))
    for found, ids_N, length in zip(ours(ids_PN, lengths), ids_PN, lengths, strict=True):
        assert torch.equal(found[:length], by_transformers(theirs, ids_N, length))


@pytest.mark.parametrize("rows", [1, 7, 130])
def test_fewer_rows_than_prompts_have(rows: int) -> None:
    ours, theirs = made(SMALL, torch.float32)
    ids_PN = tokens(SMALL, 1, rows)
    (found,) = ours(ids_PN, [rows])
    assert torch.equal(found, by_transformers(theirs, ids_PN[0], rows))


def test_float16_stays_within_its_range_as_in_transformers() -> None:
    ours, theirs = made(SMALL, torch.float16, scale=300.0)
    ids_PN = tokens(SMALL, 1)
    (found,) = ours(ids_PN, [77])
    expected = by_transformers(theirs, ids_PN[0], 77)
    assert found.isfinite().all()
    assert torch.equal(found[:77], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_rows_are_those_of_transformers_on_a_device(
    dtype: torch.dtype, tolerance: Mapping[torch.dtype, dict[str, float]]
) -> None:
    """Not bit for bit: theirs hands torch a bias that no fused kernel takes."""
    config = replace(SMALL, d_model=256, d_kv=64, d_ff=512)
    ours, theirs = (network.cuda() for network in made(config, dtype))
    lengths = [1, 300, 512]
    ids_PN = tokens(config, len(lengths)).cuda()
    for found, ids_N, length in zip(ours(ids_PN, lengths), ids_PN, lengths, strict=True):
        expected = by_transformers(theirs, ids_N, length)
        error = (found[:length].double() - expected.double()).norm() / expected.double().norm()
        assert error < tolerance[dtype]["rtol"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_a_prompt_comes_out_alike_alone_and_in_company(dtype: torch.dtype, device: str) -> None:
    ours = made(SMALL, dtype)[0].to(device)
    lengths = [512, 1, 44, 511]
    ids_PN = tokens(SMALL, len(lengths)).to(device)
    together = ours(ids_PN, lengths)
    for place, length in enumerate(lengths):
        (alone,) = ours(ids_PN[place : place + 1], [length])
        assert torch.equal(alone, together[place])


def test_what_is_not_read_changes_nothing() -> None:
    ours, _ = made(SMALL, torch.float32)
    ids_PN = tokens(SMALL, 2)
    ids_PN[1, :44] = ids_PN[0, :44]
    one, other = ours(ids_PN, [44, 44])
    assert torch.equal(one[:44], other[:44])
    assert not torch.equal(*(rows[:44] for rows in ours(ids_PN, [44, 46])))


def test_weights_and_tokens_stay_as_they_were() -> None:
    """Rows are added up in place; what they were looked up in is somebody else's."""
    ours, _ = made(SMALL, torch.float32)
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    ids_PN = tokens(SMALL, 2)
    first = ours(ids_PN, [5, 512])
    assert all(torch.equal(before[name], weight) for name, weight in ours.state_dict().items())
    assert all(map(torch.equal, first, ours(ids_PN, [5, 512])))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_in_the_layers_waits_for_the_device() -> None:
    ours = made(replace(SMALL, d_kv=64), torch.bfloat16)[0].cuda()
    ids_PN = tokens(SMALL, 2).cuda()
    ours(ids_PN, [44, 512])  # kernels are loaded
    torch.cuda.set_sync_debug_mode("error")  # a wait raises
    try:
        rows = ours(ids_PN, [44, 512])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(row.isfinite().all() for row in rows)
