"""A picture and a prompt become an mp4, with progress, and a clean way out on Ctrl-C.

python examples/picture_to_video.py [MODEL] [PICTURE]
"""

import signal
import sys
import threading

import numpy as np
import torch

import cosmos_fast as cf

model = sys.argv[1] if len(sys.argv) > 1 else "ballworld"
picture = sys.argv[2] if len(sys.argv) > 2 else np.full((96, 160, 3), 60, dtype=np.uint8)

cancel = threading.Event()
signal.signal(signal.SIGINT, lambda number, frame: cancel.set())


def show(step: int, total: int, x0: torch.Tensor) -> None:
    print(f"step {step} of {total}: latents {x0.min():+.2f} to {x0.max():+.2f}")


engine = cf.Video2World.from_pretrained(model)
try:
    clip = engine.generate(
        picture, "A red ball is at rest with no gravity.", on_step=show, cancel=cancel
    )
except cf.Cancelled:
    sys.exit("cancelled; nothing was written")
print(clip.save("picture_to_video.mp4"))
print(clip.report.table())
