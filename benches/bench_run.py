"""Whole runs, model warm: a prompt and a photograph become an mp4 on disk, or frames on the device.

python benches/bench_run.py --checkpoints DIR [--shape example1 ...] [--repeats 2] [--save FILE]

Ours, and the same engine with diffusers' transformer (blocks compiled) and VAE (eager) in the place
of ours, in turns. Random weights of the released size: where DIR has none, they are made there
(``tools/make_random_checkpoint.py``). T5 is resident and run each time; guardrail and upsampler are
off. A run counts if every repeat gives the same latents and the file verifies. ``--tiny`` does the
same with networks and clips for a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import rivals
import torch
from contest import Clocks, Report, Row
from harness import WrongResult
from PIL import Image

import cosmos_fast as cf
from cosmos_fast.model.graphs import GraphedDiT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.model.dit import DiT
    from cosmos_fast.model.vae import VAE

PROMPT = (
    "A robotic arm stands over a steel table in a bright workshop. It lowers its gripper towards a "
    "red cube, closes it, lifts the cube and carries it to the left, where a blue tray waits. The "
    "camera does not move; shadows follow the arm, and behind it a person walks by."
)
NEGATIVE = "Blurred, distorted, jerky, overexposed; objects that appear, vanish or change shape."
MAKER = Path(__file__).parent.parent / "tools" / "make_random_checkpoint.py"


@dataclass(frozen=True)
class Shape:
    """One run."""

    size: tuple[int, int]
    num_frames: int
    num_steps: int = 35
    guidance: float = 7.0
    picture: tuple[int, int] = (3648, 5472)
    to_file: bool = True

    @property
    def options(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "num_frames": self.num_frames,
            "num_steps": self.num_steps,
            "guidance": self.guidance,
        }


SHAPES = {
    "example1": Shape((432, 768), 81),
    "480p_93": Shape((432, 768), 93),
    "action": Shape((480, 640), 13, guidance=0.0, picture=(480, 640), to_file=False),
    "720p_93": Shape((704, 1280), 93),
    "tiny": Shape((32, 48), 5, num_steps=2, picture=(40, 60)),
}


class TheirDiT:
    """diffusers' transformer where the engine expects ours."""

    def __init__(self, dit: DiT) -> None:
        self.config, self.dtype, self.rope_table = dit.config, dit.dtype, dit.rope_table
        self._network = rivals.compile_blocks(rivals.diffusers_dit(dit))

    def text_context(
        self, rows_BSC: torch.Tensor, length: int | None = None, *, as_used: bool = False
    ) -> torch.Tensor:
        return rows_BSC.to(self.dtype)

    def rope(self, layout: object) -> None:
        """It makes its own, every time."""

    def modulations(self, t_BT: torch.Tensor) -> TheirDiT:
        return self

    def at(self, index_BT: torch.Tensor) -> None:
        """It has no table of times."""

    def __call__(
        self,
        x_BCTHW: torch.Tensor,
        t_BT: torch.Tensor,
        mask_B1THW: torch.Tensor,
        text: torch.Tensor,
        *_: object,
        **__: object,
    ) -> torch.Tensor:
        height, width = x_BCTHW.shape[3:]
        sample: torch.Tensor = self._network(
            hidden_states=x_BCTHW.to(self.dtype),
            timestep=t_BT[:, None, :, None, None].to(self.dtype),
            encoder_hidden_states=text,
            fps=24,
            condition_mask=mask_B1THW.to(self.dtype),
            padding_mask=x_BCTHW.new_zeros(1, 1, height * 8, width * 8).to(self.dtype),
        ).sample
        return sample.float()


class TheirVAE:
    """diffusers' VAE where the engine expects ours."""

    def __init__(self, vae: VAE) -> None:
        self._ours, self.ops = vae, vae.ops
        self._network = rivals.diffusers_vae(vae)

    @property
    def shareable(self) -> tuple[Any, tuple[Any, ...]]:
        """One rank computes all of it."""
        return self._network, ()

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        moments = self._network.encode(video).latent_dist.parameters
        return self._ours._normalised(moments)

    def decode_chunks(
        self, latents: torch.Tensor, *, frame_by_frame: bool = False
    ) -> Iterator[torch.Tensor]:
        yield self._network.decode(self._ours._denormalised(latents)).sample.float()


def with_their_networks(engine: cf.Video2World) -> cf.Video2World:
    """The same engine, solver, media and text encoder around diffusers' two networks."""
    parts = engine._parts
    dit, vae = cast("DiT", TheirDiT(parts.dit)), cast("VAE", TheirVAE(parts.vae))
    other = cf.Video2World(replace(parts, dit=dit, vae=vae), engine._desk)
    other._studio = replace(other._studio, dit=GraphedDiT(dit, most_tokens=0))
    return other


