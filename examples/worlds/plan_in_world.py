"""Model-predictive control: plans in the world by cross-entropy search, acts in MuJoCo.

MUJOCO_GL=egl PYTHONPATH=. python examples/worlds/plan_in_world.py [MODEL [DECISIONS [CANDIDATES]]]
"""

import sys
import time
from typing import Any

import numpy as np
import torch
from tools.pusherworld.futures import pushing_cost
from tools.pusherworld.simulator import Pusher, draw_start, to_pixels
from tools.pusherworld.tracker import track

import cosmos_fast as cf
from cosmos_fast.world import CostModel, cross_entropy_search

model, decisions, candidates = [*sys.argv[1:], *["pusherworld", "6", "64"][len(sys.argv) - 1 :]]
rng = np.random.default_rng(1)
start, pusher = draw_start(rng), Pusher()
goal = to_pixels(np.clip(start.block[:2] + rng.uniform(-0.4, 0.4, 2), -0.6, 0.6))
pusher.reset(start)


def cost(step: cf.WorldStep, _: Any) -> torch.Tensor:
    last = np.asarray(step.frames)[:, -1]
    return torch.from_numpy(pushing_cost(track(last), track(last, "disc"), goal))


engine = cf.Video2World.from_pretrained(model)
planner, world = CostModel(engine, cost), cf.World(engine)
for decision in range(int(decisions)):
    began = time.perf_counter()
    states = world.reset(pusher.frame()[None], seed=decision)
    plan = cross_entropy_search(
        planner, {"state": states}, horizon=12, candidates=int(candidates), elites=2, hold=4
    )
    took = time.perf_counter() - began
    for action in plan[0].numpy():
        pusher.step(action)
    away = np.linalg.norm(to_pixels(pusher.block) - goal)
    print(f"decision {decision}: {took:.1f} s, the block is {away:.1f} px from its goal")
