"""The ball world's two training stages, fed with the pusher's clips and actions."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tools.ballworld.descent import FlatParameters
from tools.ballworld.dit_stage import GIVEN_TIME, DiTPlan, DiTStage
from tools.ballworld.networks import training_vae
from tools.ballworld.vae_stage import ClipPlan, VAEStage
from tools.ballworld.whole_vae import WholeVAE
from tools.pusherworld.networks import CHUNK, DIT, RAW_VAE, SIDE, training_dit

if TYPE_CHECKING:
    from tools.pusherworld.clips import Clips


class PusherVAEStage(VAEStage):
    """As the ball world's, on crops of the pusher's pictures."""

    world: Clips  # type: ignore[assignment]

    def __init__(self, clips: Clips, dtype: torch.dtype) -> None:
        self.world, self.device, self.dtype = clips, clips.device, dtype
        self.vae = training_vae(clips.device, RAW_VAE)
        self.flat = FlatParameters(dict(self.vae.named_parameters()), clips.device, dtype)
        self.whole = WholeVAE(self.vae)
        self.metrics = torch.zeros(5, device=clips.device)

    def _clips(self, plan: ClipPlan) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.device
        index_B = torch.randint(len(self.world), (plan.batch,), device=device)
        start_B = torch.randint(CHUNK + 2 - plan.frames, (plan.batch,), device=device)
        frame_BT = start_B[:, None] + torch.arange(plan.frames, device=device)
        video, near = self.world.video(index_B, frame_BT)
        if plan.width == SIDE:
            return video, near
        # One corner for the whole batch: a slice that a CUDA graph can hold has to be gathered.
        left, top = (torch.rand(2, device=device) * (SIDE - plan.width)).long()
        columns = left + torch.arange(plan.width, device=device)
        rows = top + torch.arange(plan.width, device=device)
        return (
            video[..., rows, :][..., columns].contiguous(),
            near[..., rows, :][..., columns].contiguous(),
        )


@dataclass(frozen=True)
class ActionLatents:
    """Encoded windows to train on."""

    clips: Clips
    tensor: torch.Tensor
    """dtype of the networks, (N, 16, 4, 12, 12), normalised; row n is window n."""
    touched: torch.Tensor
    """bool (N, 1, 4, 12, 12)."""
    actions: torch.Tensor
    """float32 (N, 12, 2)."""


class PusherDiTStage(DiTStage):
    """As the ball world's, with actions in the place of text."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.dit = training_dit(device)
        named = {f"dit.{name}": weight for name, weight in self.dit.named_parameters()}
        self.flat = FlatParameters(named, device, dtype)
        self.metrics = torch.zeros(4, device=device)

    def loss(
        self,
        latents: ActionLatents,  # type: ignore[override]
        index_B: torch.Tensor,
        plan: DiTPlan,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rectified-flow loss of the three latent frames that are not given."""
        batch, device = len(index_B), self.device
        clean = latents.tensor[index_B].float()
        frames = clean.shape[2]
        sigma_B = self._noise_levels(batch, plan)
        time_B = sigma_B / (1 + sigma_B)
        noise = torch.randn_like(clean)
        mask_BT = (torch.arange(frames, device=device) < 1).float().expand(batch, -1)
        mask_B1T11 = mask_BT[:, None, :, None, None]
        noisy = torch.lerp(clean, noise, time_B[:, None, None, None, None])
        # Any number of zero rows of text adds nothing, so one does for 512.
        nothing = torch.zeros((1, 1, DIT.text_dim), device=device, dtype=self.dtype)
        flow = self.dit(
            torch.lerp(noisy, clean, mask_B1T11),
            torch.lerp(time_B[:, None], torch.full_like(mask_BT, GIVEN_TIME), mask_BT),
            mask_B1T11.expand(-1, -1, -1, *clean.shape[3:]),
            self.dit.text_context(nothing),
            action=self.dit.action_context(latents.actions[index_B]),
        )
        wrong = (flow - (noise - clean)).square()
        touched = latents.touched[index_B].float() * (1 - mask_B1T11)
        weight = (1 - mask_B1T11) + plan.ball_weight * touched
        loss = (weight * wrong).sum() / (weight.sum() * clean.shape[1])
        with torch.no_grad():
            total = touched.sum((1, 2, 3, 4)).clamp(min=1)
            error_B = (touched * wrong).mean(1).sum((1, 2, 3)) / total * time_B * time_B
            high = (sigma_B > 10).float()
            above = (error_B * high).sum() / high.sum().clamp(min=1)
            below = (error_B * (1 - high)).sum() / (1 - high).sum().clamp(min=1)
        return loss, above, below


@torch.no_grad()
def encode(
    stage: PusherVAEStage, clips: Clips, seconds: float, *, batch: int = 64, limit: int = 10**9
) -> tuple[ActionLatents, list[float], list[float]]:
    """Latents of as many windows as ``seconds`` allow, and what normalised them."""
    began = time.monotonic()
    mean, deviation = stage.statistics()
    centre = torch.tensor(mean, device=clips.device)
    scale = torch.tensor(deviation, device=clips.device)
    made, touched, actions = [], [], []
    for start in range(0, min(len(clips), limit), batch):
        index_B = torch.arange(start, min(start + batch, len(clips)), device=clips.device)
        video, _ = clips.video(index_B)
        raw = stage.whole.moments(video)[..., : len(mean)].float()
        made.append(((raw - centre) / scale).permute(0, 4, 1, 2, 3).to(stage.dtype).contiguous())
        touched.append(clips.touched(index_B) > 0)
        actions.append(clips.chunk(index_B))
        if clips.device.type == "cuda":
            torch.cuda.synchronize()
        if time.monotonic() - began > seconds:
            break
    return (
        ActionLatents(clips, torch.cat(made), torch.cat(touched), torch.cat(actions)),
        mean,
        deviation,
    )
