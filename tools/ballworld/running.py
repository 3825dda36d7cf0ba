"""The three networks at work, many scenes at a time, through the package's own sampler."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tools.ballworld.networks import RAW_VAE, running_dit
from tools.ballworld.text import WIDTH, TextTwin
from tools.ballworld.words import token_table

from cosmos_fast.ballworld.scene import NUM_FRAMES, SIZE
from cosmos_fast.model.vae import VAE
from cosmos_fast.sampling import adams_bashforth, denoiser, guided, reference_noise, sigmas
from cosmos_fast.types import (
    LATENT_CHANNELS,
    SPATIAL_STRIDE,
    TEXT_ROWS,
    Conditioning,
    latent_frames,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cosmos_fast.ballworld.scene import Scenes


@dataclass(frozen=True)
class Settings:
    """How to generate."""

    num_steps: int = 16
    guidance: float = 1.0
    given: int = 1
    """Pixel frames given: 1 or 5."""
    text: bool = True
    """False gives no prompt at all."""
    seed: int = 0
    """Scene n starts from the noise of seed + n."""


class Networks:
    """Transformer, VAE and text encoder of the ball world, in the dtype they were trained in."""

    def __init__(
        self,
        dit: Mapping[str, torch.Tensor],
        text: Mapping[str, torch.Tensor],
        vae: Mapping[str, torch.Tensor],
        statistics: tuple[Sequence[float], Sequence[float]],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        mean, deviation = statistics
        config = dataclasses.replace(
            RAW_VAE, latents_mean=tuple(mean), latents_std=tuple(deviation)
        )
        self.device, self.dtype = device, dtype
        self.vae = VAE(config).to(device, dtype).eval().requires_grad_(False)
        self.vae.load_state_dict(vae)
        self.dit = running_dit(device, dtype)
        self.dit.load_state_dict(dit)
        weights = {name: tensor.to(device, dtype) for name, tensor in text.items()}
        self.text = TextTwin(weights, device)  # type: ignore[arg-type]

    @torch.no_grad()
    def generate(
        self, videos: np.ndarray, scenes: Scenes, settings: Settings, *, batch: int = 16
    ) -> np.ndarray:
        """Predicts videos from their first frames.

        Args:
            videos: uint8 (N, at least ``settings.given``, 96, 160, 3).
            scenes: the N scenes, for their prompts.

        Returns:
            uint8 (N, 33, 96, 160, 3).
        """
        made = [
            self._pixels(
                self._latents(
                    videos[start : start + batch],
                    scenes[start : start + batch],
                    dataclasses.replace(settings, seed=settings.seed + start),
                )
            )
            for start in range(0, len(scenes), batch)
        ]
        return np.concatenate(made)

    @torch.no_grad()
    def reconstruct(self, videos: np.ndarray, *, batch: int = 8) -> np.ndarray:
        """Videos through the VAE and back: uint8, same shape."""
        made = [
            self._pixels(self.vae.encode_whole(self._video(videos[start : start + batch])))
            for start in range(0, len(videos), batch)
        ]
        return np.concatenate(made)

    def _latents(self, videos: np.ndarray, scenes: Scenes, settings: Settings) -> torch.Tensor:
        number, frames = len(scenes), latent_frames(NUM_FRAMES)
        given = self.vae.encode_whole(self._video(videos[:, : settings.given]))
        conditioning = Conditioning.from_first_frames(given, frames)
        nothing = torch.zeros((1, TEXT_ROWS, WIDTH), device=self.device, dtype=self.dtype)
        rows = self._rows(scenes) if settings.text else nothing
        predictors = []
        for some_rows in (rows, nothing):
            context = self.dit.text_context(some_rows)

            def velocity(
                x: torch.Tensor,
                time: torch.Tensor,
                mask: torch.Tensor,
                _step: int,
                context: object = context,
            ) -> torch.Tensor:
                return self.dit(x, time, mask, context)

            predictors.append(denoiser(velocity, conditioning))
        noise = torch.cat(
            [
                reference_noise(
                    (
                        1,
                        LATENT_CHANNELS,
                        frames,
                        SIZE.height // SPATIAL_STRIDE,
                        SIZE.width // SPATIAL_STRIDE,
                    ),
                    settings.seed + n,
                )
                for n in range(number)
            ]
        ).to(self.device)
        levels = sigmas(settings.num_steps)
        conditional, unconditional = predictors
        guidance = settings.guidance if settings.text else 0.0
        predict = guided(conditional, unconditional, guidance)
        return adams_bashforth(predict, noise * levels[0], levels)

    def _rows(self, scenes: Scenes) -> torch.Tensor:
        ids, lengths = (torch.from_numpy(part).to(self.device) for part in token_table(scenes))
        rows = self.text.rows(ids, lengths)
        return torch.nn.functional.pad(rows, (0, 0, 0, TEXT_ROWS - rows.shape[1]))

    def _video(self, videos: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(videos)).to(self.device)
        return pixels.permute(0, 4, 1, 2, 3).to(self.dtype) / 127.5 - 1

    def _pixels(self, latents: torch.Tensor, *, batch: int = 4) -> np.ndarray:
        made = []
        for start in range(0, len(latents), batch):
            video = self.vae.decode_whole(latents[start : start + batch])
            scaled = ((video + 1) * 127.5).clamp(0, 255) + 0.5
            made.append(scaled.permute(0, 2, 3, 4, 1).to(torch.uint8).cpu().numpy())
        return np.concatenate(made)