def load(checkpoints: Path, size: str, device: str) -> cf.Video2World:
    folder = checkpoints / "diffusers" / "Cosmos-Predict2-2B-Video2World"
    if not folder.is_dir():
        command = [sys.executable, str(MAKER), "--size", size, "--out", str(checkpoints)]
        command += ["--layout", "diffusers", "--device", device]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return cf.Video2World.from_pretrained(
        folder,
        device=device,
        precision="bf16",
        rope_table="float32",  # diffusers has no other
        prompt_cache=False,
        guardrail=cf.NoGuardrail(reason="a benchmark"),
    )


def photograph(size: tuple[int, int]) -> Image.Image:
    """Blots with some grain: about as many bytes a pixel as a photograph has, as JPEG."""
    random = np.random.default_rng(0)
    height, width = size
    blots = random.integers(0, 256, (height // 48, width // 48, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blots).resize((width, height)), np.int16)
    grain = random.integers(-4, 5, (height, width, 1), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def once(
    engine: cf.Video2World, shape: Shape, folder: Path, **changes: Any
) -> tuple[cf.Clip, float]:
    """A run, and its seconds by the clock on the wall: to the published file, or to frames that
    are there."""
    picture = folder / f"{shape.picture[0]}x{shape.picture[1]}.jpg"
    if not picture.exists():
        photograph(shape.picture).save(picture, quality=90)
    options = shape.options | changes
    start = time.perf_counter()
    if shape.to_file:
        clip = engine.generate_to(folder / "clip.mp4", picture, PROMPT, NEGATIVE, **options)
    else:
        clip = engine.generate(picture, cf.NO_TEXT, **options)
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
    return clip, time.perf_counter() - start


def rows_of(
    name: str, engines: dict[str, cf.Video2World], repeats: int, folder: Path, report: Report
) -> list[Row]:
    """Runs everybody in turns.

    Raises:
        WrongResult: two runs of ours differ.
    """
    shape = SHAPES[name]
    clips: dict[str, list[tuple[cf.Clip, float]]] = {who: [] for who in engines}
    for engine in engines.values():
        once(engine, shape, folder, num_steps=1)  # compiles, and makes what is made once
    for _ in range(repeats):
        for who, engine in engines.items():
            clips[who].append(once(engine, shape, folder))
    seconds = {who: statistics.median(wall for _, wall in runs) for who, runs in clips.items()}
    rows = []
    for who, runs in clips.items():
        digests = {one.report.latents_sha256 for one, _ in runs}
        if who == "ours" and len(digests) > 1:
            raise WrongResult(f"{name}: {repeats} runs of ours gave {len(digests)} results")
        reports = [one.report.as_dict() | {"wall_seconds": wall} for one, wall in runs]
        report.extra.setdefault("runs", []).append(
            {"shape": name, "contender": who, "reports": reports}
        )
        times = sorted(wall * 1e3 for _, wall in runs)
        last = runs[-1][0].report
        stages = ", ".join(f"{stage.name} {stage.seconds:.2f}" for stage in last.stages)
        rows.append(
            Row(
                "whole run",
                name,
                who,
                who == "ours",
                median_ms=statistics.median(times),
                p10_ms=times[0],
                p90_ms=times[-1],
                calls=repeats,
                seconds=sum(times) / 1e3,
                teraflops=last.teraflops,
                error=0.0,
                error_limit=0.0,
                speed=seconds["ours"] / seconds[who],
                note=f"{stages} s",
            )
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, help="folder of random checkpoints")
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: example1")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only-ours", action="store_true", help="without diffusers' networks")
    parser.add_argument("--save", type=Path, help="also write the JSON object here")
    parser.add_argument("--tiny", action="store_true", help="small networks and clips")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    device = arguments.device or ("cpu" if arguments.tiny else "cuda")
    names = arguments.shape or ["tiny" if arguments.tiny else "example1"]
    settings = {"shapes": names, "repeats": arguments.repeats, "weights": "random"}
    report = Report("run", torch.device(device), settings, arguments.save)
    with tempfile.TemporaryDirectory() as folder, Clocks() as clocks:
        checkpoints = arguments.checkpoints or Path(folder, "checkpoints")
        engines = {"ours": load(checkpoints, "tiny" if arguments.tiny else "2B", device)}
        if not arguments.only_ours:
            engines["diffusers' networks"] = with_their_networks(engines["ours"])
        try:
            for name in names:
                report.add(rows_of(name, engines, arguments.repeats, Path(folder), report))
        except WrongResult as problem:
            print(f"bench_run: {problem}", file=sys.stderr)
            return 1
    report.extra["clocks"] = clocks.summary()
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
