"""A VAE of made-up weights, the same in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cosmos_fast.model.vae import VAE

if TYPE_CHECKING:
    from cosmos_fast.config import VAEConfig


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
