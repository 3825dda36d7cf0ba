"""Frames are used while later ones are still being decoded.

python examples/stream_frames.py [MODEL]
"""

import sys
import time

import numpy as np

import cosmos_fast as cf

model = sys.argv[1] if len(sys.argv) > 1 else "ballworld"
start = np.full((96, 160, 3), 60, dtype=np.uint8)

engine = cf.Video2World.from_pretrained(model)
began = time.perf_counter()
for frames in engine.stream(start, "A blue ball moves slowly upwards under gravity."):
    print(f"{time.perf_counter() - began:6.2f} s: {len(frames)} frames of {frames.size}")
