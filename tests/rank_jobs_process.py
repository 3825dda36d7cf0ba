"""One rank of the test of jobs by several: ``python rank_jobs_process.py PORT RANK SIZE FOLDER``.

FOLDER holds a world; what each piece of work came to goes to FOLDER/RANK.pt. Other ranks than the
first have no ffmpeg, and a critic that fails.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import cosmos_fast as cf
from cosmos_fast.config import Seat
from cosmos_fast.jobs import Judgement
from cosmos_fast.parallel import join
from guarded import Check
from rank_process import picture, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosmos_fast.parallel.exchange import Group
    from cosmos_fast.types import Prompt

GIVEN = 5
CHUNKS = 2
OPTIONS: dict[str, Any] = {
    "num_frames": 9, "num_conditional_frames": GIVEN, "num_steps": 1, "guidance": 2.0,
}  # fmt: skip
WIDTH = 64


def prompt_of(chunk: int) -> Prompt:
    """What the rollout follows: no text, then an embedding."""
    return text(WIDTH, 1) if chunk else cf.NO_TEXT


def raised(work: Callable[[], object]) -> dict[str, Any]:
    """The error that ``work`` ends with, and when."""
    try:
        work()
    except (cf.CosmosFastError, ZeroDivisionError) as error:
        told = {"error": type(error).__name__, "message": str(error), "at": time.monotonic()}
        return told | {"agreed": getattr(error, "agreed", None)}
    return {}


def long_video(engine: cf.Video2World, **more: Any) -> dict[str, Any]:
    asked: list[int] = []
    tails: list[torch.Tensor] = []
    x0: list[torch.Tensor] = []

    def prompts(chunk: int, tail: cf.Frames | None) -> Prompt:
        asked.append(chunk)
        tails.extend([] if tail is None else [tail.to("pt")])
        return prompt_of(chunk)

    made = cf.rollout(
        engine, picture(GIVEN), prompts, text(WIDTH, 9), num_chunks=CHUNKS, **OPTIONS, **more,
        on_step=lambda step, total, latents: x0.append(latents) if step == total else None,
    )  # fmt: skip
    return {
        "frames": made.frames.to("pt"),
        "latents": torch.stack(x0),
        "digest": made.report.latents_sha256,
        "notes": list(made.report.notes),
        "drift": [row.as_dict() for row in made.drift],
        "asked": asked,
        "tails": tails,
        "ranks": made.report.parallel["ranks"],
    }


def resumed(engine: cf.Video2World, folder: Path, **more: Any) -> dict[str, Any]:
    """The same long video, cancelled behind its first clip and called again; other ranks than the
    first cannot see what is kept. With another seed it is refused."""
    rank = int(sys.argv[2])
    keep = folder / f"kept {more}" if rank == 0 else Path("/proc/nothing")
    over = threading.Event()
    stopped = raised(
        lambda: long_video(engine, keep=keep, cancel=over, on_chunk=lambda *_: over.set(), **more)
    )
    other = raised(lambda: long_video(engine, keep=keep, seed=7, **more))
    made = long_video(engine, keep=keep, **more)
    return made | {"stopped": stopped, "other": other}


def refused_prompts(engine: cf.Video2World) -> dict[str, Any]:
    def prompts(chunk: int, tail: cf.Frames | None) -> Prompt:
        raise ZeroDivisionError("made up by the test")

    return raised(lambda: cf.rollout(engine, picture(GIVEN), prompts, **OPTIONS))


def best(folder: Path, group: Group) -> dict[str, Any]:
    """Three videos, of which the guardrail refuses the second; the last is the best."""
    rank = group.rank()
    answers = iter([cf.Verdict(True), cf.Verdict(False, "grim")])
    watched = Check("frames", lambda _: next(answers, cf.Verdict(True)))
    engine = cf.Video2World.from_pretrained(
        folder / "world", device="cpu", prompt_cache=False, parallel=cf.Parallel(group),
        guardrail=cf.Guardrail([Check("words")], [watched]),
    )  # fmt: skip
    judged: list[int] = []
    blocked: list[str] = []

    def critic(frames: cf.Frames, *, trials: int, seed: int) -> Judgement:
        assert rank == 0
        judged.append(len(np.asarray(frames)))
        return Judgement(len(judged) / 10, (f"{trials} {seed}",))

    def on_blocked(path: Path, error: cf.GuardrailBlocked) -> None:
        blocked.append(f"{path.name} {error}")

    more: dict[str, Any] = {**OPTIONS, "num_generations": 3, "on_blocked": on_blocked}
    out = folder / "best"
    ranking = cf.best_of_n(engine, picture(GIVEN), "a ball", critic=critic, out=out, **more)
    return {
        "ranking": [(one.video.name, one.judgement.score) for one in ranking],
        "judged": judged,
        "blocked": blocked,
        "checked": len(watched.seen),
    }


def lost_between_clips(engine: cf.Video2World, folder: Path, rank: int) -> dict[str, Any]:
    """The second rank fails where no clip is being made."""

    def on_chunk(row: object, total: int) -> None:
        if rank == 1:
            (folder / "fault").write_text(str(time.monotonic()), "ascii")
            raise ZeroDivisionError("made up by the test")

    return raised(
        lambda: cf.rollout(engine, picture(GIVEN), cf.NO_TEXT, on_chunk=on_chunk, **OPTIONS)
    )


def main() -> None:
    port, rank, size = map(int, sys.argv[1:4])
    folder = Path(sys.argv[4])
    torch.set_num_threads(1)
    if rank:
        os.environ["COSMOS_FAST_FFMPEG"] = str(folder / "no-ffmpeg")
    seat = Seat(rank, size, rank, "127.0.0.1", port, store_is_served=True)
    group = join(seat, torch.device("cpu"))
    engine = cf.Video2World.from_pretrained(
        folder / "world", device="cpu", prompt_cache=False,
        parallel=cf.Parallel(group, guidance="together"),
    )  # fmt: skip

    def lend() -> None:
        with engine.lend():
            pass

    made = {
        "memory": long_video(engine),
        "file": long_video(engine, handover="file"),
        "resumed": resumed(engine, folder),
        "resumed file": resumed(engine, folder, handover="file"),
        "prompts": refused_prompts(engine),
        "world": raised(lend),
        "best": best(folder, group),
        "lost": lost_between_clips(engine, folder, rank),
        "after": raised(lambda: long_video(engine)),
    }
    torch.save(made, folder / f"{rank}.pt")
    os._exit(0)


if __name__ == "__main__":
    main()
