"""Copies of the small guardrail to break, checks that misbehave, and a world to guard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import cosmos_fast as cf
from cosmos_fast.config import VAEConfig
from cosmos_fast.types import Frames, Size
from random_world import RANDOM_PROFILE, make_random_world

COSMOS: Final = "nvidia/Cosmos-Guardrail1"
LLAMA: Final = "meta-llama/Llama-Guard-3-8B"
QWEN: Final = "Qwen/Qwen2.5-VL-7B-Instruct"
FILTER: Final = f"{COSMOS}/video_content_safety_filter"
SIGLIP: Final = f"{FILTER}/models--google--siglip-so400m-patch14-384/snapshots/{'0' * 40}"
FACES: Final = f"{COSMOS}/face_blur_filter/Resnet50_Final.pth"
MODEL: Final = "Cosmos-Predict2-2B-Video2World"
PROMPT: Final = "A kettle boils on the stove."

NOT_A_TOY: Final = replace(
    RANDOM_PROFILE,
    name="small",
    size=Size(32, 48),
    num_frames=9,
    dit=replace(RANDOM_PROFILE.dit, num_layers=1, num_heads=1),
    vae=VAEConfig(base_dim=4),
    negative_prompt="Blurred and jerky.",
    toy=False,
)


def copied(companions: Path, to: Path) -> Path:
    """The companions below ``to``, by hard links: replace a file, never write into it."""
    for source in companions.rglob("*"):
        if source.is_file():
            target = to / source.relative_to(companions)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
    return to


def rewritten(path: Path, data: bytes) -> None:
    """Replaces a file and leaves the one it is linked to."""
    path.unlink()
    path.write_bytes(data)


def guarded_world(root: Path) -> Path:
    """A small model that is no toy, in ``root`` under the name of the original's 2B."""
    return make_random_world(root / MODEL, NOT_A_TOY)


@dataclass
class Check:
    """A check of a user's own: of prompts or of frames, as the list it stands in says."""

    name: str = "own check"
    answer: Callable[[Any], Any] = lambda _: cf.Verdict(True)
    on_load: Callable[[], None] = lambda: None
    seen: list[Any] = field(default_factory=list)

    def load(self) -> None:
        self.on_load()

    def check(self, about: Any) -> Any:
        self.seen.append(about if isinstance(about, str) else about.shape)
        return self.answer(about)


def raising(error: BaseException) -> Callable[..., Any]:
    def work(*_: object, **__: object) -> Any:
        raise error

    return work


def sleeping(*_: object) -> cf.Verdict:
    time.sleep(3)
    return cf.Verdict(True)


def inverted(frames: Frames) -> cf.Verdict:
    """Safe, with other frames in place of the given ones."""
    return cf.Verdict(True, frames=Frames(255 - frames.to("pt"), frames.fps))
