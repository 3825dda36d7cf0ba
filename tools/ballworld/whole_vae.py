"""The VAE's whole-sequence passes for training: the package's weights, in the fastest order.

The package's VAE carries what streaming needs. Here nothing streams: activations stay as
(B, T, H, W, C) with channels innermost, norm, SiLU and the missing past are one kernel, and a
causal convolution is a 3-D one or a 2-D one over three stacked frames, whichever the device does
faster. A test holds these passes and the package's together.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, cast

import torch
import torch.nn.functional as F
from tools.ballworld.norm_silu import norm_silu, norm_silu_reference

if TYPE_CHECKING:
    from torch import nn

    from cosmos_fast.model.vae import VAE
    from cosmos_fast.model.vae_layers import (
        CausalConv3d,
        Downsample,
        FrameAttention,
        MidBlock,
        ResidualBlock,
        Upsample,
    )

Convolution = Literal["3d", "2d"]
_LEAST_CHANNELS: Final = 8


class WholeVAE:
    """Differentiable passes over whole clips, with the weights of a :class:`VAE`."""

    def __init__(self, vae: VAE) -> None:
        self.vae = vae
        self.convolution: dict[int, Convolution] = {}
        """Which form convolutions of so many input channels take; "3d" where nothing is said."""
        self.norm_silu = norm_silu

    def simplify(self) -> None:
        """Plain torch from here on."""
        self.norm_silu = norm_silu_reference
        self.convolution = dict.fromkeys(self.convolution, "3d")

    def moments(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        """Mean and log-variance of the posterior, not normalised: (B, T', h, w, 32)."""
        encoder = self.vae.encoder
        video_BTHWC = video_BCTHW.permute(0, 2, 3, 4, 1).to(self.vae.dtype)
        x = self._causal(encoder.conv_in, _with_past(encoder.conv_in, video_BTHWC))
        for layer in encoder.down_blocks:
            if hasattr(layer, "resample"):
                x = self._down(cast("Downsample", layer), x)
            else:
                x = self._residual(cast("ResidualBlock", layer), x)
        x = self._middle(encoder.mid_block, x)
        x = self._normed_causal(encoder.norm_out, encoder.conv_out, x)
        return _pointwise(self.vae.quant_conv, x)

    def decoded(self, z_BTHWC: torch.Tensor) -> torch.Tensor:
        """Video of latents that are not normalised: (B, 3, T, H, W), dtype of the weights."""
        decoder = self.vae.decoder
        x = _pointwise(self.vae.post_quant_conv, z_BTHWC.to(self.vae.dtype))
        x = self._causal(decoder.conv_in, _with_past(decoder.conv_in, x))
        x = self._middle(decoder.mid_block, x)
        for block in decoder.up_blocks:
            for layer in block.resnets:
                x = self._residual(cast("ResidualBlock", layer), x)
            for layer in block.upsamplers:
                x = self._up(cast("Upsample", layer), x)
        x = self._normed_causal(decoder.norm_out, decoder.conv_out, x)
        return x.permute(0, 4, 1, 2, 3)

    def _residual(self, block: ResidualBlock, x: torch.Tensor) -> torch.Tensor:
        y = self._normed_causal(block.norm1, block.conv1, x)
        y = self._normed_causal(block.norm2, block.conv2, y)
        return y + (x if block.conv_shortcut is None else _pointwise(block.conv_shortcut, x))

    def _normed_causal(self, norm: nn.Module, conv: CausalConv3d, x: torch.Tensor) -> torch.Tensor:
        # A single frame has no past: its convolution is the youngest tap alone.
        history = conv.history if x.shape[1] > 1 else 0
        return self._causal(conv, self.norm_silu(x, cast("torch.Tensor", norm.gamma), history))

    def _causal(self, conv: CausalConv3d, x_BTHWC: torch.Tensor) -> torch.Tensor:
        """``x`` brings the past frames with it, or is a single frame."""
        weight, bias = conv.weight, cast("torch.Tensor", conv.bias)
        inputs, outputs = weight.shape[1], weight.shape[0]
        if inputs < _LEAST_CHANNELS:  # tensor cores want at least so many
            x_BTHWC = F.pad(x_BTHWC, (0, _LEAST_CHANNELS - inputs))
            weight = F.pad(weight, (0, 0) * 3 + (0, _LEAST_CHANNELS - inputs))
        if outputs < _LEAST_CHANNELS:
            weight = F.pad(weight, (0, 0) * 4 + (0, _LEAST_CHANNELS - outputs))
            bias = F.pad(bias, (0, _LEAST_CHANNELS - outputs))
        frames = x_BTHWC.shape[1]
        if frames == 1:
            y = _pictures_convolved(x_BTHWC, weight[:, :, -1], bias)
        elif self.convolution.get(inputs, "3d") == "2d":
            stacked = torch.cat([x_BTHWC[:, tap : frames - 2 + tap] for tap in range(3)], dim=-1)
            weight = weight.permute(0, 2, 1, 3, 4).flatten(1, 2)
            y = _pictures_convolved(stacked, weight, bias)
        else:
            x_BCTHW = x_BTHWC.permute(0, 4, 1, 2, 3)
            y = F.conv3d(x_BCTHW, weight, bias, padding=(0, 1, 1)).permute(0, 2, 3, 4, 1)
        return y[..., :outputs] if outputs < _LEAST_CHANNELS else y

    def _middle(self, block: MidBlock, x: torch.Tensor) -> torch.Tensor:
        x = self._residual(cast("ResidualBlock", block.resnets[0]), x)
        x = _attended(cast("FrameAttention", block.attentions[0]), x)
        return self._residual(cast("ResidualBlock", block.resnets[1]), x)

    def _down(self, layer: Downsample, x_BTHWC: torch.Tensor) -> torch.Tensor:
        conv = cast("nn.Conv2d", layer.resample[1])
        batch = x_BTHWC.shape[0]
        pictures = F.pad(x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2), (0, 1, 0, 1))
        y = F.conv2d(pictures, conv.weight, conv.bias, stride=2)
        x_BTHWC = y.permute(0, 2, 3, 1).unflatten(0, (batch, -1))
        if layer.time_conv is None or x_BTHWC.shape[1] == 1:
            return x_BTHWC
        conv_3d = layer.time_conv
        late = F.conv3d(
            x_BTHWC.permute(0, 4, 1, 2, 3), conv_3d.weight, conv_3d.bias, stride=(2, 1, 1)
        )
        return torch.cat((x_BTHWC[:, :1], late.permute(0, 2, 3, 4, 1)), dim=1)

    def _up(self, layer: Upsample, x_BTHWC: torch.Tensor) -> torch.Tensor:
        if layer.time_conv is not None and x_BTHWC.shape[1] > 1:
            x_BTHWC = self._doubled(layer.time_conv, x_BTHWC)
        conv = cast("nn.Conv2d", layer.resample[1])
        pictures = x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
        wide = F.interpolate(pictures, scale_factor=2.0, mode="nearest")
        y = F.conv2d(wide, conv.weight, conv.bias, padding=1)
        return y.permute(0, 2, 3, 1).unflatten(0, (x_BTHWC.shape[0], -1))

    def _doubled(self, conv: CausalConv3d, x_BTHWC: torch.Tensor) -> torch.Tensor:
        tail = _with_past(conv, x_BTHWC[:, 1:]).permute(0, 4, 1, 2, 3)
        pairs = F.conv3d(tail, conv.weight, conv.bias).permute(0, 2, 3, 4, 1)
        batch, frames, height, width, _ = pairs.shape
        doubled = (
            pairs.reshape(batch, frames, height, width, 2, -1)
            .permute(0, 1, 4, 2, 3, 5)
            .reshape(batch, 2 * frames, height, width, -1)
        )
        return torch.cat((x_BTHWC[:, :1], doubled), dim=1)

    def choose_convolutions(self, batch: int, frames: int, height: int, width: int) -> str:
        """Times both forms where most of the work is, keeps the faster; returns a line to log."""
        told = []
        for shrink, channels in ((1, 16), (2, 32), (4, 64)):
            x = torch.randn(
                (batch, frames + 2, height // shrink, width // shrink, channels),
                device=self.vae.quant_conv.weight.device,
                dtype=self.vae.dtype,
                requires_grad=True,
            )
            conv = _block_of(self.vae, channels)
            taken: dict[Convolution, float] = {}
            for form in ("3d", "2d"):
                self.convolution[channels] = form
                taken[form] = self._seconds(conv, x)
            self.convolution[channels] = min(taken, key=lambda form: taken[form])
            told.append(f"{channels}: " + ", ".join(f"{f} {s * 1e3:.2f}" for f, s in taken.items()))
        return "ms a convolution, forward and backward, by channels: " + "; ".join(told)

    def _seconds(self, conv: CausalConv3d, x: torch.Tensor) -> float:
        def once() -> None:
            y = self._causal(conv, x)
            torch.autograd.grad(y, (x, conv.weight), torch.ones_like(y))

        once()
        once()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(4):
            once()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / 4


def _block_of(vae: VAE, channels: int) -> CausalConv3d:
    for name, module in vae.decoder.named_modules():
        if name.endswith("conv2") and module.weight.shape[1] == channels:
            return cast("CausalConv3d", module)
    raise LookupError(f"no residual block of {channels} channels")


def _with_past(conv: CausalConv3d, x_BTHWC: torch.Tensor) -> torch.Tensor:
    if x_BTHWC.shape[1] == 1 and conv.kernel_size[1] == 3:
        return x_BTHWC
    return F.pad(x_BTHWC, (0, 0, 0, 0, 0, 0, conv.history, 0))


def _pointwise(conv: CausalConv3d, x_BTHWC: torch.Tensor) -> torch.Tensor:
    return F.linear(x_BTHWC, conv.weight.flatten(1), conv.bias)


def _pictures_convolved(
    x_BTHWC: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    pictures = x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
    y = F.conv2d(pictures, weight, bias, padding=1)
    return y.permute(0, 2, 3, 1).unflatten(0, (x_BTHWC.shape[0], -1))


def _attended(block: FrameAttention, x_BTHWC: torch.Tensor) -> torch.Tensor:
    channels = x_BTHWC.shape[-1]
    gain = block.norm.gamma.float().flatten() * channels**0.5
    unit = F.normalize(x_BTHWC.float(), dim=-1, eps=1e-12)
    y_FNC = (unit * gain).to(x_BTHWC.dtype).flatten(2, 3).flatten(0, 1)
    q, k, v = F.linear(y_FNC, block.to_qkv.weight.flatten(1), block.to_qkv.bias).chunk(3, dim=-1)
    attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    out = F.linear(attended, block.proj.weight.flatten(1), block.proj.bias)
    return x_BTHWC + out.reshape(x_BTHWC.shape)
