"""Who answers "what will be seen": the world under test, or MuJoCo in its place.

Every measure asks an :class:`Imagination`. With MuJoCo's own frames a measure must find no fault,
which proves the measure, and tells what a perfect world would score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from tools.pusherworld.networks import CHUNK, SIDE
from tools.pusherworld.tracker import track

import cosmos_fast as cf
from cosmos_fast.world import CostModel, advance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.pusherworld.simulator import Pusher

    from cosmos_fast.world.planning import Costs

    Tell = Callable[[int], None]


class Moment(NamedTuple):
    """How a table stands."""

    picture: np.ndarray
    """uint8 (96, 96, 3)."""
    state: np.ndarray | None = None
    """All that MuJoCo knows; a world does not look at it."""


class Futures(NamedTuple):
    """What N worlds turn into, in K samples each."""

    frames: np.ndarray
    """uint8 (N, K, T, 96, 96, 3)."""
    handles: list[Any]
    """What to go on from: after the first sample."""
    disagreement: np.ndarray
    """float (N,): how far the samples are apart, mean over the chunk; zeros for one sample."""


class Imagination(Protocol):
    """Rolls tables out, and costs plans by what it sees."""

    group: int
    """Planning problems to search for at a time."""

    def begin(self, moments: Sequence[Moment]) -> list[Any]:
        """Handles of worlds that start here."""

    def advance(self, handles: Sequence[Any], actions: np.ndarray, samples: int = 1) -> Futures:
        """The next chunk under ``actions`` float32 (N, 12, 2)."""

    def costs(self) -> Costs:
        """For a search over ``info`` with ``state`` (handles) and ``goal`` (B, 2) in pixels."""


class WorldImagination:
    """The world under test, through the public engine; rows are computed ``batch`` at a time."""

    def __init__(self, engine: cf.Video2World, batch: int, tell: Tell) -> None:
        self.engine, self.batch, self.tell = engine, batch, tell
        self.group = max(1, batch // 32) if engine.device.type == "cpu" else 64

    def begin(self, moments: Sequence[Moment]) -> list[Any]:
        world = cf.World(self.engine, len(moments))
        return list(world.reset(np.stack([moment.picture for moment in moments]), seed=0))

    def advance(self, handles: Sequence[Any], actions: np.ndarray, samples: int = 1) -> Futures:
        frames, apart = [], []
        after: list[Any] = []
        rows = max(1, self.batch // samples)
        for first in range(0, len(handles), rows):
            here = slice(first, first + rows)
            step = advance(
                self.engine, handles[here], actions[here], samples=samples, batch=self.batch
            )
            seen = step.frames if step.futures is None else step.futures
            assert seen is not None
            frames.append(np.asarray(seen).reshape(len(step.state), samples, CHUNK, SIDE, SIDE, 3))
            after += step.state
            apart.append(
                np.zeros(len(step.state))
                if step.disagreement is None
                else step.disagreement.mean(dim=1).cpu().numpy()
            )
            self.tell(len(step.state) * samples)
        return Futures(np.concatenate(frames), after, np.concatenate(apart))

    def costs(self) -> Costs:
        def seen(step: cf.WorldStep, info: Any) -> torch.Tensor:
            assert step.frames is not None
            last = step.frames.to("pt")[:, -1].cpu().numpy()
            self.tell(len(last))
            goal = np.repeat(info["goal"], len(last) // len(info["goal"]), axis=0)
            return torch.from_numpy(pushing_cost(track(last, "block"), track(last, "disc"), goal))

        return CostModel(self.engine, seen, batch=self.batch)


class MujocoImagination:
    """MuJoCo's own frames: a world without a fault, or with a known one.

    Args:
        shake: standard deviation of what is added to the actions of each world in turn, fresh for
            every sample: a world that errs, and knows where.
    """

    def __init__(self, pusher: Pusher, tell: Tell, shake: Sequence[float] = (0.0,)) -> None:
        self.pusher, self.tell, self.shake = pusher, tell, shake
        self.group = 1
        self._rng = np.random.default_rng(0)

    def begin(self, moments: Sequence[Moment]) -> list[Any]:
        return [moment.state for moment in moments]

    def advance(self, handles: Sequence[Any], actions: np.ndarray, samples: int = 1) -> Futures:
        frames = np.empty((len(handles), samples, CHUNK, SIDE, SIDE, 3), np.uint8)
        after = []
        for world, (state, rows) in enumerate(zip(handles, actions, strict=True)):
            shake = self.shake[world % len(self.shake)]
            for sample in range(samples):
                self.pusher.set_state(state)
                for at, action in enumerate(rows + shake * self._rng.standard_normal(rows.shape)):
                    self.pusher.step(action)
                    frames[world, sample, at] = self.pusher.frame()
                if sample == 0:
                    after.append(self.pusher.state())
            self.tell(samples)
        apart = frames.astype(np.float32).std(axis=1).mean(axis=(1, 2, 3, 4))
        return Futures(frames, after, apart)

    def costs(self) -> Costs:
        return MujocoCosts(self.pusher, self.tell, pictures=True)


class MujocoCosts:
    """Plans lived through in MuJoCo, judged by where things are or by what its pictures show."""

    dim = 2

    def __init__(self, pusher: Pusher, tell: Tell, *, pictures: bool) -> None:
        self.pusher, self.tell, self.pictures = pusher, tell, pictures

    def get_cost(self, info: Any, candidates: torch.Tensor, /) -> torch.Tensor:
        costs = torch.zeros(candidates.shape[:2])
        for row, (state, goal) in enumerate(zip(info["state"], info["goal"], strict=True)):
            for column, plan in enumerate(candidates[row].numpy()):
                self.pusher.set_state(state)
                for number, action in enumerate(plan, 1):
                    self.pusher.step(action)
                    if number % CHUNK == 0:
                        costs[row, column] += float(pushing_cost(*self._seen(), goal))
                        self.tell(1)
        return costs

    def _seen(self) -> tuple[np.ndarray, np.ndarray]:
        if self.pictures:
            frame = self.pusher.frame()
            return track(frame, "block"), track(frame, "disc")
        return self.pusher.to_pixels("block"), self.pusher.to_pixels("disc")


def pushing_cost(block: np.ndarray, disc: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Pixels, of (..., 2): the block from its goal and, a little, the disc from the block."""
    far = np.linalg.norm(block - goal, axis=-1) + 0.2 * np.linalg.norm(disc - block, axis=-1)
    return np.nan_to_num(far, nan=200.0)
