"""What the guardrail's frame checks cost: SigLIP with its classifier, and RetinaFace.

    python benches/bench_guardrail.py [--frames 93] [--height 720] [--width 1280] [--save FILE]

Networks of the released sizes with random weights; frames of noise on the device. Ours takes frames
in batches, SigLIP in half precision; the contender is the reference's way with the same networks:
one frame at a time, in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from harness import Timing, machine, measure, refuse_missing

from cosmos_fast.prompt.guardrails import FaceBlur, VideoFilter
from cosmos_fast.prompt.guardrails.face_blur import faces, load_retinaface
from cosmos_fast.prompt.guardrails.retinaface import anchors
from cosmos_fast.prompt.guardrails.video_filter import load_classifier
from cosmos_fast.types import Frames
from cosmos_fast.weights import find_guardrail, read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable


MAKER = Path(__file__).resolve().parent.parent / "tools" / "random_companions.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=93)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpoints", type=Path, help="with a guardrail; default: made here")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    refuse_missing(torch.device(options.device))
    with tempfile.TemporaryDirectory() as made:
        root = options.checkpoints or Path(made)
        if options.checkpoints is None:
            subprocess.run([sys.executable, MAKER, "--full", "--out", root], check=True)
        run(root, options)


def run(root: Path, options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    files = find_guardrail([root], None)
    checks = (
        VideoFilter(files.siglip, files.classifier, device, read_tensors, "device"),
        FaceBlur(files.faces, device, read_tensors, "device"),
    )
    shape = (options.frames, options.height, options.width, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    frames = Frames(pixels, 16)
    figures: dict[str, Timing] = {}
    for check in checks:
        check.load()
        figures[f"{check.name}, batched"] = timed(check, frames, device, options.repeats)
    for name, reference in one_at_a_time(root, device, pixels).items():
        figures[f"{name}, one at a time"] = measure(
            reference, device, warmup=1, repeats=max(2, options.repeats // 2)
        )
    ours = sum(timing.median_ms for name, timing in figures.items() if name.endswith("batched"))
    theirs = sum(timing.median_ms for name, timing in figures.items() if name.endswith("time"))
    for name, timing in figures.items():
        print(f"{name:30} {timing.median_ms:9.1f} ms [{timing.p10_ms:.1f}, {timing.p90_ms:.1f}]")
    print(f"{'both checks':30} {ours:9.1f} ms, {theirs / ours:.2f} times as fast")
    line = json.dumps(
        {
            "bench": "guardrail",
            "machine": machine(device),
            "settings": {"shape": shape, "weights": "random", "ours_ms": ours},
            "figures": {name: asdict(timing) for name, timing in figures.items()},
        }
    )
    if options.save is not None:
        options.save.write_text(f"{line}\n", "utf-8")
    print(line)


def timed(
    check: VideoFilter | FaceBlur, frames: Frames, device: torch.device, repeats: int
) -> Timing:
    return measure(lambda: check.check(frames), device, warmup=2, repeats=repeats)


def one_at_a_time(
    root: Path, device: torch.device, pixels: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """The reference's way: float32, a frame at a time, its verdict awaited before the next."""
    files = find_guardrail([root], None)
    classifier = load_classifier(
        files.siglip, files.classifier, device, torch.float32, read_tensors
    )
    detector = load_retinaface(files.faces, device, read_tensors)
    table = anchors(pixels.shape[1], pixels.shape[2], device)

    @torch.no_grad()
    def classify() -> None:
        for frame in pixels:
            int(classifier(frame[None]).argmax())

    @torch.no_grad()
    def find() -> None:
        for frame in pixels:
            faces(detector, frame[None], table)

    return {"video filter": classify, "face blur": find}


if __name__ == "__main__":
    main()
