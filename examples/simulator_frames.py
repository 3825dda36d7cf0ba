"""Arrays in, arrays out: the last five frames of a simulator's rollout are continued.

python examples/simulator_frames.py [MODEL]
"""

import sys

import numpy as np

import cosmos_fast as cf
from cosmos_fast.ballworld import describe, render, sample

model = sys.argv[1] if len(sys.argv) > 1 else "ballworld"

scene = sample(1, seed=3)
rollout = render(scene)[0]  # uint8 (T, H, W, 3), RGB: what a simulator's camera gives

engine = cf.Video2World.from_pretrained(model)
clip = engine.generate(rollout[:5], describe(scene)[0], num_conditional_frames=5)

predicted = clip.frames.to("np")  # or .to("pt"), or torch.from_dlpack(clip.frames)
error = np.abs(predicted[5:].astype(int) - rollout[5 : len(predicted)].astype(int)).mean()
print(f"{predicted.shape = }, mean distance to the simulator {error:.1f} levels of 255")
