"""Trains the ball world within a given time, and says how good it became.

``python -m tools.ballworld.train --out DIR ...``; README.md beside this file has the recipe.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_BEGAN: Final = time.monotonic()


def _open_package() -> None:
    """Makes ``cosmos_fast`` importable without its front door.

    The door opens media and command line, which want ffmpeg and the compiled core. A training
    machine has torch and transformers, and needs only the rooms with the networks.
    """
    folder = Path(__file__).resolve().parents[2] / "python" / "cosmos_fast"
    package = types.ModuleType("cosmos_fast")
    package.__path__ = [str(folder)]
    sys.modules.setdefault("cosmos_fast", package)


_open_package()

import torch  # noqa: E402
from tools.ballworld import measures  # noqa: E402
from tools.ballworld.dit_stage import DiTPlan, DiTStage, Latents, encode_world  # noqa: E402
from tools.ballworld.networks import part, prefixed, read, save  # noqa: E402
from tools.ballworld.running import Networks, Settings  # noqa: E402
from tools.ballworld.vae_stage import ClipPlan, VAEStage  # noqa: E402
from tools.ballworld.world import World  # noqa: E402

from cosmos_fast.ballworld.scene import sample  # noqa: E402
from cosmos_fast.ballworld.tracker import track  # noqa: E402

STAGE: Final = re.compile(r"(\d+)x(\d+)x(\d+)@([\d.e-]+):(\d+)(d?)")
VALIDATION_SCENES: Final = 64
HELD_OUT_SCENES: Final = 32
HELD_OUT_DIRECTION_SCENES: Final = 128


class Training:
    """One run: what it trains, where it writes, and when it must have ended."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out = Path(arguments.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16
        self.deadline = _BEGAN + arguments.total
        self.report: dict[str, Any] = {"arguments": vars(arguments), "stages": []}
        self.failed = False
        self.statistics: tuple[list[float], list[float]] = ([], [])
        torch.manual_seed(arguments.seed)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cudnn.benchmark_limit = 6

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def log(self, line: str) -> None:
        text = f"[{time.monotonic() - _BEGAN:6.1f}] {line}"
        print(text, flush=True)
        with (self.out / "train.log").open("a") as file:
            file.write(text + "\n")

    def run(self) -> None:
        arguments = self.arguments
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.log(f"{name}, torch {torch.__version__}")
        world = World.draw(arguments.scenes, arguments.seed, self.device)
        self.log(f"{len(world)} scenes simulated")
        self.vae = VAEStage(world, self.dtype)
        self.dit = DiTStage(self.device, self.dtype)
        self.resume()
        self.guarded("vae", self.train_vae)
        if self.left > 60 or arguments.smoke:
            self.guarded("transformer", lambda: self.train_dit(world))
            self.guarded("evaluation", self.evaluate)
        self.write_report()
        self.log("failed" if self.failed else "done")

    def guarded(self, name: str, stage: Callable[[], None]) -> None:
        """What was trained before a stage failed is worth keeping and judging."""
        try:
            stage()
        except Exception:
            self.log(f"{name} failed:\n{traceback.format_exc()}")
            self.failed = True

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
            self.log("transformer and text encoder resumed")

    def save_vae(self) -> None:
        flat = self.vae.flat
        state = prefixed(flat.state(flat.average, self.dtype), "average.")
        state |= prefixed(flat.state(flat.master, self.dtype), "master.")
        mean, deviation = self.statistics
        about = {"latents_mean": json.dumps(mean), "latents_std": json.dumps(deviation)}
        save(self.out / "vae.safetensors", state, about)

    def save_dit(self) -> None:
        flat = self.dit.flat
        save(self.out / "dit_average.safetensors", flat.state(flat.average, self.dtype), {})
        save(self.out / "dit_master.safetensors", flat.state(flat.master, self.dtype), {})

    def write_report(self) -> None:
        (self.out / "report.json").write_text(json.dumps(self.report, indent=1))

    def train_vae(self) -> None:
        stages = [stage for stage in self.arguments.vae.split(",") if stage]
        torch.backends.cudnn.benchmark = True
        for text in stages:
            frames, width, batch, rate, seconds, decoder = STAGE.fullmatch(text).groups()
            if int(frames) > 1 and not self.vae.whole.convolution and self.device.type == "cuda":
                self.log(self.vae.whole.choose_convolutions(8, 9, 96, 80))
                self.log(f"convolutions: {self.vae.whole.convolution}")
            plan = ClipPlan(
                int(frames), int(width), int(batch), float(rate), decoder_only=bool(decoder)
            )
            budget = min(float(seconds), self.left - self.arguments.reserve)
            if budget < 3 and not self.arguments.smoke:
                self.log(f"no time left for {text}")
                break
            steps = self.vae.train(
                plan,
                budget,
                max_steps=self.arguments.smoke or None,
                log=self.log,
                save=self.save_vae,
            )
            self.report["stages"].append({"vae": text, "steps": steps})
        torch.backends.cudnn.benchmark = False
        if stages:
            flat = self.vae.flat
            flat.master.copy_(flat.average)  # go on with what will be shipped
            flat.publish()
            self.save_vae()

    def train_dit(self, world: World) -> None:
        arguments = self.arguments
        tensor, mean, deviation = encode_world(self.vae, world, arguments.latent_seconds)
        self.statistics = mean, deviation
        self.log(f"{len(tensor)} clips encoded, {tensor.numel() * 2 / 1e9:.2f} GB")
        self.log("latent deviations " + " ".join(f"{d:.2f}" for d in self.statistics[1]))
        kept = tensor.float().std(dim=(0, 2, 3, 4)).tolist()
        self.log("of the normalised means " + " ".join(f"{d:.2f}" for d in kept))
        self.report["clips"] = len(tensor)
        self.save_vae()
        latents = Latents(world, tensor, *world.tokens())
        plan = DiTPlan(
            batch=arguments.batch,
            rate=arguments.rate,
            muon_rate=arguments.muon_rate,
            keep=arguments.keep,
            compile=self.device.type == "cuda" and not arguments.no_compile,
        )
        seconds = min(arguments.dit_seconds, self.left - arguments.reserve)
        if seconds < 5 and not arguments.smoke:
            return
        steps = self.dit.train(
            latents,
            plan,
            seconds,
            max_steps=arguments.smoke or None,
            log=self.log,
            save=self.save_dit,
        )
        self.report["stages"].append({"dit": vars(plan), "seconds": seconds, "steps": steps})

    def networks(self, *, average: bool) -> Networks:
        flat, vae = self.dit.flat, self.vae.flat
        state = flat.state(flat.average if average else flat.master, self.dtype)
        return Networks(
            part(state, "dit."),
            part(state, "text."),
            vae.state(vae.average, self.dtype),
            self.statistics,
            device=self.device,
            dtype=self.dtype,
        )

    def evaluate(self) -> None:
        few = bool(self.arguments.smoke)
        networks = self.networks(average=True)
        scenes = sample(2 if few else VALIDATION_SCENES, 0, "validation")
        videos = self.paint(scenes)
        truth = track(videos, scenes)
        self.report["validation"] = {}
        best, settings = float("inf"), Settings()
        choices = [(16, 1.0), (16, 0.0), (16, 0.5), (16, 2.0), (10, 1.0), (10, 0.5), (24, 1.0)]
        for steps, guidance in choices[: 1 if few else None]:
            if self.left < 25 and not few:
                break
            tried = Settings(num_steps=1 if few else steps, guidance=guidance, seed=1000)
            made = networks.generate(videos, scenes, tried)
            figures = measures.tracking_of(track(made, scenes), truth, scenes)
            worst = measures.shortfall(figures)
            self.report["validation"][f"{steps} steps, guidance {guidance}"] = figures
            self.log(f"validation, {steps} steps, guidance {guidance}: {worst:.2f} {figures}")
            if worst < best:
                best, settings = worst, tried
        self.write_report()
        self.held_out(networks, settings, few)

    def held_out(self, networks: Networks, settings: Settings, few: bool) -> None:
        scenes = sample(2 if few else HELD_OUT_SCENES, 0, "held-out")
        videos = self.paint(scenes)
        report = self.report["held_out"] = {"settings": vars(settings)}
        rebuilt = networks.reconstruct(videos)
        report["vae_psnr"] = measures.psnr(rebuilt, videos)
        report["vae_tracking"] = measures.tracking(rebuilt, videos, scenes)
        still = videos[:, :1].repeat(videos.shape[1], axis=1)
        report["still"] = measures.tracking(still, videos, scenes)
        made = networks.generate(videos, scenes, settings)
        report["tracking"] = measures.tracking(made, videos, scenes)
        self.log(f"held out: {json.dumps(report)}")
        measures.write_sheet(self.out / "sheet.png", made, videos)
        measures.write_sheet(self.out / "sheet_vae.png", rebuilt, videos, scenes=6)
        self.write_report()
        if few or self.left < 20:
            return
        for given in (1, 5):
            blind = Settings(settings.num_steps, 0.0, given, text=False)
            figures = measures.tracking(networks.generate(videos, scenes, blind), videos, scenes)
            report[f"no_text_{given}_given"] = figures
            self.log(f"no text, {given} given: {figures}")
        raw = self.networks(average=False).generate(videos, scenes, settings)
        self.log(f"without averaging: {measures.tracking(raw, videos, scenes)}")
        many = sample(HELD_OUT_DIRECTION_SCENES, 1, "held-out")
        videos = self.paint(many)
        figures = measures.tracking(networks.generate(videos, many, settings), videos, many)
        report["direction_scenes"] = figures
        self.log(f"128 more scenes: {figures}")
        self.write_report()

    def paint(self, scenes: Any) -> Any:
        """uint8 videos of scenes, painted on the device."""
        world = World(scenes, self.device)
        made = []
        for index in torch.arange(len(scenes), device=self.device).split(16):
            video, _ = world.video(index)
            pixels = ((video + 1) * 127.5).round().to(torch.uint8)
            made.append(pixels.permute(0, 2, 3, 4, 1).cpu())
        return torch.cat(made).numpy()


