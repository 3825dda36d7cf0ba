"""Training of the transformer and the text encoder, together, on latents made once.

Axes: B batch, C channels, T latent frames, h w latent positions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from tools.ballworld.descent import FlatParameters, Optimiser, captured_or_plain, cosine, release
from tools.ballworld.networks import muon_matrices, training_dit
from tools.ballworld.text import TextTwin, new_parameters
from tools.ballworld.words import UNKNOWN

from cosmos_fast.sampling import SIGMA_MAX, SIGMA_MIN
from cosmos_fast.types import Conditioning

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.ballworld.vae_stage import VAEStage
    from tools.ballworld.world import World
    from torch import nn

GIVEN_TIME: Final = Conditioning.DEFAULT_SIGMA / (1 + Conditioning.DEFAULT_SIGMA)
_RHO: Final = 7.0


@dataclass(frozen=True)
class DiTPlan:
    """How to train."""

    batch: int = 128
    rate: float = 1.5e-3
    muon_rate: float = 0.015
    warm_up: int = 200
    clip: float = 1.0
    weight_decay: float = 0.01
    keep: float = 0.999
    """Share of the moving average that a step keeps, once there have been enough steps."""
    ball_weight: float = 5.0
    """Extra weight of latents that a ball passes through."""
    no_text: float = 0.1
    two_given: float = 0.3
    """Share of clips whose first two latent frames are given, not one."""
    unknown_word: float = 0.02
    noise_slant: float = 1.4
    """Above 1, more of the steps are spent at high noise than the sampler spends there: what moves
    where is decided there."""
    text: bool = True
    compile: bool = True


@dataclass(frozen=True)
class Latents:
    """Encoded scenes to train on."""

    world: World
    tensor: torch.Tensor
    """dtype of the networks, (N, 16, T, h, w), normalised."""
    ids: torch.Tensor
    length: torch.Tensor


class DiTStage:
    """Transformer and text encoder as one flat set of parameters, and their training step."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.dit = training_dit(device)
        text = {name: weight.to(device) for name, weight in new_parameters().items()}
        named: dict[str, nn.Parameter] = {
            **{f"dit.{name}": weight for name, weight in self.dit.named_parameters()},
            **{f"text.{name}": _parameter(weight) for name, weight in text.items()},
        }
        self.flat = FlatParameters(named, device, dtype)
        self.text = TextTwin(
            {n.removeprefix("text."): p for n, p in named.items() if n.startswith("text.")}, device
        )
        self.metrics = torch.zeros(4, device=device)
        """Sums since the last report: loss, squared error of balls at high noise, at low noise,
        gradient."""

    def train(
        self,
        latents: Latents,
        plan: DiTPlan,
        seconds: float,
        *,
        max_steps: int | None = None,
        log: Callable[[str], None],
        save: Callable[[], None],
    ) -> int:
        """Trains for ``seconds`` of wall-clock time, compilation included; returns the steps."""
        muon = {f"dit.{name}": parts for name, parts in muon_matrices(self.dit).items()}
        optimiser = Optimiser(
            self.flat,
            betas=(0.9, 0.95),
            clip=plan.clip,
            weight_decay=plan.weight_decay,
            muon=muon,
        )
        if plan.compile:
            for block in self.dit.blocks:
                block.compile(dynamic=False)
        began = saved = told = time.monotonic()
        captured = captured_or_plain(
            lambda: self._step(latents, plan, optimiser), self.device, self._uncompile, log
        )
        self.metrics.zero_()
        log(f"dit: first steps and capture took {time.monotonic() - began:.1f} s")
        step = told_step = 0
        while True:
            now = time.monotonic()
            progress = (now - began) / seconds
            if max_steps is not None:
                progress = max(progress, step / max_steps)
            if progress >= 1:
                break
            factor = cosine(progress, step, plan.warm_up)
            optimiser.rate.fill_(plan.rate * factor)
            optimiser.muon_rate.fill_(plan.muon_rate * factor)
            optimiser.keep.fill_(min(plan.keep, (1 + step) / (10 + step)))
            captured()
            step += 1
            if step % 10 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            if now - told > 8:
                loss, high, low, norm = (self.metrics / (step - told_step)).tolist()
                self.metrics.zero_()
                speed = (step - told_step) / (now - told)
                log(
                    f"dit: {now - began:6.1f} s  step {step:6d}  {speed:6.1f}/s"
                    f"  loss {loss:.4f}  balls at high noise {high:.4f}, low {low:.4f}"
                    f"  gradient {norm:.2f}  skipped {int(optimiser.skipped)}"
                )
                told, told_step = now, step
            if now - saved > 60:
                save()
                saved = now
        passed, skipped = time.monotonic() - began, int(optimiser.skipped)
        log(f"dit: {step} steps in {passed:.1f} s, {skipped} skipped")
        del captured
        release()
        save()
        return step

    def _uncompile(self) -> None:
        for block in self.dit.blocks:
            block._compiled_call_impl = None

    def _step(self, latents: Latents, plan: DiTPlan, optimiser: Optimiser) -> None:
        self.flat.gradient.zero_()
        index_B = torch.randint(len(latents.tensor), (plan.batch,), device=self.device)
        loss, high, low = self.loss(latents, index_B, plan)
        loss.backward()
        norm = optimiser.step()
        seen = torch.stack((loss.detach(), high, low, norm))
        self.metrics += torch.nan_to_num(seen)

    def loss(
        self, latents: Latents, index_B: torch.Tensor, plan: DiTPlan
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rectified-flow loss of the frames that are not given; two figures to watch."""
        batch, device = len(index_B), self.device
        clean = latents.tensor[index_B].float()
        frames = clean.shape[2]
        sigma_B = self._noise_levels(batch, plan)
        time_B = sigma_B / (1 + sigma_B)
        time_B1111 = time_B[:, None, None, None, None]
        noise = torch.randn_like(clean)
        given_B = 1 + (torch.rand(batch, device=device) < plan.two_given).long()
        mask_BT = (torch.arange(frames, device=device) < given_B[:, None]).float()
        mask_B1T11 = mask_BT[:, None, :, None, None]
        noisy = torch.lerp(clean, noise, time_B1111)
        flow = self.dit(
            torch.lerp(noisy, clean, mask_B1T11),
            torch.lerp(time_B[:, None], torch.full_like(mask_BT, GIVEN_TIME), mask_BT),
            mask_B1T11.expand(-1, -1, -1, *clean.shape[3:]),
            self.dit.text_context(self._rows(latents, index_B, plan)),
        )
        wrong = (flow - (noise - clean)).square()
        touched = latents.world.touched(index_B) * (1 - mask_B1T11)
        weight = (1 - mask_B1T11) + plan.ball_weight * touched
        loss = (weight * wrong).sum() / (weight.sum() * clean.shape[1])
        with torch.no_grad():
            error_B = (touched * wrong).mean(1).sum((1, 2, 3)) / touched.sum((1, 2, 3, 4))
            error_B = error_B * time_B * time_B
            high = (sigma_B > 10).float()
            above = (error_B * high).sum() / high.sum().clamp(min=1)
            below = (error_B * (1 - high)).sum() / (1 - high).sum().clamp(min=1)
        return loss, above, below

    def _noise_levels(self, batch: int, plan: DiTPlan) -> torch.Tensor:
        """The sampler's own schedule, taken at random places that slant to high noise."""
        high, low = SIGMA_MAX ** (1 / _RHO), SIGMA_MIN ** (1 / _RHO)
        place = torch.rand(batch, device=self.device) ** plan.noise_slant
        return (high + place * (low - high)) ** _RHO

    def _rows(self, latents: Latents, index_B: torch.Tensor, plan: DiTPlan) -> torch.Tensor:
        ids, length_B = latents.ids[index_B], latents.length[index_B]
        batch, tokens = ids.shape
        struck = (torch.rand(batch, device=self.device) < plan.unknown_word)[:, None]
        which = (torch.rand(batch, device=self.device) * (length_B - 1)).long()[:, None]
        ids = torch.where(
            struck & (torch.arange(tokens, device=self.device) == which), UNKNOWN, ids
        )
        keep = torch.rand(batch, device=self.device) >= (plan.no_text if plan.text else 1.0)
        return self.text.rows(ids, length_B) * keep[:, None, None]


def _parameter(weight: torch.Tensor) -> nn.Parameter:
    return torch.nn.Parameter(weight.detach())


@torch.no_grad()
def encode_world(
    stage: VAEStage, world: World, seconds: float, *, batch: int = 32
) -> tuple[torch.Tensor, list[float], list[float]]:
    """Latents of as many scenes as ``seconds`` allow, and what normalised them.

    Returns:
        dtype of the networks, (N, 16, T, h, w); mean and standard deviation of each channel.
    """
    began = time.monotonic()
    mean, deviation = stage.statistics()
    centre = torch.tensor(mean, device=world.device)
    scale = torch.tensor(deviation, device=world.device)
    made = []
    for start in range(0, max(len(world) - batch, 0) + 1, batch):
        index_B = torch.arange(start, min(start + batch, len(world)), device=world.device)
        video, _ = world.video(index_B)
        raw = stage.whole.moments(video)[..., : len(mean)].float()
        made.append(((raw - centre) / scale).permute(0, 4, 1, 2, 3).to(stage.dtype).contiguous())
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        if time.monotonic() - began > seconds:
            break
    return torch.cat(made), mean, deviation
