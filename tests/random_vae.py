"""A VAE of made-up weights, the same in every process, and operations that fuse its decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cosmos_fast.model.ops import Ops
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


class Everywhere(Ops):
    """Fuses on any device what it has kernels for."""

    def decodes(self, *tensors: torch.Tensor) -> bool:
        return self.fuses_decoder


def everywhere(given: Ops, passes: list[int]) -> Ops:
    """``given`` of a decoder that fuses, whatever runs it.

    Args:
        passes: gets an entry for every pass between convolutions.
    """

    def counted(*arguments: Any, **options: Any) -> Any:
        passes.append(1)
        return given.rms_silu(*arguments, **options)

    fields = {name: getattr(given, name) for name in given.__dataclass_fields__}
    names = {**given.names, "rms_silu": "counted", "upsample": "counted"}
    return Everywhere(**{**fields, "rms_silu": counted, "names": names})
