"""stable-worldmodel's own solvers plan with our costs; skipped where it is not installed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import pytest
import torch

import cosmos_fast as cf
from action_world import CHUNK, DIM, action_engine, pictures
from cosmos_fast.world import CostModel

if TYPE_CHECKING:
    from cosmos_fast.world import WorldStep

SAMPLES = 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> cf.Video2World:
    return action_engine(tmp_path_factory.mktemp("world"))


def towards_a_goal(step: WorldStep, info: Any) -> torch.Tensor:
    """How far the last latents are from the first problem's goal."""
    return (step.latents.tensor[:, :, -1] - info["target"][0]).square().mean(dim=(1, 2, 3))


def started(engine: cf.Video2World) -> tuple[cf.World, dict[str, Any]]:
    world = cf.World(engine, 2)
    world.reset(pictures(2), seed=[1, 2])
    aim = np.random.default_rng(0).uniform(-1, 1, (2, CHUNK, DIM)).astype(np.float32)
    goal = world.fork(0, 2).step(aim, noise="shared", num_steps=1, decode=False)
    return world, {"state": world.states, "target": [goal.latents.tensor[0, :, -1]] * 2}


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("name", ["CEMSolver", "MPPISolver", "ICEMSolver"])
def test_a_solver_plans_with_our_costs(engine: cf.Video2World, name: str, block: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports'
        solvers = pytest.importorskip("stable_worldmodel.solver")
        from stable_worldmodel.policy import PlanConfig
    world, info = started(engine)
    model = CostModel(engine, towards_a_goal, decode=False, num_steps=1)
    solver = getattr(solvers, name)(model, batch_size=2, num_samples=SAMPLES, n_steps=3, topk=2)
    space = gymnasium.spaces.Box(-1, 1, (2, DIM))
    horizon = CHUNK // block
    config = PlanConfig(horizon=horizon, receding_horizon=horizon, action_block=block)
    solver.configure(action_space=space, n_envs=2, config=config)
    plan = solver.solve(info)["actions"]
    assert tuple(plan.shape) == (2, horizon, DIM * block)
    costs = model.get_cost(info, torch.stack([torch.zeros_like(plan), plan], dim=1))
    assert (costs[:, 1] <= costs[:, 0]).all()
    step = world.step(plan.reshape(2, CHUNK, DIM))
    assert step.valid.all()
    assert not step.latents.tensor.is_inference()


def test_blocks_of_actions_are_actions_in_order(engine: cf.Video2World) -> None:
    _, info = started(engine)
    model = CostModel(engine, towards_a_goal, decode=False, num_steps=1)
    rows = torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, (2, 3, CHUNK, DIM)))
    blocks = rows.reshape(2, 3, CHUNK // 4, 4 * DIM)
    torch.testing.assert_close(model.get_cost(info, blocks), model.get_cost(info, rows))
    with pytest.raises(cf.InputError, match="actions come in blocks"):
        model.get_cost(info, rows[..., :1])
