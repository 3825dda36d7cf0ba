"""Several real processes over gloo make what one process makes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch

import cosmos_fast as cf
from cosmos_fast.config import DiTConfig, VAEConfig
from cosmos_fast.parallel import serve_store
from cosmos_fast.types import Size
from random_world import RANDOM_PROFILE, make_random_world
from rank_process import make

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADS: Final = 4
PROFILE: Final = replace(
    RANDOM_PROFILE,
    size=Size(32, 48),
    num_frames=9,
    dit=DiTConfig(
        num_layers=2, num_heads=HEADS, head_dim=16, adaln_rank=8, text_dim=64, rope_scale=(1, 1, 1)
    ),
    vae=VAEConfig(base_dim=4),
)

CASES: Final[tuple[dict[str, Any], ...]] = (
    {"name": "21 latent frames", "num_frames": 81},
    {"name": "5 given frames", "given": 5},
    {"name": "21 latent frames, shared context", "num_frames": 81, "parallel": {"guidance": "together"}},
    {"name": "no guidance", "guidance": 0.0, "given": 5},
    {"name": "ring", "parallel": {"guidance": "together", "context": "ring"}},
    {"name": "in one piece", "parallel": {"guidance": "together", "pieces": 1}},
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_world(tmp_path_factory.mktemp("world"), PROFILE)


@pytest.fixture(scope="module")
def alone(world: Path) -> Mapping[str, cf.Clip]:
    """What one process makes of each case."""
    engine = cf.Video2World.from_pretrained(world, device="cpu", prompt_cache=False)
    return {case["name"]: make(engine, case) for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_make_what_one_process_makes(
    size: int,
    world: Path,
    alone: Mapping[str, cf.Clip],
    tmp_path: Path,
    tolerance: Mapping[torch.dtype, dict[str, float]],
) -> None:
    results = run(size, {"world": str(world), "out": str(tmp_path), "cases": CASES})
    for rank, made in enumerate(results):
        for name, clip in alone.items():
            torch.testing.assert_close(
                made[name]["latents"],
                clip.latents.tensor,
                **tolerance[torch.float32],
                msg=lambda text, name=name, rank=rank: f"{name}, rank {rank}: {text}",
            )
            # A value at the edge between two pixel values may fall to either side.
            apart = (made[name]["frames"].int() - clip.frames.to("pt").int()).abs()
            assert apart.max() <= 1, name
            assert (apart > 0).float().mean() < 1e-3, name
            assert torch.equal(made[name]["latents"], results[0][name]["latents"]), name
            assert torch.equal(made[name]["frames"], results[0][name]["frames"]), name


def run(size: int, job: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank made of the job."""
    store = serve_store(size)
    program = [sys.executable, str(Path(__file__).with_name("rank_process.py")), str(store.port)]
    ranks = [
        subprocess.Popen([*program, str(rank), str(size), json.dumps(job)]) for rank in range(size)
    ]
    try:
        assert [rank.wait(300) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(Path(job["out"], f"{rank}.pt"), weights_only=True) for rank in range(size)]
