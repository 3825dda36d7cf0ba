"""The same search, imagining in the world or in MuJoCo, acts in MuJoCo; random actions beside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from tools.pusherworld.futures import Moment, MujocoCosts
from tools.pusherworld.measures import bootstrap, ratio
from tools.pusherworld.networks import CHUNK
from tools.pusherworld.policies import SUCCESS, at_goal
from tools.pusherworld.simulator import Pusher, draw_start, to_pixels

from cosmos_fast.world import cross_entropy_search

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.pusherworld.futures import Imagination

    Choose = Callable[[list[int], int], np.ndarray]

DECISIONS: Final = 6
HOLD: Final = 4
ELITES: Final = 4


class Search(NamedTuple):
    """How hard a plan is looked for; the same in the world and in MuJoCo."""

    candidates: int = 32
    rounds: int = 2
    horizon: int = CHUNK

    @property
    def futures(self) -> int:
        """Chunks that one decision imagines."""
        return self.candidates * self.rounds * -(-self.horizon // CHUNK)


class Problems:
    """Tables on which plans are carried out, each until its block is at its goal."""

    def __init__(self, pusher: Pusher, number: int) -> None:
        self.pusher = pusher
        self.goals, self.states = [], []
        for episode in range(number):
            rng = np.random.default_rng([11, episode])
            start = draw_start(rng)
            self.goals.append(_goal(rng, start.block[:2]))
            pusher.reset(start)
            self.states.append(pusher.state())

    def play(self, choose: Choose) -> tuple[np.ndarray, int]:
        """
        Args:
            choose: which problems and the number of the decision to actions (B, 12, 2).

        Returns:
            bool (E,): who succeeded; and how many decisions that took.
        """
        states, won, taken = list(self.states), np.zeros(len(self.states), bool), 0
        for decision in range(DECISIONS):
            waiting = np.flatnonzero(~won).tolist()
            if not waiting:
                break
            self.now = states
            plans = choose(waiting, decision)
            taken += len(waiting)
            for row, actions in zip(waiting, plans, strict=True):
                self.pusher.set_state(states[row])
                for action in actions:
                    self.pusher.step(action)
                states[row] = self.pusher.state()
                won[row] = at_goal(self.pusher.block, self.goals[row])
        return won, taken

    def moment(self, row: int) -> Moment:
        """How a table stands now."""
        self.pusher.set_state(self.now[row])
        return Moment(self.pusher.frame(), self.now[row])


def planning(imagination: Imagination, number: int, search: Search) -> dict[str, Any]:
    """Success of each planner on ``number`` problems, and the world's share of MuJoCo's."""
    pusher = Pusher()
    problems = Problems(pusher, number)

    def look(costs: Any, begin: Callable[[list[Moment]], list[Any]], group: int) -> Choose:
        def choose(rows: list[int], decision: int) -> np.ndarray:
            plans = []
            for first in range(0, len(rows), group):
                here = rows[first : first + group]
                plans.append(
                    cross_entropy_search(
                        costs,
                        {
                            "state": begin([problems.moment(row) for row in here]),
                            "goal": np.stack([to_pixels(problems.goals[row]) for row in here]),
                        },
                        horizon=search.horizon,
                        candidates=search.candidates,
                        elites=min(ELITES, search.candidates),
                        rounds=search.rounds,
                        hold=HOLD,
                        seed=[row * DECISIONS + decision for row in here],
                    ).numpy()[:, :CHUNK]
                )
            return np.concatenate(plans)

        return choose

    def random(rows: list[int], decision: int) -> np.ndarray:
        draws = [
            np.random.default_rng([13, row, decision]).uniform(-1, 1, (CHUNK, 2)) for row in rows
        ]
        return np.stack(draws)

    simulated = MujocoCosts(pusher, lambda _: None, pictures=False)
    theirs, _ = problems.play(look(simulated, lambda moments: [m.state for m in moments], 1))
    blind, _ = problems.play(random)
    began = time.perf_counter()
    ours, taken = problems.play(look(imagination.costs(), imagination.begin, imagination.group))
    seconds = time.perf_counter() - began
    pusher.close()
    return {
        "problems": number,
        **search._asdict(),
        "decisions": DECISIONS,
        "goal_radius": SUCCESS,
        **{name: bootstrap(_mean, won) for name, won in
           (("world", ours), ("mujoco", theirs), ("random", blind))},
        "share_of_mujoco": bootstrap(ratio, ours, theirs),
        "futures_per_decision": search.futures,
        "seconds_per_decision": round(seconds / taken, 4),
        "problems_at_a_time": imagination.group,
    }  # fmt: skip


def _goal(rng: np.random.Generator, block: np.ndarray) -> np.ndarray:
    """Away from the block, so that it takes a push."""
    while True:
        goal = np.clip(block + rng.uniform(-0.4, 0.4, 2), -0.6, 0.6)
        if np.linalg.norm(goal - block) > 1.2 * SUCCESS:
            return goal


def _mean(won: np.ndarray) -> float:
    return float(won.mean())
