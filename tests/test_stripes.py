"""Ranks that each decode a stripe of rows make the pictures that one device makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import torch

from cosmos_fast.errors import CosmosFastError
from cosmos_fast.parallel.exchange import Exchange
from cosmos_fast.parallel.stripes import SharedRows
from rank_process import Arrived, error_of
from stripe_process import decoded, vae_of
from test_parallel_engine import run
from test_vae import relative_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM: Final = "stripe_process.py"
WAYS: Final[tuple[dict[str, Any], ...]] = (
    {"name": "fused"},
    {"name": "fused, frame by frame", "frame_by_frame": True},
    {"name": "fused, frames not doubled", "frame_by_frame": True, "temporal": (False,) * 3},
    {"name": "plain", "plain": True},
    {"name": "plain, frame by frame", "plain": True, "frame_by_frame": True},
)
KERNELS: Final[dict[str, Any]] = {
    "name": "kernels",
    "kernels": True,
    "frame_by_frame": True,
    "latents": (1, 16, 2, 3, 1),
}
"""In Triton's interpreter: little of it."""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rows"), [(2, 5), (3, 5), (4, 7), (4, 4)])
def test_stripes_are_the_rows_of_the_whole(size: int, rows: int, tmp_path: Path) -> None:
    """Three latent frames: a chunk of one frame, one of four, and one with a full history."""
    cases = [{"latents": (2, 16, 3, rows, 3), **way} for way in WAYS]
    if size == 2:
        cases.append(KERNELS)
    results = run(size, {"out": str(tmp_path), "cases": cases}, program=PROGRAM)
    for case in cases:
        whole, passes = decoded(vae_of(case), case)
        assert (passes == 0) == bool(case.get("plain"))
        for rank, made in enumerate(results):
            pixels, passes_here = made[case["name"]]
            assert error_of(pixels, whole) <= 1e-5, (case, rank)
            assert torch.equal(pixels, results[0][case["name"]][0]), (case, rank)
            # Between kernels where one device is, at every convolution.
            assert passes_here == passes, (case, rank)


class FirstOfTwo:
    """A group whose other rank sends nothing but zeros."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 2

    def name(self) -> str:
        return "zeros"

    def alltoall_base(self, received: torch.Tensor, *_: Any) -> Arrived:
        received.zero_()
        return Arrived()


def test_nobody_listens_at_the_layers_between_two_chunks() -> None:
    """The plain decoder of a stripe has hooks; those of another clip must not meet them."""
    rows = SharedRows(Exchange(FirstOfTwo(), torch.device("cpu")), 4)
    vae = vae_of({})
    heights = []
    for chunk in vae.decode_chunks(torch.randn(1, 16, 2, 4, 2), stripe=rows):
        heights.append(chunk.shape[-2])
        layers = list(vae.decoder.modules())
        assert not any(one._forward_hooks or one._forward_pre_hooks for one in layers)
    assert heights == [8 * 2, 8 * 2]


def test_rows_without_borders_are_not_put_together() -> None:
    rows = SharedRows(Exchange(FirstOfTwo(), torch.device("cpu")), 4)
    pixels = torch.zeros(1, 16, 16, 3)
    with pytest.raises(CosmosFastError, match="takes a stripe"):
        rows.gathered(pixels)
    rows.border(torch.zeros(1, 1, 4, 2, 3))
    assert rows.gathered(pixels).shape == (1, 32, 16, 3)
    with pytest.raises(CosmosFastError, match="takes a stripe"):
        rows.gathered(pixels)


CARDS: Final[tuple[dict[str, Any], ...]] = (
    {"name": "96x160x9", "latents": (1, 16, 3, 12, 20), "exact": True},
    {"name": "256x448x17", "latents": (1, 16, 5, 32, 56), "exact": True},
    {"name": "frame by frame", "latents": (1, 16, 3, 13, 20), "exact": True}
    | {"frame_by_frame": True},
    {"name": "432x768x81", "latents": (1, 16, 21, 54, 96)},
)
"""The last one is there for its time."""


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(150)
def test_two_cards_decode_what_one_does(tmp_path: Path, measured: Callable[[str], None]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    job = {"out": str(tmp_path), "device": "cuda", "cases": CARDS}
    first, second = run(2, job, patience=120, program=PROGRAM)
    for case in CARDS:
        name = case["name"]
        times = {way: first[f"{name}, {way}, seconds"] for way in ("whole", "shared")}
        measured(f"{name}: one card {times['whole']:.3f} s, two {times['shared']:.3f} s")
        if not case.get("exact"):
            continue
        exact = first[f"{name}, exact"]
        (whole, passes), (shared, passes_shared) = (
            first[f"{name}, {way}"] for way in ("whole", "shared")
        )
        assert passes_shared == passes > 0
        assert torch.equal(second[f"{name}, shared"][0], shared)
        ours, bound = relative_error(shared, exact), 1.1 * relative_error(whole, exact)
        measured(f"{name}: error {ours:.2e} where one card has {bound / 1.1:.2e}")
        assert ours <= bound, name
        # A seam is one row of many: held to the worst row of one card.
        assert worst_row(shared, exact) <= 1.5 * worst_row(whole, exact), name


def worst_row(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest relative error of a row, over all frames, columns and colours."""
    axes = (0, 1, 2, 4)
    off = (found.double() - exact.double()).square().mean(dim=axes)
    return float((off / exact.double().square().mean(dim=axes)).max().sqrt())
