"""One rank of the tests of several processes: ``python rank_process.py PORT RANK SIZE JOB``.

The job, JSON, names a world and what to make of it; what was made goes to ``out``/RANK.pt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import cosmos_fast as cf
from cosmos_fast.config import Seat
from cosmos_fast.parallel import join
from cosmos_fast.types import TextEmbedding


def text(width: int, seed: int) -> TextEmbedding:
    """A made-up prompt of seven rows."""
    rows = torch.zeros(512, width, dtype=torch.bfloat16)
    rows[:7] = torch.randn(7, width, generator=torch.Generator().manual_seed(seed))
    return TextEmbedding(rows, 7)


def picture(frames: int) -> torch.Tensor:
    """uint8 noise, (frames, 32, 48, 3)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (frames, 32, 48, 3), dtype=torch.uint8, generator=generator)


def make(engine: cf.Video2World, case: dict[str, Any], **callbacks: Any) -> cf.Clip:
    """The clip of one case."""
    given = case.get("given", 1)
    width = engine.profile.dit.text_dim
    return engine.generate(
        picture(given),
        text(width, 1),
        text(width, 2),
        num_frames=case.get("num_frames", 9),
        num_conditional_frames=given,
        guidance=case.get("guidance", 2.0),
        num_steps=3,
        **callbacks,
    )


def main() -> None:
    port, rank, size = map(int, sys.argv[1:4])
    job = json.loads(sys.argv[4])
    torch.set_num_threads(1)
    seat = Seat(rank, size, rank, "127.0.0.1", port, store_is_served=True)
    group = join(seat, torch.device("cpu"))
    made = {}
    for case in job["cases"]:
        parallel = cf.Parallel(group, **case.get("parallel", {}))
        engine = cf.Video2World.from_pretrained(
            job["world"], device="cpu", prompt_cache=False, parallel=parallel
        )
        clip = make(engine, case)
        made[case["name"]] = {
            "latents": clip.latents.tensor,
            "frames": clip.frames.to("pt"),
            "report": json.dumps(clip.report.as_dict()),
        }
    torch.save(made, Path(job["out"], f"{rank}.pt"))
    assert not torch.distributed.is_initialized()
    os._exit(0)


if __name__ == "__main__":
    main()