def arguments_of(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for weights, log, report, sheets")
    parser.add_argument("--resume", help="folder of an earlier run to go on from")
    parser.add_argument("--fresh-dit", action="store_true", help="resume the VAE alone")
    parser.add_argument(
        "--vae",
        default="",
        help="stages FRAMESxWIDTHxBATCH@RATE:SECONDS, comma-separated; a final d trains the "
        "decoder alone",
    )
    parser.add_argument("--total", type=float, default=560, help="seconds for everything")
    parser.add_argument("--reserve", type=float, default=45, help="seconds kept for evaluation")
    parser.add_argument("--latent-seconds", type=float, default=20)
    parser.add_argument("--dit-seconds", type=float, default=1e9)
    parser.add_argument("--scenes", type=int, default=40000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=DiTPlan.batch)
    parser.add_argument("--rate", type=float, default=DiTPlan.rate)
    parser.add_argument("--muon-rate", type=float, default=DiTPlan.muon_rate)
    parser.add_argument("--keep", type=float, default=DiTPlan.keep)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--smoke", type=int, default=0, help="steps a stage, to try it all out")
    return parser.parse_args(words)


if __name__ == "__main__":
    training = Training(arguments_of(sys.argv[1:]))
    training.run()
    sys.exit(1 if training.failed else 0)
