"""The short stages, timed well: those before the first forward are over in 20 to 400 ms, and a
decode is thousands of launches, so that one look at them says more of what else the host was doing
than of the stage.
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from memory_watch import wait

import cosmos_fast as cf
from cosmos_fast.request import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from memory_rows import Row
    from memory_watch import Watch

PICTURE = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
PROMPTS = ("a red cube on a steel table", "blurred")
SHAPES = {"480p": ((432, 768), 81), "720p": ((704, 1280), 93), "tiny": ((32, 48), 9)}
REPEATS = 7
"""Of the stages before the first forward."""
LEAST = 5
"""Repeats in any case."""
REPEAT_SECONDS = 2.0
"""After so many, with enough repeats, there are no more."""
LEAST_DECODES = 2
"""Repeats of decoding in any case."""


def generate(engine: cf.Video2World, row: Row, watch: Watch, **more: Any) -> cf.Clip:
    """A clip of the row's size."""
    size, frames = SHAPES[row.shape]
    prompt, negative = PROMPTS
    arguments: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        "size": size,
        "num_frames": frames,
        "num_steps": row.steps,
        "guidance": 7.0,
    }
    return engine.generate(PICTURE, **({"on_stage": watch.on_stage} | arguments | more))


def begun(engine: cf.Video2World, row: Row, watch: Watch, take: int = 0) -> dict[str, float]:
    """A clip of the row's size up to its first forward.

    Args:
        take: makes the prompts others, so that nothing of earlier ones helps.

    Returns:
        Seconds of the stages that ended, as the engine's clock took them: the device is waited for
        at both ends.
    """
    stop, stages = threading.Event(), dict[str, float]()

    def on_stage(name: str, state: str, seconds: float | None) -> None:
        watch.on_stage(name, state, seconds)
        if seconds is not None:
            stages[name] = seconds
        if name == "denoise":
            stop.set()

    prompt, negative = (f"{text}, {take}" for text in PROMPTS)
    try:
        generate(
            engine,
            row,
            watch,
            prompt=prompt,
            negative_prompt=negative,
            on_stage=on_stage,
            cancel=stop,
        )
    except cf.Cancelled:
        return stages
    raise RuntimeError("a generation was cancelled and went on")


def short_stages(engine: cf.Video2World, row: Row, watch: Watch) -> dict[str, dict[str, Any]]:
    """The stages before the first forward, again and again, with nothing watching the card.

    The first of these clips is not counted: it makes the plan and brings what that keeps on the
    device, as any engine's first call does.

    Returns:
        By stage, what :func:`spread` says.
    """
    begun(engine, row, watch)
    takes: list[dict[str, float]] = []
    start = time.perf_counter()
    with watch.resting():
        while len(takes) < LEAST or (
            len(takes) < REPEATS and time.perf_counter() - start < REPEAT_SECONDS
        ):
            takes.append(begun(engine, row, watch, len(takes) + 1))
    return {name: spread([take[name] for take in takes]) for name in takes[0]}


def decodes(
    engine: cf.Video2World, row: Row, watch: Watch, latents_BCTHW: torch.Tensor
) -> dict[str, Any]:
    """Decoding, again and again, with nothing watching the card: what :func:`spread` says.

    Args:
        latents_BCTHW: of a clip that the engine has just made, so that its plan is in force.
    """
    size, frames = SHAPES[row.shape]
    request = resolve(engine.profile, *PROMPTS, size=size, num_frames=frames)
    takes: list[float] = []
    begin = time.perf_counter()
    with watch.resting():
        while len(takes) < LEAST_DECODES or (
            len(takes) < REPEATS and time.perf_counter() - begin < REPEAT_SECONDS
        ):
            with engine._making(request, PICTURE, None, None, None) as (making, _):
                wait()
                start = time.perf_counter()
                pictures = list(making.frames(latents_BCTHW))
                wait()
                takes.append(time.perf_counter() - start)
            del pictures
    return spread(takes)


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """The median, how many it is of, and how far apart they lie, as a share of it."""
    median = statistics.median(seconds)
    return {
        "median_s": median,
        "repeats": len(seconds),
        "spread": (max(seconds) - min(seconds)) / median,
        "each_s": list(seconds),
    }
