"""The ball world: a simulated scene whose videos can be checked, and the ruler that checks them.

Scene, motion, picture, prompt grammar and tracker, in NumPy alone. The small trained networks that
imitate this world live in ``assets/ballworld``; what trains and evaluates them in ``tools``.
"""

from cosmos_fast.ballworld.motion import simulate
from cosmos_fast.ballworld.picture import render
from cosmos_fast.ballworld.prompts import describe, parse, say, stage
from cosmos_fast.ballworld.scene import FPS, NUM_FRAMES, SIZE, Scenes, sample
from cosmos_fast.ballworld.sheet import draw_sheet
from cosmos_fast.ballworld.tracker import Score, compare_tracks, track

__all__ = [
    "FPS",
    "NUM_FRAMES",
    "SIZE",
    "Scenes",
    "Score",
    "compare_tracks",
    "describe",
    "draw_sheet",
    "parse",
    "render",
    "sample",
    "say",
    "simulate",
    "stage",
    "track",
]
