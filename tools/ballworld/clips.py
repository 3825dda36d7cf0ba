"""Videos of many scenes through the public engine, on as many processes as there are cores."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np
import torch

import cosmos_fast as cf
from cosmos_fast.ballworld import describe, render

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cosmos_fast.ballworld import Scenes
    from cosmos_fast.types import Prompt

FIRST_SEED: Final = 1000
"""Scene n starts from the noise of this seed + n, unless a setting says otherwise."""
_LOADING: Final = frozenset(inspect.signature(cf.Video2World.from_pretrained).parameters)
_MAKING: Final = frozenset(inspect.signature(cf.Video2World.generate).parameters) - {
    "self", "source", "prompt", "on_step", "on_stage", "cancel",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How to load the engine and how to generate."""

    loading: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``Video2World.from_pretrained``; ``source`` is "ballworld" unless given."""
    making: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``generate``."""
    text: bool = True
    """False generates without a prompt."""

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Sorts options by whose arguments they are.

        Raises:
            ValueError: an option that neither loading nor generating has.
        """
        known = {"text", *_LOADING, *_MAKING}
        if strange := options.keys() - known:
            raise ValueError(f"{', '.join(sorted(strange))} unknown; {', '.join(sorted(known))}")
        return cls(
            loading={name: value for name, value in options.items() if name in _LOADING},
            making={name: value for name, value in options.items() if name in _MAKING},
            text=options.get("text", True),
        )

    @classmethod
    def parse(cls, text: str, **defaults: Any) -> Self:
        """A setting from a JSON object, such as ``{"num_steps": 10}``."""
        return cls.of({**defaults, **json.loads(text)})

    def as_dict(self) -> dict[str, Any]:
        return {**self.loading, **self.making, "text": self.text}

    def varied(self, **making: Any) -> Setting:
        """The same with other arguments of ``generate``."""
        return replace(self, making={**self.making, **making})

    def load(self) -> cf.Video2World:
        return cf.Video2World.from_pretrained(
            **{"source": "ballworld", "prompt_cache": False, **self.loading}
        )


class Made(NamedTuple):
    """Generated clips."""

    videos: np.ndarray
    """uint8 (N, T, 96, 160, 3)."""
    latents: np.ndarray
    """float32 (N, 16, T', h, w)."""


def generate(settings: Sequence[Setting], scenes: Scenes, *, workers: int) -> list[Made]:
    """Whole clips of all ``scenes``, under each of ``settings``."""
    shares = list(_spread(partial(_clips_under, settings), scenes, workers))
    return [
        Made(*(_interleaved(parts) for parts in zip(*made, strict=True)))
        for made in zip(*shares, strict=True)
    ]


def generate_beginnings(setting: Setting, scenes: Scenes, *, workers: int) -> np.ndarray:
    """The first five frames of clips that are sampled whole: uint8 (N, 5, 96, 160, 3)."""
    return _interleaved(list(_spread(partial(_beginnings, setting), scenes, workers)))


def tell(text: str) -> None:
    """A line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def cores() -> int:
    """How many processes this machine runs side by side."""
    return len(os.sched_getaffinity(0))


def _spread(work: Any, scenes: Scenes, workers: int) -> list[Any]:
    """``work(share, first, stride)`` on every ``stride``-th scene from ``first``, in processes."""
    workers = min(workers, len(scenes))
    if workers == 1:
        return [work(scenes, 0, 1)]
    shares = [scenes[first::workers] for first in range(workers)]
    # One thread each: two that share a product wait for one another on a busy machine.
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return list(pool.map(work, shares, range(workers), [workers] * workers))


def _interleaved(parts: Sequence[np.ndarray]) -> np.ndarray:
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for first, part in enumerate(parts):
        whole[first :: len(parts)] = part
    return whole


def _clips_under(
    settings: Sequence[Setting], scenes: Scenes, first: int, stride: int
) -> list[Made]:
    return [_whole_clips(setting, scenes, first, stride) for setting in settings]


def _whole_clips(setting: Setting, scenes: Scenes, first: int, stride: int) -> Made:
    clips = [
        call.engine.generate(call.picture, call.prompt, **call.options)
        for call in _calls(setting, scenes, first, stride)
    ]
    return Made(
        np.stack([clip.frames.to("np") for clip in clips]),
        np.concatenate([clip.latents.tensor.cpu().numpy() for clip in clips]),
    )


def _beginnings(setting: Setting, scenes: Scenes, first: int, stride: int) -> np.ndarray:
    begun = []
    for call in _calls(setting, scenes, first, stride):
        stream = call.engine.stream(call.picture, call.prompt, **call.options)
        begun.append(np.concatenate([next(stream).to("np"), next(stream).to("np")]))
        del stream  # the decoder need not go on
    return np.stack(begun)


class _Call(NamedTuple):
    """One clip to make."""

    engine: cf.Video2World
    picture: np.ndarray
    prompt: Prompt
    options: dict[str, Any]


def _calls(setting: Setting, scenes: Scenes, first: int, stride: int) -> Iterator[_Call]:
    """One call a scene; tells how long each took."""
    engine, seed = setting.load(), setting.making.get("seed", FIRST_SEED)
    known = setting.making.get("num_conditional_frames") or engine.profile.conditional_frames[0]
    label = json.dumps(setting.as_dict())
    pictures, prompts = render(scenes, known), describe(scenes)
    for n in range(len(scenes)):
        began, number = time.perf_counter(), first + stride * n
        prompt = prompts[n] if setting.text else cf.NO_TEXT
        yield _Call(engine, pictures[n], prompt, {**setting.making, "seed": seed + number})
        tell(f"{label}: scene {number}, {time.perf_counter() - began:.1f} s")
