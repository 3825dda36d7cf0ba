"""Training of the VAE: single frames first, then clips of growing length, 33 frames last."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from tools.ballworld.descent import FlatParameters, Optimiser, captured_or_plain, cosine, release
from tools.ballworld.networks import training_vae
from tools.ballworld.whole_vae import WholeVAE

from cosmos_fast.ballworld.scene import NUM_FRAMES, SIZE
from cosmos_fast.types import LATENT_CHANNELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.ballworld.world import World


@dataclass(frozen=True)
class ClipPlan:
    """One stage."""

    frames: int
    width: int
    """Columns of the crops; 160 is the whole picture."""
    batch: int
    rate: float
    decoder_only: bool = False
    """Leave the encoder, and so the latents, as they are."""
    warm_up: int = 100
    clip: float = 1.0
    keep: float = 0.998
    ball_weight: float = 10.0
    """Extra weight of pixels on and close to a ball."""
    square_weight: float = 2.0
    """Weight of the squared beside the absolute error."""
    divergence: float = 3e-4
    """Weight of the mean Kullback-Leibler divergence of a latent value."""


_LOG_VARIANCE_LIMITS: Final = (-12.0, 4.0)


class VAEStage:
    """The VAE as one flat set of parameters, and its training step."""

    def __init__(self, world: World, dtype: torch.dtype) -> None:
        self.world, self.device, self.dtype = world, world.device, dtype
        self.vae = training_vae(world.device)
        self.flat = FlatParameters(dict(self.vae.named_parameters()), world.device, dtype)
        self.whole = WholeVAE(self.vae)
        self.metrics = torch.zeros(5, device=world.device)
        """Sums since the last report: loss, squared error, the same near balls, divergence,
        gradient."""

    def train(
        self,
        plan: ClipPlan,
        seconds: float,
        *,
        max_steps: int | None = None,
        log: Callable[[str], None],
        save: Callable[[], None],
    ) -> int:
        """Trains for ``seconds`` of wall-clock time, capture included; returns the steps."""
        slower = {
            name: 0.0
            for name in self.flat.named
            if plan.decoder_only and name.startswith(("encoder.", "quant_conv."))
        }
        optimiser = Optimiser(self.flat, betas=(0.9, 0.99), clip=plan.clip, slower=slower)
        label = f"vae {plan.frames}x{SIZE.height}x{plan.width}"
        began = saved = told = time.monotonic()
        captured = captured_or_plain(
            lambda: self._step(plan, optimiser), self.device, self.whole.simplify, log
        )
        self.metrics.zero_()
        log(f"{label}: first steps and capture took {time.monotonic() - began:.1f} s")
        step = told_step = 0
        while True:
            now = time.monotonic()
            progress = (now - began) / seconds
            if max_steps is not None:
                progress = max(progress, step / max_steps)
            if progress >= 1:
                break
            optimiser.rate.fill_(plan.rate * cosine(progress, step, plan.warm_up, floor=0.02))
            optimiser.keep.fill_(min(plan.keep, (1 + step) / (10 + step)))
            captured()
            step += 1
            if step % 5 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            if now - told > 6:
                speed = (step - told_step) / (now - told)
                log(
                    f"{label}: {now - began:6.1f} s  step {step:5d}  {speed:6.1f}/s  "
                    f"{self._tell(step - told_step)}"
                )
                told, told_step = now, step
            if now - saved > 60:
                save()
                saved = now
        log(
            f"{label}: {step} steps in {time.monotonic() - began:.1f} s: "
            f"{self._tell(max(step - told_step, 1))}  skipped {int(optimiser.skipped)}"
        )
        del captured
        release()
        save()
        return step

    def _tell(self, steps: int) -> str:
        loss, error, near, divergence, norm = (self.metrics / steps).tolist()
        self.metrics.zero_()
        return (
            f"loss {loss:.4f}  {decibels(error):.2f} dB, balls {decibels(near):.2f} dB  "
            f"divergence {divergence:.2f}  gradient {norm:.2f}"
        )

    def _step(self, plan: ClipPlan, optimiser: Optimiser) -> None:
        self.flat.gradient.zero_()
        video, nearness = self._clips(plan)
        moments = self.whole.moments(video)
        if plan.decoder_only:
            moments = moments.detach()
        mean, log_variance = moments.float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(*_LOG_VARIANCE_LIMITS)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        wrong = self.whole.decoded(latents).float() - video
        square = wrong.square()
        weight = 1 + plan.ball_weight * nearness
        reconstruction = (weight * (wrong.abs() + plan.square_weight * square)).mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = reconstruction + plan.divergence * divergence
        loss.backward()
        norm = optimiser.step()
        near = (square * nearness).sum() / (3 * nearness.sum()).clamp(min=1)
        seen = torch.stack((loss, square.mean() / 4, near / 4, divergence, norm)).detach()
        self.metrics += torch.nan_to_num(seen)

    def _clips(self, plan: ClipPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """Random clips out of random scenes; crops hold a ball, somewhere."""
        world, device = self.world, self.device
        index_B = torch.randint(len(world), (plan.batch,), device=device)
        last = NUM_FRAMES - plan.frames
        start_B = torch.randint(last + 1, (plan.batch,), device=device)
        frame_BT = start_B[:, None] + torch.arange(plan.frames, device=device)
        if plan.width == SIZE.width:
            return world.video(index_B, frame_BT)
        middle = start_B + plan.frames // 2
        second = (torch.rand(plan.batch, device=device) < 0.5) & (world.second[index_B] > 0)
        ball_x = world.centre[index_B, middle, second.long(), 0]
        spot = torch.rand(plan.batch, device=device)
        left_B = (ball_x - spot * plan.width).clamp(0, SIZE.width - plan.width).floor()
        return world.video(index_B, frame_BT, left_B, plan.width)

    @torch.no_grad()
    def statistics(self, scenes: int = 64, *, batch: int = 8) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each latent channel over whole clips.

        The deviation is that of the posterior's samples: a channel that says nothing has a mean
        near 0 and a variance near 1, and is not blown up to unit variance.
        """
        total = torch.zeros(LATENT_CHANNELS, device=self.device, dtype=torch.float64)
        squares, number = torch.zeros_like(total), 0
        scenes = min(scenes, len(self.world))
        for start in range(0, scenes, batch):
            index_B = torch.arange(start, min(start + batch, scenes), device=self.device)
            video, _ = self.world.video(index_B)
            mean, log_variance = self.whole.moments(video).double().chunk(2, dim=-1)
            variance = log_variance.clamp(*_LOG_VARIANCE_LIMITS).exp()
            total += mean.sum(dim=(0, 1, 2, 3))
            squares += (mean.square() + variance).sum(dim=(0, 1, 2, 3))
            number += mean[..., 0].numel()
        mean = total / number
        return mean.tolist(), (squares / number - mean.square()).sqrt().tolist()


def decibels(mean_square: float) -> float:
    """PSNR of a mean squared error of values in 0-1."""
    return -10 * torch.log10(torch.tensor(max(mean_square, 1e-12))).item()
