"""One loaded engine, several futures of the same start, told apart by their manifests.

python examples/many_seeds.py [MODEL]
"""

import json
import sys
from pathlib import Path

import numpy as np

import cosmos_fast as cf

model = sys.argv[1] if len(sys.argv) > 1 else "ballworld"
start = np.full((96, 160, 3), 60, dtype=np.uint8)

engine = cf.Video2World.from_pretrained(model)
for seed in range(2):
    path = Path(f"future_{seed}.mp4")
    engine.generate_to(path, start, "A white ball is at rest under gravity.", seed=seed)
    manifest = json.loads(path.with_suffix(".json").read_text())
    print(path, manifest["arguments"]["seed"], manifest["video"]["sha256"][:12])
