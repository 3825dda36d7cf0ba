"""Costs of imagined actions, in the form that stable-worldmodel's solvers ask for.

Their whole protocol is ``get_cost(info_dict, action_candidates)``, candidates (B, N, horizon, dim)
to costs (B, N): cross-entropy and path-integral searches plug in as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from cosmos_fast.errors import InputError
from cosmos_fast.world.actions import tensor_of
from cosmos_fast.world.advance import advance
from cosmos_fast.world.call import check_engine

if TYPE_CHECKING:
    from cosmos_fast.engine import Video2World
    from cosmos_fast.world.state import WorldState
    from cosmos_fast.world.step import WorldStep

Cost = Callable[["WorldStep", Mapping[str, Any]], torch.Tensor]
"""``cost(step, info)`` of N worlds' chunk to float (N,), lower is better; chunks add up."""


class Costs(Protocol):
    """What a search asks of a model."""

    @property
    def dim(self) -> int: ...

    def get_cost(self, info_dict: Any, action_candidates: torch.Tensor, /) -> torch.Tensor: ...


class CostModel:
    """A world as a planner's model: every candidate is lived through from its state's copy."""

    def __init__(
        self,
        engine: Video2World,
        cost: Cost,
        *,
        decode: bool = True,
        num_steps: int | None = None,
        batch: int | None = None,
    ) -> None:
        """
        Args:
            engine: an action-conditioned checkpoint.
            cost: of one chunk.
            decode: False for costs on latents: no pixels are made.
            num_steps, batch: as ``advance``. Fewer steps are rougher and cheaper.

        Raises:
            InputError: no engine, or a checkpoint without actions.
        """
        check_engine(engine)
        if engine.profile.actions is None:
            raise InputError(f"{engine.profile.name} takes no actions: nothing to plan")
        self._engine, self._cost, self._spec = engine, cost, engine.profile.actions
        self._options: dict[str, Any] = {"decode": decode, "num_steps": num_steps, "batch": batch}

    @property
    def dim(self) -> int:
        """Values of an action."""
        return self._spec.dim

    def get_cost(self, info_dict: Mapping[str, Any], action_candidates: Any) -> torch.Tensor:
        """
        All candidates meet the same noise, so that their costs differ by the actions alone.

        Args:
            info_dict: ``"state"`` holds B states (``world.states``); everything is passed on to
                the cost.
            action_candidates: float (B, N, horizon, dim), in the units of the checkpoint; or (B,
                N, blocks, actions of a block * dim), as solvers with ``action_block`` draw them.

        Returns:
            float32 (B, N), where the candidates are.

        Raises:
            InputError: other shapes, or no states.
        """
        candidates = tensor_of(action_candidates, "action_candidates")
        states: Sequence[WorldState] = _states(info_dict)
        dim = self._spec.dim
        if candidates.ndim != 4 or 0 in candidates.shape or candidates.shape[3] % dim:
            raise InputError(
                f"action_candidates of shape {tuple(candidates.shape)}: (B, N, horizon, {dim}) is "
                f"needed, or a multiple of {dim} values where actions come in blocks"
            )
        batch, number = candidates.shape[:2]
        candidates = candidates.reshape(batch, number, -1, dim)
        horizon = candidates.shape[2]
        if len(states) != batch:
            raise InputError(f'info["state"] holds {len(states)} states for {batch} problems')
        flat = candidates.flatten(0, 1)
        current: Sequence[WorldState] = [state for state in states for _ in range(number)]
        total = torch.zeros(batch * number, device=self._engine.device)
        for first in range(0, horizon, self._spec.chunk):
            step = advance(
                self._engine,
                current,
                flat[:, first : first + self._spec.chunk],
                noise="shared",
                **self._options,
            )
            found = torch.as_tensor(self._cost(step, info_dict)).to(total)
            if found.shape != total.shape:
                raise InputError(f"the cost is of shape {tuple(found.shape)}: ({len(total)},)")
            total = total + found
            current = step.state
        costs: torch.Tensor = total.reshape(batch, number).to(candidates.device)
        return costs


def cross_entropy_search(
    model: Costs,
    info: Mapping[str, Any],
    *,
    horizon: int,
    candidates: int = 64,
    elites: int = 8,
    rounds: int = 3,
    low: float = -1.0,
    high: float = 1.0,
    hold: int = 1,
    seed: int | Sequence[int] = 0,
) -> torch.Tensor:
    """The best action sequence that a cross-entropy search finds (Rubinstein 1999).

    Args:
        info: for :meth:`CostModel.get_cost`, with B states.
        horizon: actions.
        candidates, elites, rounds: N drawn a round, of which the best refit mean and deviation.
        low, high: limits of every value.
        hold: actions that are drawn as one and held.
        seed: of the draws of all problems together; or B of them, one a problem, whose plan then
            does not depend on which others are searched for beside it.

    Returns:
        float32 (B, horizon, dim).

    Raises:
        InputError: a number out of range, another number of seeds than problems, no states, or a
            problem all of whose candidates cost NaN.
    """
    states, dim = _states(info), model.dim
    for name, value, least in (
        ("horizon", horizon, 1), ("rounds", rounds, 1), ("hold", hold, 1), ("elites", elites, 2),
        ("candidates", candidates, elites),
    ):  # fmt: skip
        if value < least:
            raise InputError(f"{name} = {value}: at least {least} is needed")
    if not low < high:
        raise InputError(f"{low = }, {high = }: the first must be below the second")
    draw = _draws(seed, len(states))
    knots = -(-horizon // hold)
    mean = torch.full((len(states), knots, dim), (low + high) / 2)
    deviation = torch.full_like(mean, (high - low) / 2)
    best = mean
    lowest = torch.full((len(states),), float("inf"))
    for _ in range(rounds):
        noise = draw((candidates, knots, dim))
        drawn = (mean[:, None] + deviation[:, None] * noise).clamp(low, high)
        held = drawn.repeat_interleave(hold, dim=2)[:, :, :horizon]
        costs = model.get_cost(info, held).cpu()
        if (lost := costs.isnan().all(dim=1)).any():
            raise InputError(
                f"every candidate of problem {int(lost.nonzero()[0])} costs NaN: is the cost, or "
                f"the world's future, not finite?"
            )
        order = costs.argsort(dim=1)
        for row in range(len(states)):
            chosen = drawn[row, order[row, :elites]]
            mean[row], deviation[row] = chosen.mean(0), chosen.std(0) + 1e-3
            if costs[row, order[row, 0]] < lowest[row]:
                lowest[row] = costs[row, order[row, 0]]
                best = best.clone()
                best[row] = chosen[0]
    return best.repeat_interleave(hold, dim=1)[:, :horizon]


def _states(info: Mapping[str, Any]) -> Sequence[WorldState]:
    """
    Raises:
        InputError: there are none.
    """
    states: Sequence[WorldState] = info.get("state", ())
    if not len(states):
        raise InputError('info["state"] is needed: the states to plan from, such as world.states')
    return states


def _draws(seed: int | Sequence[int], problems: int) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """Standard normal draws (B, *shape)."""
    if isinstance(seed, int | np.integer):
        one = torch.Generator().manual_seed(int(seed))
        return lambda shape: torch.randn((problems, *shape), generator=one)
    if len(seed) != problems:
        raise InputError(f"{len(seed)} seeds for {problems} problems")
    own = [torch.Generator().manual_seed(int(each)) for each in seed]
    return lambda shape: torch.stack([torch.randn(shape, generator=each) for each in own])
