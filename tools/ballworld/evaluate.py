"""Judges a ball world by its videos: ``make eval``.

Through the public engine, on scenes that were never trained on. Prints one table and, as the last
line, everything as a JSON object; fails where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from tools.ballworld import measures
from tools.ballworld.clips import Setting, cores, generate, generate_beginnings, tell

from cosmos_fast.ballworld import compare_tracks, render, sample, track
from cosmos_fast.model.pixels import to_pixels, to_video
from cosmos_fast.model.vae import VAE
from cosmos_fast.report import versions
from cosmos_fast.types import Frames
from cosmos_fast.weights import find_checkpoint, load_vae

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.ballworld import Scenes

SCENES: Final = 32
MORE_SCENES: Final = 48
"""Scenes that only their first movement is looked at, for at least 100 moving balls in all."""
LEAST_DIRECTION: Final = 0.97
LEAST_PSNR: Final = 34.0


def evaluate(setting: Setting, number: int, more: int, workers: int) -> dict[str, Any]:
    """All figures of one checkpoint.

    Args:
        setting: how to load and generate; the rows that vary guidance or text override it.
        number: held-out scenes to generate, at most 32.
        more: further ones for the direction alone.
        workers: processes.
    """
    scenes = sample(SCENES, 0, "held-out")[:number]
    videos = render(scenes)
    found: dict[str, Any] = {"label": "toy model", "setting": setting.as_dict(), "scenes": number}

    def judge(name: str, made: np.ndarray) -> None:
        found[name] = measures.tracking(made, videos, scenes)

    judge("still", videos[:, :1].repeat(videos.shape[1], axis=1))
    tell("the VAE alone")
    rebuilt = reconstruct(setting, videos)
    judge("vae", rebuilt)
    found["vae"]["psnr"] = round(measures.psnr(rebuilt, videos), 2)
    unguided = setting.varied(guidance=0)
    blind = replace(unguided, text=False)
    settings = {
        "default": setting,
        "guidance_0": unguided,
        "no_text_1_given": blind.varied(num_conditional_frames=1),
        "no_text_5_given": blind.varied(num_conditional_frames=5),
    }
    made = generate(list(settings.values()), scenes, workers=workers)
    for name, clips in zip(settings, made, strict=True):
        judge(name, clips.videos)
    found["direction"] = direction(setting, made[0].videos, videos, scenes, more, workers)
    found["missed"] = list(missed(found))
    return found


def reconstruct(setting: Setting, videos: np.ndarray) -> np.ndarray:
    """Videos through the VAE and back, in its chunked form: uint8 of the same shape."""
    files = find_checkpoint(setting.loading.get("source", "ballworld"))
    vae = VAE(files.profile.vae)
    device = torch.device(setting.loading.get("device", "cpu"))
    vae.load_state_dict(load_vae(files, device, torch.float32), assign=True)
    rebuilt = []
    with torch.no_grad():
        for video in videos:
            latents = vae.encode(to_video(Frames(video, files.profile.fps), device, torch.float32))
            chunks = [to_pixels(chunk).cpu().numpy() for chunk in vae.decode_chunks(latents)]
            rebuilt.append(np.concatenate(chunks))
    return np.stack(rebuilt)


def direction(
    setting: Setting,
    made: np.ndarray,
    videos: np.ndarray,
    scenes: Scenes,
    more: int,
    workers: int,
) -> dict[str, Any]:
    """Whether balls set off the right way, on ``more`` scenes beside those already ``made``."""
    scores = [compare_tracks(track(made[:, :5], scenes), track(videos[:, :5], scenes), scenes)]
    if more:
        tell("the first movement of more scenes")
        others = sample(more, 1, "held-out")
        begun = generate_beginnings(setting, others, workers=workers)
        truth = render(others, 5)
        scores.append(compare_tracks(track(begun, others), track(truth, others), others))
    agrees = np.concatenate([score.agrees[score.moving] for score in scores])
    return {"moving_balls": len(agrees), "right": round(float(agrees.mean()), 4)}


def missed(found: dict[str, Any]) -> Iterator[str]:
    """The bars that the figures do not clear, and the comparisons that do not hold."""
    for frame, limit in measures.LIMITS.items():
        error = found["default"]["all"][f"frame_{frame}"]
        if not error <= limit:
            yield f"{error} pixels at frame {frame}: at most {limit:g}"
    if not found["direction"]["right"] >= LEAST_DIRECTION:
        yield f"direction {found['direction']['right']:.1%}: at least {LEAST_DIRECTION:.0%}"
    if not found["vae"]["psnr"] >= LEAST_PSNR:
        yield f"VAE {found['vae']['psnr']} dB: at least {LEAST_PSNR:g}"
    for better, worse in (("no_text_5_given", "no_text_1_given"), ("default", "guidance_0")):
        shares = [measures.shortfall(found[name]) for name in (better, worse)]
        if not shares[0] < shares[1]:
            yield f"{better} is no better than {worse}: {shares[0]:.3f}, {shares[1]:.3f}"


ROWS: Final = {
    "still": "a still picture",
    "vae": "the simulator's frames through the VAE",
    "default": "**generated**",
    "guidance_0": "generated with guidance 0",
    "no_text_1_given": "`NO_TEXT`, 1 frame given",
    "no_text_5_given": "`NO_TEXT`, 5 frames given",
}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"Toy model, {found['scenes']} held-out scenes: median tracking error in pixels at frames "
        "8 / 16 / 32.",
        "",
        "| | all | one ball | two balls | direction | within limits |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in ROWS.items():
        figures = found[name]
        errors = " | ".join(
            " / ".join(f"{value:.2f}" for value in figures[group].values())
            for group in ("all", "one_ball", "two_balls")
        )
        lines.append(
            f"| {label} | {errors} | {figures['direction']:.0%} | {figures['within_limits']:.0%} |"
        )
    limits = " / ".join(f"{limit:g}" for limit in measures.LIMITS.values())
    right, balls = found["direction"]["right"], found["direction"]["moving_balls"]
    lines += [
        f"| the bar | {limits} | | | {LEAST_DIRECTION:.0%} | |",
        "",
        f"{right:.1%} of {balls} moving balls set off the right way (bar {LEAST_DIRECTION:.0%}). "
        f"VAE on 33 frames: {found['vae']['psnr']:.1f} dB (bar {LEAST_PSNR:g}).",
        "Within limits: balls whose error is below the bar at all three frames.",
        *(f"MISSED: {bar}" for bar in found["missed"]),
    ]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--more-scenes", type=int, default=MORE_SCENES, help="for direction alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="processes; default: the cores, 1 on a GPU")
    parser.add_argument("--setting", default="{}", help='JSON, such as {"num_steps": 10}')
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args(words)
    setting = Setting.parse(arguments.setting, device=arguments.device)
    workers = arguments.workers or (cores() if arguments.device == "cpu" else 1)
    began = time.perf_counter()
    found = evaluate(setting, arguments.scenes, arguments.more_scenes, workers)
    found |= {
        "seconds": round(time.perf_counter() - began, 1),
        "workers": workers,
        "versions": versions(),
    }
    print(table(found), end="\n\n")
    print(json.dumps(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(found["missed"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
