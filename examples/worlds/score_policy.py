"""A policy scored where it will never run, in the world, and in MuJoCo.

MUJOCO_GL=egl PYTHONPATH=. python examples/worlds/score_policy.py [MODEL POLICIES EPISODES CHUNKS]
"""

import sys

from tools.pusherworld.futures import WorldImagination
from tools.pusherworld.scoring import policies

import cosmos_fast as cf

given = sys.argv[1:]
model, number, episodes, chunks = [*given, *["pusherworld", "3", "10", "5"][len(given) :]]
engine = cf.Video2World.from_pretrained(model)
world = WorldImagination(engine, batch=8, tell=lambda futures: None)
found = policies(world, int(number), int(episodes), int(chunks))
for rank, (real, imagined) in enumerate(zip(found["mujoco"], found["world"], strict=True)):
    print(f"policy {rank}: succeeds {real:.0%} in MuJoCo, {imagined:.0%} in the world")
print(f"Spearman {found['spearman']}")
