"""How work is cut for ranks, and the attention that merges what they hold."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

import cosmos_fast as cf
from cosmos_fast.model.attention import AttentionSpec, attention_with_sums
from cosmos_fast.parallel.exchange import backend_of
from cosmos_fast.parallel.shards import Mesh, Shards, cut

if TYPE_CHECKING:
    from collections.abc import Mapping


@given(total=st.integers(1, 10_000), parts=st.integers(1, 64))
def test_a_cut_leaves_nothing_out_and_is_even(total: int, parts: int) -> None:
    pieces = cut(total, parts)
    assert [each for piece in pieces for each in piece] == list(range(total))
    assert len(pieces) == parts
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@given(
    branches=st.sampled_from([1, 2]),
    context=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 4)),
    batch=st.sampled_from([1, 2]),
)
def test_the_blocks_of_all_ranks_are_the_clip(
    branches: int, context: int, grid: tuple[int, int, int], batch: int
) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    if tokens < context:
        with pytest.raises(cf.InputError, match="cannot be shared"):
            Shards.of(Mesh(0, branches, context), grid)
        return
    clips = [torch.randn(batch, 3, grid[0], 2 * grid[1], 2 * grid[2]) for _ in range(branches)]
    blocks = []
    for rank in range(branches * context):
        shards = Shards.of(Mesh(rank, branches, context), grid)
        block = shards.block(clips[shards.mesh.branch])
        assert block.numel() == shards.counts(clips[0])[rank]
        blocks.append(block.flatten())
    for whole, clip in zip(shards.whole(torch.cat(blocks), clips[0]), clips, strict=True):
        assert torch.equal(whole, clip)


@pytest.mark.parametrize(
    ("ranks", "fields", "branches", "context"),
    [
        (2, {}, 2, 1),
        (3, {}, 1, 3),
        (4, {}, 2, 2),
        (4, {"guidance": "together"}, 1, 4),
    ],
)
def test_ranks_are_laid_out(
    ranks: int, fields: dict[str, str], branches: int, context: int
) -> None:
    mesh = cf.Parallel(None, **fields).mesh(0, ranks, 2)  # type: ignore[arg-type]
    assert (mesh.branches, mesh.context) == (branches, context)
    assert cf.Parallel(None).mesh(0, ranks, 1) == Mesh(0, 1, ranks)


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(cf.InputError, match="an even number of ranks"):
        cf.Parallel(None, guidance="split").mesh(0, 3, 2)
    with pytest.raises(cf.InputError, match="16 heads do not divide by 3"):
        cf.Parallel(None, context="heads").way(16, Mesh(0, 1, 3))
    assert cf.Parallel(None).way(16, Mesh(0, 1, 3)) == "ring"
    with pytest.raises(cf.InputError, match=r"self\.pieces = 0"):
        cf.Parallel(None, pieces=0)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.float32, id="cpu"),
        pytest.param("cuda", torch.bfloat16, id="cuda bf16", marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float32, id="cuda fp32", marks=pytest.mark.gpu),
    ],
)
def test_attention_with_sums_is_attention(
    device: str, dtype: torch.dtype, tolerance: Mapping[torch.dtype, dict[str, Any]]
) -> None:
    q = torch.randn(2, 63, 3, 64, device=device).to(dtype)
    k, v = (torch.randn(2, 100, 3, 64, device=device).to(dtype) for _ in range(2))
    spec = AttentionSpec(0.2, log_sum_exp=True)
    out, sums = attention_with_sums(q, k, v, spec)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * spec.scale
    exact = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.double())
    assert sums is not None
    assert (out.shape, sums.shape) == (q.shape, q.shape[:3])
    torch.testing.assert_close(out.double(), exact, **tolerance[dtype])
    expected = scores.logsumexp(-1).transpose(1, 2)
    torch.testing.assert_close(sums.double(), expected, **tolerance[dtype])


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_backend_is_the_group_s_own_whatever_the_device(kind: str) -> None:
    device = torch.device(kind)
    gloo = dist.ProcessGroupGloo(dist.HashStore(), 0, 1, timedelta(seconds=10))
    assert backend_of(gloo, device).name() == "gloo"
    several = dist.ProcessGroup(dist.HashStore(), 0, 1)
    several._register_backend(device, dist.ProcessGroup.BackendType.GLOO, gloo)
    assert backend_of(several, device).name() == "gloo"
