"""Policies of rising skill, scored in MuJoCo and in the imagination.

In both a policy looks at the table before each chunk and then acts twelve times; it meets the same
starts, goals and luck. In the imagination a tracker tells it where things are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from tools.pusherworld.futures import Moment
from tools.pusherworld.measures import bootstrap_scores, pearson, rank_violation, spearman
from tools.pusherworld.policies import Push, at_goal, foresee
from tools.pusherworld.simulator import CHUNK, Pusher, Start, draw_start, to_table
from tools.pusherworld.tracker import track

if TYPE_CHECKING:
    from tools.pusherworld.futures import Imagination

CHUNKS: Final = 5


class Task(NamedTuple):
    """A table, and where its block shall go."""

    start: Start
    goal: np.ndarray
    """float64 (2,), on the table."""
    moment: Moment


def policies(
    imagination: Imagination, number: int, episodes: int, chunks: int = CHUNKS, seed: int = 0
) -> dict[str, Any]:
    """Success rates of ``number`` policies on ``episodes`` tasks; how the two rankings agree."""
    pusher = Pusher()
    tasks = [draw_task(pusher, [seed, 7, episode]) for episode in range(episodes)]
    theirs = np.array(
        [
            [
                _simulated(pusher, policy, task, chunks)
                for policy, task in zip(row, tasks, strict=True)
            ]
            for row in _acting(number, tasks, seed)
        ]
    )
    pusher.close()
    ours = _imagined(imagination, _acting(number, tasks, seed), tasks, chunks)
    return {
        "policies": number,
        "episodes": episodes,
        "mujoco": [round(float(each), 3) for each in theirs.mean(axis=1)],
        "world": [round(float(each), 3) for each in ours.mean(axis=1)],
        "same_outcome": round(float((ours == theirs).mean()), 3),
        "pearson": bootstrap_scores(pearson, ours, theirs),
        "spearman": bootstrap_scores(spearman, ours, theirs),
        "max_rank_violation": bootstrap_scores(rank_violation, ours, theirs),
    }


def draw_task(pusher: Pusher, key: list[int]) -> Task:
    """A start and a goal that the block has not reached."""
    rng = np.random.default_rng(key)
    start = draw_start(rng)
    goal = rng.uniform(-0.55, 0.55, 2)
    while at_goal(start.block[:2], goal):
        goal = rng.uniform(-0.55, 0.55, 2)
    pusher.reset(start)
    return Task(start, goal, Moment(pusher.frame(), pusher.state()))


def _acting(number: int, tasks: list[Task], seed: int) -> list[list[Push]]:
    """The policies, at their beginning: one a task, by skill from 0 to 1."""
    return [
        [
            Push(task.goal, index / max(number - 1, 1), np.random.default_rng([seed, index, at]))
            for at, task in enumerate(tasks)
        ]
        for index in range(number)
    ]


def _simulated(pusher: Pusher, policy: Push, task: Task, chunks: int) -> bool:
    pusher.reset(task.start)
    for _ in range(chunks):
        for action in foresee(policy, pusher.disc, pusher.block, CHUNK):
            pusher.step(action)
    return at_goal(pusher.block, task.goal)


def _imagined(
    imagination: Imagination, acting: list[list[Push]], tasks: list[Task], chunks: int
) -> np.ndarray:
    """bool (policies, tasks): every policy on every task, all of them side by side."""
    flat = [policy for row in acting for policy in row]
    moments = [task.moment for _ in acting for task in tasks]
    handles = imagination.begin(moments)
    seen = np.stack([moment.picture for moment in moments])
    for _ in range(chunks):
        # Who is nowhere to be seen is taken to be in the middle.
        discs, blocks = (np.nan_to_num(to_table(track(seen, what))) for what in ("disc", "block"))
        rows = [foresee(*each, CHUNK) for each in zip(flat, discs, blocks, strict=True)]
        futures = imagination.advance(handles, np.stack(rows))
        handles, seen = futures.handles, futures.frames[:, 0, -1]
    blocks = to_table(track(seen))
    won = [at_goal(block, policy.goal) for block, policy in zip(blocks, flat, strict=True)]
    return np.array(won).reshape(len(acting), len(tasks))
