"""Trains the pusher world within a given time, and says how good it became.

``python -m tools.pusherworld.train --data DIR --out DIR ...``; README.md beside this file has the
recipe. Needs torch, NumPy and safetensors; not MuJoCo, not the compiled core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import tools.ballworld.train as ball  # first of all: opens the package without its front door
import torch
from tools.ballworld.dit_stage import DiTPlan
from tools.ballworld.networks import part, read
from tools.ballworld.vae_stage import ClipPlan
from tools.pusherworld.clips import Clips
from tools.pusherworld.episodes import read_all
from tools.pusherworld.networks import CHUNK, DIT, profile_of
from tools.pusherworld.stages import PusherDiTStage, PusherVAEStage, encode
from tools.pusherworld.tracker import distances

from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.vae import VAE
from cosmos_fast.sampling import adams_bashforth, denoiser, reference_noise, sigmas
from cosmos_fast.types import Conditioning, LatentFrames


class PusherTraining(ball.Training):
    """One run: resume, VAE, latents, transformer, figures on the validation episodes."""

    def run(self) -> None:
        arguments = self.arguments
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.log(f"{name}, torch {torch.__version__}")
        clips = Clips(
            read_all(Path(arguments.data), "train", arguments.episodes), CHUNK + 1, self.device
        )
        self.log(f"{len(clips.pixels)} episodes, {len(clips)} windows")
        self.vae = PusherVAEStage(clips, self.dtype)
        self.dit = PusherDiTStage(self.device, self.dtype)
        self.resume()
        self.guarded("vae", self.train_vae)
        if self.left > 40 or arguments.smoke:
            self.guarded("transformer", lambda: self.train_pusher(clips))
            self.guarded("evaluation", self.evaluate)
        self.write_report()
        self.log("failed" if self.failed else "done")

    def train_vae(self) -> None:
        stages = [stage for stage in self.arguments.vae.split(",") if stage]
        torch.backends.cudnn.benchmark = True
        for text in stages:
            matched = ball.STAGE.fullmatch(text)
            if matched is None:
                raise ValueError(f"{text!r} is no FRAMESxWIDTHxBATCH@RATE:SECONDS")
            frames, width, batch, rate, seconds, decoder = matched.groups()
            plan = ClipPlan(
                int(frames), int(width), int(batch), float(rate), decoder_only=bool(decoder)
            )
            budget = min(float(seconds), self.left - self.arguments.reserve)
            if budget < 3 and not self.arguments.smoke:
                self.log(f"no time left for {text}")
                break
            steps = self.vae.train(
                plan, budget, max_steps=self.arguments.smoke or None, log=self.log,
                save=self.save_vae,
            )  # fmt: skip
            self.report["stages"].append({"vae": text, "steps": steps})
        torch.backends.cudnn.benchmark = False
        if stages:
            self.vae.flat.master.copy_(self.vae.flat.average)
            self.vae.flat.publish()
            self.save_vae()

    def train_pusher(self, clips: Clips) -> None:
        arguments = self.arguments
        limit = 128 if arguments.smoke else 10**9
        assert isinstance(self.vae, PusherVAEStage)
        latents, *statistics = encode(self.vae, clips, arguments.latent_seconds, limit=limit)
        self.statistics = statistics[0], statistics[1]
        self.log(f"{len(latents.tensor)} windows encoded")
        self.log("latent deviations " + " ".join(f"{d:.2f}" for d in self.statistics[1]))
        self.save_vae()
        plan = DiTPlan(
            batch=arguments.batch, rate=arguments.rate, muon_rate=arguments.muon_rate,
            keep=arguments.keep, text=False,
            compile=self.device.type == "cuda" and not arguments.no_compile,
        )  # fmt: skip
        seconds = min(arguments.dit_seconds, self.left - arguments.reserve)
        if seconds < 5 and not arguments.smoke:
            return
        steps = self.dit.train(
            latents, plan, seconds, max_steps=arguments.smoke or None, log=self.log,  # type: ignore[arg-type]
            save=self.save_dit,
        )  # fmt: skip
        self.report["stages"].append({"dit": vars(plan), "seconds": seconds, "steps": steps})

    def evaluate(self) -> None:
        """Block error on the validation episodes, for several numbers of solver steps."""
        few = bool(self.arguments.smoke)
        episodes = read_all(Path(self.arguments.data), "validation", 2 if few else 64)
        self.report["validation"], best = {}, float("inf")
        for steps in (1,) if few else (10, 6, 16):
            if self.left < 15 and not few:
                break
            made = self.predict(episodes.frames[:, 0], episodes.actions[:, :CHUNK], steps)
            truth = episodes.frames[:, 1 : CHUNK + 1]
            error = np.median(distances(made, truth), axis=0)
            disc = np.median(distances(made, truth, "disc"), axis=0)
            still = np.median(distances(episodes.frames[:, :1].repeat(CHUNK, 1), truth), axis=0)
            found = {
                "block": _two(error), "disc": _two(disc),
                "still": _two(still),
            }  # fmt: skip
            self.report["validation"][steps] = found
            self.log(f"validation, {steps} steps: {found}")
            if error[11] < best:
                best, self.report["num_steps"] = error[11], steps

    @torch.no_grad()
    def predict(
        self, starts: np.ndarray, actions: np.ndarray, num_steps: int, batch: int = 16
    ) -> np.ndarray:
        """uint8 (N, 12, 96, 96, 3) with the averaged weights."""
        profile = profile_of(self.statistics, num_steps)
        vae, dit = VAE(profile.vae), DiT(DIT, Ops())
        vae.load_state_dict(self.vae.flat.state(self.vae.flat.average, self.dtype))
        weights = self.dit.flat.state(self.dit.flat.average, self.dtype)
        dit.load_state_dict(part(weights, "dit."))
        vae.to(self.device, self.dtype).eval()
        dit.to(self.device, self.dtype).eval()
        text = dit.text_context(torch.zeros(1, 1, DIT.text_dim, device=self.device))
        made = []
        for first in range(0, len(starts), batch):
            here = torch.from_numpy(starts[first : first + batch]).to(self.device)
            given = vae.encode(here.permute(0, 3, 1, 2)[:, :, None].to(self.dtype) / 127.5 - 1)
            conditioning = Conditioning.from_first_frames(given, LatentFrames(4))
            action = dit.action_context(
                torch.from_numpy(actions[first : first + batch]).to(self.device)
            )

            def velocity(
                x: torch.Tensor,
                t: torch.Tensor,
                mask: torch.Tensor,
                _: int,
                action: object = action,
            ) -> torch.Tensor:
                return dit(x, t, mask, text, action=action)

            shape = (len(here), 16, 4, 12, 12)
            noise = reference_noise(shape, 1000 + first).to(self.device)
            levels = sigmas(num_steps)
            latents = adams_bashforth(denoiser(velocity, conditioning), noise * levels[0], levels)
            video = vae.decode(latents)[:, :, 1:]
            pixels = ((video + 1) * 127.5).clamp(0, 255) + 0.5
            made.append(pixels.permute(0, 2, 3, 4, 1).to(torch.uint8).cpu().numpy())
        return np.concatenate(made)

    def resume(self) -> None:
        if not self.arguments.resume:
            return
        folder = Path(self.arguments.resume)
        vae = read(folder / "vae.safetensors")
        self.vae.flat.load(part(vae, "master."), part(vae, "average."))
        self.log(f"vae resumed from {folder}")
        masters = folder / "dit_master.safetensors"
        if masters.exists() and not self.arguments.fresh_dit:
            self.dit.flat.load(read(masters), read(folder / "dit_average.safetensors"))
            self.log("transformer resumed")


def _two(error: np.ndarray) -> dict[int, float]:
    return {4: round(float(error[3]), 3), 12: round(float(error[11]), 3)}


def arguments_of(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder that tools.pusherworld.episodes made")
    parser.add_argument("--out", required=True, help="folder for weights, log and report")
    parser.add_argument("--resume", help="folder of an earlier run to go on from")
    parser.add_argument("--fresh-dit", action="store_true", help="resume the VAE alone")
    parser.add_argument("--vae", default="", help="stages FRAMESxWIDTHxBATCH@RATE:SECONDS")
    parser.add_argument("--episodes", type=int, help="read so many only")
    parser.add_argument("--total", type=float, default=560, help="seconds for everything")
    parser.add_argument("--reserve", type=float, default=30, help="seconds kept for evaluation")
    parser.add_argument("--latent-seconds", type=float, default=30)
    parser.add_argument("--dit-seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=DiTPlan.rate)
    parser.add_argument("--muon-rate", type=float, default=DiTPlan.muon_rate)
    parser.add_argument("--keep", type=float, default=DiTPlan.keep)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--smoke", type=int, default=0, help="steps a stage, to try it all out")
    return parser.parse_args(words)


if __name__ == "__main__":
    training = PusherTraining(arguments_of(sys.argv[1:]))
    training.run()
    print(json.dumps(training.report.get("validation", {})))
    sys.exit(1 if training.failed else 0)
