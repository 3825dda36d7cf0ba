"""How far two ways of running the ball world are apart: the ruler for lossy speed-ups.

``python -m tools.ballworld.compare --ours '{"num_steps": 10}' --theirs '{}'`` prints one JSON
object. A setting names arguments of ``Video2World.from_pretrained`` and of ``generate``; ``"text":
false`` leaves the prompt out. Scene n starts from the noise of ``seed`` + n.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from tools.ballworld import measures
from tools.ballworld.clips import Setting, cores, generate

from cosmos_fast.ballworld import render, sample
from cosmos_fast.report import versions

SCENES: Final = 32


def compare(ours: Setting, theirs: Setting, number: int, workers: int) -> dict[str, Any]:
    """PSNR, SSIM, latent cosine and tracking of ``ours`` against ``theirs``, and what it costs.

    Args:
        number: held-out scenes, at most 32.
        workers: processes.
    """
    scenes = sample(SCENES, 0, "held-out")[:number]
    truth = render(scenes)
    one, other = generate([ours, theirs], scenes, workers=workers)
    simulated = [measures.tracking(made.videos, truth, scenes) for made in (one, other)]
    worse = {
        frame: round(simulated[0]["all"][frame] - error, 3)
        for frame, error in simulated[1]["all"].items()
    }
    return {
        "label": "toy model",
        "ours": ours.as_dict(),
        "theirs": theirs.as_dict(),
        "scenes": number,
        "psnr": round(measures.psnr(one.videos, other.videos), 3),
        "ssim": round(measures.ssim(one.videos, other.videos), 5),
        "latent_cosine": round(measures.cosine(one.latents, other.latents), 6),
        "tracking": measures.tracking(one.videos, other.videos, scenes),
        "against_simulation": {"ours": simulated[0], "theirs": simulated[1]},
        "tracking_error_added": worse,
    }


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", default="{}", help="setting as JSON")
    parser.add_argument("--theirs", default="{}", help="setting as JSON")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="processes; default: the cores, 1 on a GPU")
    parser.add_argument("--json", type=Path, help="write the object there as well")
    arguments = parser.parse_args(words)
    ours, theirs = (
        Setting.parse(text, device=arguments.device) for text in (arguments.ours, arguments.theirs)
    )
    workers = arguments.workers or (cores() if arguments.device == "cpu" else 1)
    found = compare(ours, theirs, arguments.scenes, workers) | {"versions": versions()}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
