"""A simulator's batched camera frames, on the device, continued for every environment at once.

The form of Isaac Lab's cameras: uint8 (num_envs, H, W, 3) on the GPU, or RGBA. Nothing visits the
host. python examples/worlds/device_frames.py [MODEL]
"""

import sys

import torch

import cosmos_fast as cf

engine = cf.Video2World.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "pusherworld")
spec, size = engine.profile.actions, engine.profile.size
assert spec is not None

num_envs = 2
camera = torch.randint(0, 256, (num_envs, *size, 4), dtype=torch.uint8, device=engine.device)

with cf.World(engine, num_envs) as world:
    world.reset(camera[..., :3], seed=range(num_envs))
    for chunk in range(2):
        actions = torch.zeros(num_envs, spec.chunk, spec.dim, device=engine.device)
        step = world.step(actions)
        frames = torch.from_dlpack(step.frames)  # uint8 (num_envs, chunk, H, W, 3), same device
        print(f"chunk {chunk}: {tuple(frames.shape)} on {frames.device}, valid {step.valid.all()}")
        finished = torch.tensor([True] + [False] * (num_envs - 1))
        world.reset(camera[..., :3], seed=chunk + 10, mask=finished)
    print(f"{world.report().frames_per_second:.1f} frames/s")
