"""How far the block is off on held-out episodes, and whether the samples know it.

Two kinds of windows. An episode from its start: the disc often reaches the block after the first
chunk, and a still picture does well until then. A push: one window of each episode, drawn from
those in which the block moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from tools.pusherworld.episodes import SPLITS, Episodes
from tools.pusherworld.futures import Moment
from tools.pusherworld.measures import Figure, bootstrap, spearman
from tools.pusherworld.networks import CHUNK
from tools.pusherworld.tracker import distances, track

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.pusherworld.futures import Imagination

CHUNKS: Final = 5
SAMPLES: Final = 4
MOVED: Final = 4.0
"""Pixels that the block goes within a push."""


class Windows(NamedTuple):
    """Parts of E episodes: from action ``starts[e]`` on."""

    moments: list[Moment]
    actions: np.ndarray
    """float32 (E, T, 2)."""
    truth: np.ndarray
    """uint8 (E, T, 96, 96, 3): MuJoCo's frames."""

    @property
    def still(self) -> np.ndarray:
        """float64 (E, T): pixels that the block is away from where it was."""
        first = np.stack([moment.picture for moment in self.moments])[:, None]
        return distances(first, self.truth)


class Rollout(NamedTuple):
    """What an imagination made of windows."""

    made: np.ndarray
    """uint8 (E, T, 96, 96, 3)."""
    error: np.ndarray
    """float64 (E, T): pixels from the block's centre to MuJoCo's."""
    still: np.ndarray


def roll_out(imagination: Imagination, windows: Windows) -> Rollout:
    """Chunk after chunk, each from what the last one showed."""
    handles, made = imagination.begin(windows.moments), []
    for first in range(0, windows.actions.shape[1], CHUNK):
        futures = imagination.advance(handles, windows.actions[:, first : first + CHUNK])
        made.append(futures.frames[:, 0])
        handles = futures.handles
    frames = np.concatenate(made, axis=1)
    return Rollout(frames, distances(frames, windows.truth), windows.still)


def accuracy(chained: Rollout, pushes: Rollout) -> dict[str, Any]:
    """Medians over episodes, in pixels, by frame."""
    found: dict[str, Any] = {"episodes": len(chained.error)}
    for name, rollout in (("from the start", chained), ("pushes", pushes)):
        frames = sorted({4, 12, rollout.error.shape[1]})
        found[name] = {
            who: {str(frame): median(error[:, frame - 1]) for frame in frames}
            for who, error in (("world", rollout.error), ("still", rollout.still))
        }
    last = chained.error[:, -1], chained.still[:, -1]
    found["share_of_still"] = bootstrap(_share, *last)
    return found


def disagreement(imagination: Imagination, windows: Sequence[Windows]) -> dict[str, Any]:
    """Rank correlation of how far the samples are apart and how wrong the first one is."""
    error, apart = [], []
    for each in windows:
        here = each.actions[:, :CHUNK]
        futures = imagination.advance(imagination.begin(each.moments), here, SAMPLES)
        error.append(distances(futures.frames[:, 0], each.truth[:, :CHUNK]).mean(axis=1))
        apart.append(futures.disagreement)
    return {
        "windows": sum(map(len, error)),
        "samples": SAMPLES,
        "spearman": bootstrap(spearman, np.concatenate(apart), np.concatenate(error)),
    }


def from_start(episodes: Episodes, chunks: int = CHUNKS, *, states: bool = False) -> Windows:
    """The beginnings of held-out episodes 0 to E.

    Args:
        states: with what MuJoCo knows, for it to go on from; needs it.
    """
    return _cut(episodes, np.zeros(len(episodes), int), CHUNK * chunks, states)


def pushes(episodes: Episodes, *, states: bool = False) -> Windows:
    """One chunk of each episode, drawn from those in which the block goes 4 pixels or more; of an
    episode without, the one where it goes furthest."""
    centres = track(episodes.frames)
    gone = np.linalg.norm(centres[:, CHUNK:] - centres[:, :-CHUNK], axis=-1)
    rng = np.random.default_rng(0)
    starts = []
    for row in gone:
        moving = np.flatnonzero(row >= MOVED)
        starts.append(rng.choice(moving) if len(moving) else row.argmax())
    return _cut(episodes, np.array(starts), CHUNK, states)


def median(errors: np.ndarray) -> Figure:
    return bootstrap(lambda drawn: float(np.median(drawn)), errors)


def _share(error: np.ndarray, still: np.ndarray) -> float:
    away = float(np.median(still))
    return float(np.median(error)) / away if away else float("inf")


def _cut(episodes: Episodes, starts: np.ndarray, length: int, states: bool) -> Windows:
    pictures = [frames[at] for frames, at in zip(episodes.frames, starts, strict=True)]
    known: Sequence[np.ndarray | None] = [None] * len(episodes)
    if states:
        known = _replayed(episodes, starts)
    return Windows(
        [Moment(picture, state) for picture, state in zip(pictures, known, strict=True)],
        np.stack([a[at : at + length] for a, at in zip(episodes.actions, starts, strict=True)]),
        np.stack(
            [f[at + 1 : at + 1 + length] for f, at in zip(episodes.frames, starts, strict=True)]
        ),
    )


def _replayed(episodes: Episodes, starts: np.ndarray) -> list[np.ndarray]:
    """MuJoCo's state at an action of each held-out episode: its actions lived through again."""
    from tools.pusherworld.simulator import Pusher, draw_start

    pusher, found = Pusher(), []
    for number, (actions, at) in enumerate(zip(episodes.actions, starts, strict=True)):
        pusher.reset(draw_start(np.random.default_rng([SPLITS["held-out"], number])))
        for action in actions[:at]:
            pusher.step(action)
        found.append(pusher.state())
    return found
