"""Judges a pusher world against MuJoCo: ``python -m tools.pusherworld.evaluate --model DIR``.

Three parts: how far the block is off on held-out episodes, whether scripted policies rank the same
in the world as in MuJoCo, and whether a planner that searches in the world succeeds in MuJoCo. The
last line is one JSON object. Needs MuJoCo and MUJOCO_GL=egl or osmesa.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from tools.pusherworld.episodes import simulate
from tools.pusherworld.policies import SUCCESS, Push, at_goal
from tools.pusherworld.simulator import CHUNK, Pusher, draw_start, to_pixels, to_table
from tools.pusherworld.tracker import distances, track

import cosmos_fast as cf
from cosmos_fast.world import CostModel, cross_entropy_search

if TYPE_CHECKING:
    from collections.abc import Callable

POLICY_CHUNKS: Final = 5
PLAN_HORIZON: Final = 24
DECISIONS: Final = 6


def tracking(engine: cf.Video2World, number: int, chunks: int = 5) -> dict[str, Any]:
    """Block error in pixels on held-out episodes, chunk after chunk, beside a still picture."""
    episodes = simulate("held-out", 0, number, CHUNK * chunks)
    with cf.World(engine, number) as world:
        world.reset(episodes.frames[:, 0], seed=0)
        errors, apart = [], []
        for chunk in range(chunks):
            here = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            step = world.step(episodes.actions[:, here], samples=4 if chunk == 0 else 1)
            truth = episodes.frames[:, 1 + here.start : 1 + here.stop]
            errors.append(distances(np.asarray(step.frames), truth))
            if step.disagreement is not None:
                apart.append(step.disagreement.cpu().numpy())
    still = distances(episodes.frames[:, :1].repeat(CHUNK * chunks, 1), episodes.frames[:, 1:])
    error = np.concatenate(errors, axis=1)
    final = {name: np.median(each, axis=0) for name, each in (("world", error), ("still", still))}
    return {
        "episodes": number,
        **{name: {str(n): round(float(each[n - 1]), 2) for n in (4, 12, CHUNK * chunks)}
           for name, each in final.items()},
        "disagreement_spearman": spearman(apart[0].mean(1), errors[0].mean(1)),
    }  # fmt: skip


def policies(
    engine: cf.Video2World, number: int, episodes: int, chunks: int = POLICY_CHUNKS, seed: int = 0
) -> dict[str, Any]:
    """Success of policies of rising skill, scored in MuJoCo and in the world."""
    simulated, imagined = [], []
    pusher = Pusher()
    for index in range(number):
        skill = index / max(number - 1, 1)
        wins, frames, goals = [], [], []
        for episode in range(episodes):
            rng = np.random.default_rng([seed, 7, episode])
            start, goal = draw_start(rng), rng.uniform(-0.55, 0.55, 2)
            pusher.reset(start)
            frames.append(pusher.frame())
            goals.append(goal)
            policy = Push(goal, skill, np.random.default_rng([seed, index, episode]))
            for _ in range(CHUNK * chunks):
                pusher.step(policy(pusher.disc, pusher.block))
            wins.append(at_goal(pusher.block, goal))
        simulated.append(np.mean(wins))
        imagined.append(np.mean(_imagined(engine, frames, goals, skill, chunks, [seed, index])))
    pusher.close()
    ours, theirs = np.array(imagined), np.array(simulated)
    return {
        "policies": number, "episodes": episodes,
        "mujoco": [round(float(each), 3) for each in theirs],
        "world": [round(float(each), 3) for each in ours],
        "pearson": interval(ours, theirs, pearson),
        "spearman": interval(ours, theirs, spearman),
        "max_rank_violation": interval(ours, theirs, rank_violation),
    }  # fmt: skip


def _imagined(
    engine: cf.Video2World,
    frames: list[np.ndarray],
    goals: list[np.ndarray],
    skill: float,
    chunks: int,
    key: list[int],
) -> list[bool]:
    """The same policies act on what a tracker sees in the world, four actions at a look."""
    number = len(frames)
    acting = [Push(g, skill, np.random.default_rng([*key, k])) for k, g in enumerate(goals)]
    seen = np.stack(frames)
    with cf.World(engine, number) as world:
        world.reset(seen, seed=0)
        for _ in range(CHUNK * chunks // 4):
            discs, blocks = (to_table(track(seen, what)) for what in ("disc", "block"))
            rows = []
            for policy, disc, block in zip(acting, discs, blocks, strict=True):
                held = policy(np.nan_to_num(disc), np.nan_to_num(block))
                rows.append([held] * 4)
            step = world.step(np.array(rows, np.float32))
            seen = np.asarray(step.frames)[:, 3]
    blocks = to_table(track(seen))
    return [at_goal(block, goal) for block, goal in zip(blocks, goals, strict=True)]


def planning(engine: cf.Video2World, episodes: int, candidates: int) -> dict[str, Any]:
    """The same search, imagining in the world or in MuJoCo, acting in MuJoCo; random beside it."""
    wins: dict[str, list[bool]] = {"world": [], "mujoco": [], "random": []}
    seconds = []
    for episode in range(episodes):
        rng = np.random.default_rng([11, episode])
        start = draw_start(rng)
        goal = np.clip(start.block[:2] + rng.uniform(-0.4, 0.4, 2), -0.6, 0.6)
        for name, won in wins.items():
            pusher = Pusher()
            pusher.reset(start)
            for decision in range(DECISIONS):
                if name == "random":
                    plan = rng.uniform(-1, 1, (CHUNK, 2))
                else:
                    began = time.perf_counter()
                    plan = _decide(engine, pusher, goal, name, candidates, decision)
                    if name == "world":
                        seconds.append(time.perf_counter() - began)
                for action in plan[:CHUNK]:
                    pusher.step(action)
                if at_goal(pusher.block, goal):
                    break
            won.append(at_goal(pusher.block, goal))
            pusher.close()
    found: dict[str, Any] = {name: round(float(np.mean(won)), 3) for name, won in wins.items()}
    return found | {
        "episodes": episodes, "candidates": candidates, "goal_radius": SUCCESS,
        "seconds_per_decision": round(float(np.median(seconds)), 3),
    }  # fmt: skip


def _decide(
    engine: cf.Video2World, pusher: Pusher, goal: np.ndarray, where: str, candidates: int, seed: int
) -> np.ndarray:
    model: Any = _InMujoco(pusher, goal)
    info: dict[str, Any] = {"state": [None]}
    if where == "world":
        model = CostModel(engine, _cost_of(to_pixels(goal)))
        world = cf.World(engine)
        info = {"state": world.reset(pusher.frame()[None], seed=seed)}
    found = cross_entropy_search(
        model, info, horizon=PLAN_HORIZON, candidates=candidates, hold=4, seed=seed
    )
    return found[0].numpy()


def _cost_of(goal: np.ndarray) -> Callable[[cf.WorldStep, Any], torch.Tensor]:
    def cost(step: cf.WorldStep, _: Any) -> torch.Tensor:
        last = np.asarray(step.frames)[:, -1]
        return torch.from_numpy(pushing_cost(track(last, "block"), track(last, "disc"), goal))

    return cost


def pushing_cost(block: np.ndarray, disc: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Pixels of the block from its goal and, a little, of the disc from the block."""
    far = np.linalg.norm(block - goal, axis=-1) + 0.2 * np.linalg.norm(disc - block, axis=-1)
    return np.nan_to_num(far, nan=200.0)


