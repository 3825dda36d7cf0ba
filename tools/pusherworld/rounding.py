"""What it costs that a world's state is the uint8 frames that it showed.

Two measures. Of one decoded frame: how far rounding it to uint8 moves its latents, beside how far
computing the encoder in bfloat16 does. Of chained chunks of the pusher world: the block's error
with uint8 frames handed on, as worlds do it, and with float32 frames, which nobody was shown.

The last line of output is the JSON. Needs MuJoCo with MUJOCO_GL=egl or osmesa, or ``--data``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import numpy as np
import torch
from tools.pusherworld import accuracy as ruler
from tools.pusherworld.episodes import read_all, simulate
from tools.pusherworld.futures import WorldImagination
from tools.pusherworld.measures import bootstrap
from tools.pusherworld.networks import CHUNK

import cosmos_fast as cf
from cosmos_fast import ballworld
from cosmos_fast.model.pixels import to_pixels
from cosmos_fast.world.advance import _Chunks
from cosmos_fast.world.state import Tail

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCH: Final = 16


def of_one_frame(model: str, pictures: np.ndarray) -> dict[str, Any]:
    """Relative changes of the latents of decoded frames: norm of the change by that of the latents.

    Args:
        model: whose VAE.
        pictures: uint8 (N, H, W, 3), which are encoded and decoded first: a chunk ends in a decoded
            frame, not in a simulator's.
    """
    exact, rough = (
        cf.Video2World.from_pretrained(model, device="cpu", precision=precision)
        for precision in ("fp32", "bf16")
    )
    changes: dict[str, list[float]] = {"uint8": [], "bfloat16": []}
    with torch.no_grad(), exact.lend() as float32, rough.lend() as bfloat16:
        for picture in pictures:
            given = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None] / 127.5 - 1
            frame = float32.vae.decode(float32.vae.encode(given)).clamp(-1, 1)
            rounded = to_pixels(frame).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            known = float32.vae.encode(frame)
            for way, latents in (
                ("uint8", float32.vae.encode(rounded)),
                ("bfloat16", bfloat16.vae.encode(frame.bfloat16())),
            ):
                changes[way].append(float((latents - known).norm() / known.norm()))
    return {way: float(np.median(each)) for way, each in changes.items()}


def handed_on_in_float32(
    chunks: _Chunks, group: tuple[tuple[int, int], ...], latents: torch.Tensor, frames: torch.Tensor
) -> Iterator[Tail]:
    """In the place of ``_Chunks._decoded``: what is shown is rounded, what goes on is not."""
    first = slice(chunks.length, chunks.length + chunks.given)
    exact = (chunks.parts.vae.decode(latents)[:, :, first].clamp(-1, 1) + 1) * 127.5
    for row, tail in enumerate(_DECODED(chunks, group, latents, frames)):
        yield Tail(tail.given, frames=exact[row].permute(1, 2, 3, 0), shown=tail.shown)


_DECODED: Final = _Chunks._decoded


def of_chained_chunks(windows: ruler.Windows) -> dict[str, Any]:
    """Pixels from the block's centre to MuJoCo's after the last chunk, both ways."""
    engine = cf.Video2World.from_pretrained("pusherworld", device="cpu")
    imagination = WorldImagination(engine, _BATCH, lambda _: None)
    uint8 = ruler.roll_out(imagination, windows).error[:, -1]
    with patch.object(_Chunks, "_decoded", handed_on_in_float32):
        float32 = ruler.roll_out(imagination, windows).error[:, -1]
    return {
        "episodes": len(uint8),
        "uint8": ruler.median(uint8),
        "float32": ruler.median(float32),
        "uint8 less float32, mean of pairs": bootstrap(
            lambda drawn: float(np.mean(drawn)), uint8 - float32
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=64, help="held out")
    parser.add_argument("--data", type=Path, help="folder with packed held-out episodes")
    given = parser.parse_args()
    if given.data:
        episodes = read_all(given.data, "held-out", given.episodes)
    else:
        episodes = simulate("held-out", 0, given.episodes, CHUNK * ruler.CHUNKS)
    balls = ballworld.render(ballworld.sample(len(episodes), 0, "held-out"))[:, -1]
    found = {
        "label": "toy models",
        "latents of one frame": {
            "ballworld": of_one_frame("ballworld", balls),
            "pusherworld": of_one_frame("pusherworld", episodes.frames[:, -1]),
        },
        "chained chunks": of_chained_chunks(ruler.from_start(episodes)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
