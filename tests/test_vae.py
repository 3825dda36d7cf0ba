"""The VAE against diffusers' AutoencoderKLWan, and its chunked forms against the whole ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import AutoencoderKLWan

from cosmos_fast.config import VAEConfig
from cosmos_fast.errors import InputError
from cosmos_fast.model.vae import VAE

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIGS = {
    "released_levels": VAEConfig(base_dim=16),
    "odd_levels": VAEConfig(
        base_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, False)
    ),
}


def network(config: VAEConfig) -> VAE:
    """A network whose latents and pixels vary by about one."""
    torch.manual_seed(3)
    vae = VAE(config)
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if name.endswith("gamma"):
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
            else:
                weight.normal_(std=weight[0].numel() ** -0.5)
    return vae.eval()


def theirs(vae: VAE) -> AutoencoderKLWan:
    config = vae.config
    other = AutoencoderKLWan(
        base_dim=config.base_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        attn_scales=[],
        temperal_downsample=list(config.temporal_downsample),
    ).eval()
    other.load_state_dict(vae.state_dict(), strict=True)
    return other


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture(scope="module")
def vae() -> VAE:
    return network(CONFIGS["released_levels"])


def statistics(config: VAEConfig) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, 16, 1, 1, 1)
    return (
        torch.tensor(config.latents_mean, dtype=torch.float64).view(shape),
        torch.tensor(config.latents_std, dtype=torch.float64).view(shape),
    )


@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.inference_mode()
def test_encode_equals_diffusers(
    vae: VAE, frames: int, measured: Callable[[str], None]
) -> None:
    video = torch.rand(2, 3, frames, 32, 48) * 2 - 1
    mean, std = statistics(vae.config)
    expected = (theirs(vae).encode(video).latent_dist.mean.double() - mean) / std
    latents = vae.encode(video)
    error = relative_error(latents, expected)
    measured(f"relative error {error:.1e}")
    assert latents.dtype == torch.float32
    assert latents.shape == (2, 16, (frames - 1) // 4 + 1, 4, 6)
    assert error <= 1e-5


@pytest.mark.parametrize("frames", [1, 2, 4])
@torch.inference_mode()
def test_decode_equals_diffusers(
    vae: VAE, frames: int, measured: Callable[[str], None]
) -> None:
    latents = torch.randn(2, 16, frames, 4, 6)
    mean, std = statistics(vae.config)
    expected = theirs(vae).decode((latents * std + mean).float()).sample
    video = vae.decode(latents)
    error = relative_error(video.clamp(-1, 1), expected)
    measured(f"relative error {error:.1e}")
    assert video.dtype == torch.float32
    assert video.shape == (2, 3, 4 * frames - 3, 32, 48)
    assert (expected.abs() < 1).float().mean() > 0.5
    assert error <= 1e-5
