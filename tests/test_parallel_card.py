"""Several processes on one card make what one process makes there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch

from cosmos_fast.types import Size
from random_world import make_random_world
from rank_process import OneCard, error_of
from test_parallel_engine import PROFILE, run

if TYPE_CHECKING:
    from collections.abc import Mapping

CARD_PROFILE: Final = replace(PROFILE, size=Size(80, 112), dit=replace(PROFILE.dit, head_dim=64))
"""Heads that the kernels of attention take; 5 frames of 35 tokens divide by neither 2 nor 3."""
ALONE: Final = "alone"
SHARINGS: Final[Mapping[int, dict[str, dict[str, Any]]]] = {
    2: {
        "guidance": {},
        "heads": {"guidance": "together"},
        "messages": {"guidance": "together", "windows": False},
        "ring": {"guidance": "together", "context": "ring"},
    },
    3: {"ring": {}},
    4: {"guidance and heads": {}},
}
"""By the number of ranks. Cases of more ranks and longer clips are those of the CPU."""
WAYS: Final = {
    (2, "guidance"): (2, 1, "whole"),
    (2, "heads"): (1, 2, "heads"),
    (2, "messages"): (1, 2, "heads"),
    (2, "ring"): (1, 2, "ring"),
    (3, "ring"): (1, 3, "ring"),
    (4, "guidance and heads"): (2, 2, "heads"),
}


def card_cases(size: int) -> list[dict[str, Any]]:
    """Of both precisions: what a rank makes by itself, then the ways of sharing it."""
    return [
        {
            "name": f"{name}, {precision}",
            "parallel": sharing,
            "precision": precision,
            "given": 5,
            "num_frames": 17,
            "equals": f"{ALONE}, fp32",
        }
        for precision in ("fp32", "bf16")
        for name, sharing in ({ALONE: None} | SHARINGS[size]).items()
    ]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("size", SHARINGS)
def test_ranks_of_one_card_make_what_one_process_makes(
    size: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernels as sharing calls them: keys that come in pieces, frames told by an index."""
    with capfd.disabled():
        check_one_card("cuda:0", size, tmp_path)


def check_one_card(device: str, size: int, folder: Path) -> None:
    """Prints each way's error as soon as it is known.

    Args:
        device: that all ranks compute on.
    """
    world = make_random_world(folder / "world", CARD_PROFILE)
    job = {"world": str(world), "out": str(folder), "device": device, "one_card": True}
    results = run(size, job | {"cases": card_cases(size)}, patience=150)
    first = results[0]
    exact, rounded = (first[f"{ALONE}, {kind}"] for kind in ("fp32", "bf16"))
    noise = error_of(rounded["latents"], exact["latents"])
    for name in SHARINGS[size]:
        ours, ours_rounded = (first[f"{name}, {kind}"] for kind in ("fp32", "bf16"))
        assert error_of(ours["latents"], exact["latents"]) <= 1e-5, name
        # Rounded elsewhere, it is as far from the exact clip as one process is, more or less.
        assert 0 < error_of(ours_rounded["latents"], exact["latents"]) <= 2 * noise, name
        apart = (ours["frames"].int() - exact["frames"].int()).abs()
        assert apart.max() <= 1, name
        assert (apart > 0).float().mean() < 1e-3, name
        for made in (ours, ours_rounded):
            told = json.loads(made["report"])["parallel"]
            way = (told["guidance_branches"], told["context"], told["attention"])
            assert way == WAYS[size, name]
            assert told["backend"] == OneCard.name(), "of the group, not of the device"
            assert told["exchange"] == ("windows" if "heads" in name else "messages")
    for other in results[1:]:
        for name in (f"{name}, {kind}" for name in SHARINGS[size] for kind in ("fp32", "bf16")):
            assert torch.equal(other[name]["latents"], first[name]["latents"]), name
            assert torch.equal(other[name]["frames"], first[name]["frames"]), name
