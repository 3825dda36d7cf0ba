"""MuJoCo and the world from the same start under the same actions: one mp4, and the error curve.

MUJOCO_GL=egl PYTHONPATH=. python examples/worlds/side_by_side.py [MODEL [ACTIONS]]
"""

import sys

import numpy as np
from tools.pusherworld.episodes import simulate
from tools.pusherworld.tracker import distances

import cosmos_fast as cf
from cosmos_fast.media import VideoWriter
from cosmos_fast.world import rollout_actions

count = int(sys.argv[2]) if len(sys.argv) > 2 else 60
episode = simulate("held-out", 3, 1, count)
simulated, actions = episode.frames[0], episode.actions[0]

engine = cf.Video2World.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "pusherworld")
imagined = rollout_actions(engine, simulated[0], actions, seed=0).frames.to("np")

pair = np.concatenate([simulated, imagined], axis=2)
size = cf.Size(pair.shape[1], pair.shape[2])
with VideoWriter("side_by_side.mp4", size=size, fps=engine.profile.fps) as writer:
    writer.write(pair)
error = distances(imagined, simulated)
still = distances(simulated[:1].repeat(count + 1, 0), simulated)
for frame in range(0, count + 1, 4):
    print(f"frame {frame:3d}: block {error[frame]:6.2f} px off, still picture {still[frame]:6.2f}")
