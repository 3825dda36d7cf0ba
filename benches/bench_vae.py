"""Decoding a clip: ours, our plain torch, and diffusers, at the two sizes that people quote.

python benches/bench_vae.py [--shape 480p_81 ...] [--seconds 4] [--save FILE] [--tiny]

The released width, random weights, bfloat16, latents to float pixels on the device, one latent
frame at a time. Everyone is checked on the first three latent frames against float32 (no TF32), and
may be 1.1 times as far off as diffusers' eager bfloat16. The first shape is held for 30 seconds.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rivals
import torch
from contest import ROUNDS, Contender, Contest, Report
from harness import relative_error

from cosmos_fast.config import VAEConfig
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.vae import VAE

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = {
    "480p_81": (21, 54, 96),
    "720p_93": (24, 88, 160),
    "action": (4, 60, 80),
    "tiny": (3, 2, 3),
}
"""Latent frames, rows and columns: 81 frames of 432 x 768, 93 of 704 x 1280, 13 of 480 x 640."""
FIRST_SECONDS = 30.0
ERROR_RATIO = 1.1


def decode_flops(config: VAEConfig, latent: tuple[int, int, int]) -> float:
    """Of the decoder's convolutions and its attention, counted layer by layer."""
    frames, height, width = latent
    pairs = [config.base_dim * factor for factor in reversed(config.dim_mult)]
    later, total, features = frames - 1, 0.0, pairs[0]
    positions, seen = float(height * width), float(frames)
    total += seen * positions * (27 * config.z_dim * features + 4 * 27 * features**2)
    total += seen * positions * (4 * features**2 + 2 * positions * features)
    for level, wide in enumerate(pairs):
        shortcut = 0 if features == wide else features * wide
        first = 27 * features * wide + 27 * wide**2 + shortcut
        total += seen * positions * (first + config.num_res_blocks * 54 * wide**2)
        if level < len(config.temporal_downsample):
            if config.temporal_downsample[::-1][level]:
                total += later * positions * 3 * wide * 2 * wide
                seen, later = 2 * later + 1.0, 2 * later
            positions *= 4
            total += seen * positions * 9 * wide * (wide // 2)
            features = wide // 2
    return 2.0 * (total + seen * positions * 27 * pairs[-1] * 3)


def random_vae(config: VAEConfig, device: torch.device) -> VAE:
    """Weights that keep features and pixels near one."""
    torch.manual_seed(0)
    vae = VAE(config).to(device)
    for name, weight in vae.named_parameters():
        if name.endswith("gamma"):
            weight.data.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            weight.data.normal_(std=0.1)
        else:
            weight.data.normal_(std=weight[0].numel() ** -0.5)
    return vae.eval().requires_grad_(False).bfloat16()


def drained(vae: VAE, latents: torch.Tensor) -> torch.Tensor:
    """Decodes chunk by chunk as the engine does, and keeps the last one."""
    *_, last = vae.decode_chunks(latents)
    return last


def contest(name: str, device: torch.device, seconds: float, turns: int) -> Contest:
    config = VAEConfig(base_dim=8) if name == "tiny" else VAEConfig()
    vae = random_vae(config, device)
    generator = torch.Generator(device).manual_seed(0)
    latents = torch.randn(1, 16, *SHAPES[name], device=device, generator=generator)
    few = latents[:, :, :3]
    wide = random_vae(config, device).float()
    # Both see the latents as the bfloat16 network denormalises them.
    wide_few = (vae._denormalised(few).float() - _mean(wide)) * _inverse(wide)
    exact = wide.decode(wide_few).clamp(-1, 1)
    del wide

    ours, plain = VAE(config, Ops.select(device, torch.bfloat16)), VAE(config)
    for one in (ours, plain):
        one.to(device, torch.bfloat16).load_state_dict(vae.state_dict())
        one.requires_grad_(False)
    eager = rivals.diffusers_vae(vae)

    def theirs(network: Any, given: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = network.decode(vae._denormalised(given)).sample
        return pixels

    def error(decode: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], float]:
        return lambda: relative_error(decode(few).clamp(-1, 1), exact)

    contenders = (
        Contender(
            "ours",
            partial(drained, ours, latents),
            error(ours.decode),
            ours=True,
            note="between kernels" if device.type == "cuda" else "plain torch: no GPU",
        ),
        Contender("ours, plain torch", partial(drained, plain, latents), error(plain.decode)),
        Contender(
            "diffusers eager", partial(theirs, eager, latents), error(partial(theirs, eager))
        ),
    )
    limit = ERROR_RATIO * error(partial(theirs, eager))()
    flops = decode_flops(config, SHAPES[name])
    rounds = 2 if name == "tiny" else turns
    return Contest(
        "VAE decode", name, contenders, limit, flops=flops, seconds=seconds, rounds=rounds
    )


def _mean(vae: VAE) -> torch.Tensor:
    return vae._statistics(torch.empty(0, device=vae.quant_conv.weight.device))[0]


def _inverse(vae: VAE) -> torch.Tensor:
    return vae._statistics(torch.empty(0, device=vae.quant_conv.weight.device))[1]


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all but tiny")
    parser.add_argument("--seconds", type=float, default=4.0, help="each contender, each shape")
    parser.add_argument("--long", type=float, default=FIRST_SECONDS, help="the same, first shape")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each contender")
    parser.add_argument("--save", type=Path, help="also write the JSON object here")
    parser.add_argument("--tiny", action="store_true", help="a few pixels, on any device")
    parser.add_argument("--device", type=torch.device)
    arguments = parser.parse_args()
    device = arguments.device or torch.device("cpu" if arguments.tiny else "cuda")
    torch.backends.cudnn.allow_tf32 = False  # this process is ours, and its exact result exact
    names = arguments.shape or [name for name in SHAPES if (name == "tiny") == arguments.tiny]
    lengths = [arguments.long if index == 0 else arguments.seconds for index in range(len(names))]
    settings = {"dtype": "bfloat16", "shapes": names, "seconds": lengths}
    report = Report("vae", device, settings, arguments.save)
    return report.carry_out(
        [
            partial(contest, name, device, seconds, arguments.rounds)
            for name, seconds in zip(names, lengths, strict=True)
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
