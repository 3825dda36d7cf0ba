"""Latency of one chunk of worlds at released size: 12 actions, 480 x 640, random weights.

python benches/bench_world.py CHECKPOINT [--worlds 1 2 4 8] [--steps 20]; the checkpoint's folder
holds an action-conditioned network (tools/make_random_checkpoint.py --size 2B --actions).
"""

from __future__ import annotations

import argparse
import json

import torch

import cosmos_fast as cf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    engine = cf.Video2World.from_pretrained(options.checkpoint)
    spec, size = engine.profile.actions, engine.profile.size
    assert spec is not None
    rows = []
    for count in options.worlds:
        frames = torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, device=engine.device)
        actions = torch.zeros(count, spec.chunk, spec.dim, device=engine.device)
        with cf.World(engine, count) as warm:
            warm.reset(frames)
            warm.step(actions).report.stages  # noqa: B018 - waits for the device
        with cf.World(engine, count) as world:
            world.reset(frames)
            for _ in range(options.steps):
                world.step(actions)
            report = world.report()
        rows.append({"worlds": count, **vars(report)})
        print(
            f"{count} worlds: p50 {report.latency_p50:.3f} s, p99 {report.latency_p99:.3f} s, "
            f"{report.frames_per_second:.1f} frames/s, {report.stages}"
        )
    print(json.dumps({"device": str(engine.device), "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
