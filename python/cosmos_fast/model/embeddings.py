"""What the network knows of time and actions, as vectors; axes as in dit.py, A action inputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from cosmos_fast.config import DiTConfig

_TIME_NORM_EPS = 1e-6


class ActionContext(NamedTuple):
    """What a chunk of actions adds to every latent frame's time embedding; constant over a run."""

    time_B1D: torch.Tensor
    """Network dtype: added to the sinusoid, before its norm."""
    modulation_B1E: torch.Tensor
    """Network dtype: added to what all modulations share."""


class ActionMLP(nn.Module):
    """The only linears of the network with a bias, and the only GELU in its tanh form."""

    def __init__(self, config: DiTConfig, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.action_inputs, config.action_hidden)
        self.fc2 = nn.Linear(config.action_hidden, outputs)

    def forward(self, x_BA: torch.Tensor) -> torch.Tensor:
        out_BE: torch.Tensor = self.fc2(F.gelu(self.fc1(x_BA), approximate="tanh"))
        return out_BE


class ActionEmbedding(nn.Module):
    """A chunk of actions as two vectors (NVIDIA ``ActionConditionedMinimalV1LVGDiT``)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.to_time = ActionMLP(config, config.width)
        self.to_modulation = ActionMLP(config, 3 * config.width)

    def forward(self, actions_BA: torch.Tensor) -> ActionContext:
        actions_BA = actions_BA.to(self.to_time.fc1.weight.dtype)
        return ActionContext(
            self.to_time(actions_BA)[:, None], self.to_modulation(actions_BA)[:, None]
        )


class TimeEmbedding(nn.Module):
    """Sinusoid of t, and what every modulation is made of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.linear_2 = nn.Linear(width, 3 * width, bias=False)
        self.norm = nn.RMSNorm(width, eps=_TIME_NORM_EPS)

    def forward(
        self, t_BT: torch.Tensor, action: ActionContext | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns:
            SiLU of the normed sinusoid (B, T, D), the input of every AdaLN bottleneck, and the
            part that all modulations share (B, T, 3·D).
        """
        dtype = self.linear_1.weight.dtype
        sinusoid_BTD = _sinusoid(t_BT.to(dtype), self.linear_1.in_features).to(dtype)
        shared_BTE = self.linear_2(F.silu(self.linear_1(sinusoid_BTD)))
        if action is not None:
            sinusoid_BTD = sinusoid_BTD + action.time_B1D
            shared_BTE = shared_BTE + action.modulation_B1E
        # In float32, and not nn.RMSNorm's own forward: one rounding on every torch and device.
        normed_BTD = F.rms_norm(sinusoid_BTD.float(), self.norm.normalized_shape, eps=self.norm.eps)
        return F.silu((normed_BTD * self.norm.weight.float()).to(dtype)), shared_BTE


class Modulation(nn.Module):
    """AdaLN through a bottleneck: ``parts`` vectors of width D per latent frame."""

    def __init__(self, config: DiTConfig, parts: int) -> None:
        super().__init__()
        self.down = nn.Linear(config.width, config.adaln_rank, bias=False)
        self.up = nn.Linear(config.adaln_rank, parts * config.width, bias=False)

    def forward(self, time_BTD: torch.Tensor, shared_BTE: torch.Tensor) -> torch.Tensor:
        own_BTE: torch.Tensor = self.up(self.down(time_BTD))
        return own_BTE + shared_BTE[..., : own_BTE.shape[-1]]


def _sinusoid(t_BT: torch.Tensor, width: int) -> torch.Tensor:
    """Cosines, then sines, of t at frequencies 1 to 1 / 10000: float32 (B, T, width)."""
    half = width // 2
    exponents = torch.arange(half, device=t_BT.device, dtype=torch.float32) / half
    angles_BTF = t_BT.float()[..., None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat((angles_BTF.cos(), angles_BTF.sin()), dim=-1)