class _InMujoco:
    """The simulator as a planner's model: the yardstick of the world."""

    def __init__(self, pusher: Pusher, goal: np.ndarray) -> None:
        self._pusher, self._goal = pusher, to_pixels(goal)
        self.dim = 2

    def get_cost(self, _: Any, candidates: torch.Tensor) -> torch.Tensor:
        kept, costs = self._pusher.state(), []
        for plan in candidates[0].numpy():
            self._pusher.set_state(kept)
            cost = 0.0
            for number, action in enumerate(plan, 1):
                self._pusher.step(action)
                if number % CHUNK == 0:
                    block, disc = to_pixels(self._pusher.block), to_pixels(self._pusher.disc)
                    cost += float(pushing_cost(block, disc, self._goal))
            costs.append(cost)
        self._pusher.set_state(kept)
        return torch.tensor(costs)[None]


def ranks(values: np.ndarray) -> np.ndarray:
    """Average ranks."""
    below = (values[:, None] > values).sum(1)
    return below + ((values[:, None] == values).sum(1) + 1) / 2


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return round(pearson(ranks(a), ranks(b)), 4)


def rank_violation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean over policies of the worst true gap to one that is ranked on the wrong side of it
    (MMRV of SIMPLER, arXiv 2405.05941)."""
    wrong = (ours[:, None] < ours) != (theirs[:, None] < theirs)
    return float((np.abs(theirs[:, None] - theirs) * wrong).max(axis=1).mean())


def interval(
    ours: np.ndarray, theirs: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]
) -> list[float]:
    """The measure and its 95 % bootstrap interval over policies."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(ours), size=(1000, len(ours)))
    low, high = np.percentile([measure(ours[d], theirs[d]) for d in draws], (2.5, 97.5))
    return [round(float(value), 4) for value in (measure(ours, theirs), low, high)]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pusherworld")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--policies", type=int, default=20)
    parser.add_argument("--policy-episodes", type=int, default=40)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=64)
    arguments = parser.parse_args(words)
    engine = cf.Video2World.from_pretrained(arguments.model, device=arguments.device)
    found: dict[str, Any] = {"label": "toy model"}
    if arguments.episodes:
        found["tracking"] = tracking(engine, arguments.episodes)
    if arguments.policies:
        found["policies"] = policies(engine, arguments.policies, arguments.policy_episodes)
    if arguments.plans:
        found["planning"] = planning(engine, arguments.plans, arguments.candidates)
    found["missed"] = missed(found)
    print(json.dumps(found))
    return 1 if found["missed"] else 0


def missed(found: dict[str, Any]) -> list[str]:
    """The bars that the figures do not clear."""
    bars = []
    if part := found.get("tracking"):
        world, still = part["world"], part["still"]
        bars += [
            ("block at frame 4", world["4"] <= 3), ("block at frame 12", world["12"] <= 5),
            ("block after five chunks", world["60"] <= still["60"] / 2),
            ("disagreement", part["disagreement_spearman"] >= 0.5),
        ]  # fmt: skip
    if part := found.get("policies"):
        bars.append(("policies", part["spearman"][0] >= 0.85))
    if part := found.get("planning"):
        bars.append(("planning", part["world"] >= 0.7 * part["mujoco"]))
    return [name for name, cleared in bars if not cleared]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
