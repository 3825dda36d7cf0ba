"""The prompt grammar: what a single picture of the ball world cannot show, said in words."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from cosmos_fast.ballworld.scene import COLOURS, MOTIONS, Scenes, sample

_ENDINGS: Final = {" under gravity": True, " with no gravity": False}
_COLOUR_NAMES: Final = tuple(COLOURS)
_PHRASES: Final = tuple(motion.phrase for motion in MOTIONS)
_DRAWN: Final = 64
"""Scenes to find one with the right number of balls among: half of all have it."""
_BALL: Final = re.compile(f"an? ({'|'.join(_COLOUR_NAMES)}) ball ({'|'.join(_PHRASES)})")


class Sentence(NamedTuple):
    """What a prompt of the grammar says."""

    colours: tuple[int, ...]
    """Index into COLOURS, one a ball."""
    motions: tuple[int, ...]
    """Index into MOTIONS, one a ball."""
    gravity: bool


def say(sentence: Sentence) -> str:
    """The prompt for ``sentence``."""
    text = " and ".join(
        f"a {_COLOUR_NAMES[colour]} ball {_PHRASES[motion]}"
        for colour, motion in zip(sentence.colours, sentence.motions, strict=True)
    )
    ending = next(end for end, gravity in _ENDINGS.items() if gravity == sentence.gravity)
    return f"A{text[1:]}{ending}."


def describe(scenes: Scenes) -> list[str]:
    """The prompt of every scene; the first-named ball is the first ball."""
    return [
        say(
            Sentence(
                tuple(scenes.colour[n, : scenes.count[n]].tolist()),
                tuple(scenes.motion[n, : scenes.count[n]].tolist()),
                bool(scenes.gravity[n]),
            )
        )
        for n in range(len(scenes))
    ]


def parse(text: str) -> Sentence | None:
    """What ``text`` says, or None where it is outside the grammar.

    Capitals, spacing and the full stop are free; "an orange ball" is understood as well.
    """
    plain = " ".join(text.lower().split()).removesuffix(".").rstrip()
    ending = next((end for end in _ENDINGS if plain.endswith(end)), None)
    if ending is None:
        return None
    balls = [_BALL.fullmatch(part) for part in plain.removesuffix(ending).split(" and ")]
    found = [ball for ball in balls if ball]
    colours = tuple(_COLOUR_NAMES.index(ball[1]) for ball in found)
    if len(found) != len(balls) or len(balls) > 2 or len(set(colours)) != len(colours):
        return None
    return Sentence(colours, tuple(_PHRASES.index(ball[2]) for ball in found), _ENDINGS[ending])


def stage(sentence: Sentence, seed: int) -> Scenes:
    """One held-out scene in which ``sentence`` holds; ``seed`` decides all that it leaves open."""
    balls = len(sentence.colours)
    drawn = sample(_DRAWN, seed, "held-out")
    scene = drawn[np.flatnonzero(drawn.count == balls)[:1]]
    colour, motion = scene.colour.copy(), scene.motion.copy()
    colour[0, :balls], motion[0, :balls] = sentence.colours, sentence.motions
    return replace(scene, colour=colour, motion=motion, gravity=np.array([sentence.gravity]))
