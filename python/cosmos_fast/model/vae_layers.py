"""The layers of the VAE, causal in time: each sees the frames before its chunk in :class:`Past`.

Axes: B batch, C channels, T frames, H W rows and columns (of pixels, latents or features between).
Parameter names are those of diffusers' ``AutoencoderKLWan``.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from cosmos_fast.types import TEMPORAL_STRIDE

if TYPE_CHECKING:
    from cosmos_fast.config import VAEConfig

_NORM_EPS = 1e-12
"""Shortest channel vector that the norms divide by."""


class Past:
    """The last frames that each causal convolution of one pass has seen.

    A new one starts a clip; passing it on from chunk to chunk makes the chunks one clip. Whether
    a clip comes whole or in chunks does not change a single operation on its frames.
    """

    def __init__(self) -> None:
        self._frames: dict[nn.Module, torch.Tensor] = {}
        self._begun: set[nn.Module] = set()

    def begins(self, module: nn.Module) -> bool:
        """Whether ``module`` asks for the first time: its chunk holds the clip's first frame."""
        first = module not in self._begun
        self._begun.add(module)
        return first

    def before(self, module: nn.Module, x_BCTHW: torch.Tensor, frames: int) -> torch.Tensor:
        """``x`` with the ``frames`` frames in front that came before it, zeros at first."""
        earlier = self._frames.get(module)
        if earlier is None:
            extended = F.pad(x_BCTHW, (0, 0, 0, 0, frames, 0))
        else:
            extended = torch.cat((earlier, x_BCTHW), dim=2)
        self.keep(module, extended, frames)
        return extended

    def keep(self, module: nn.Module, x_BCTHW: torch.Tensor, frames: int) -> None:
        """Remembers the last ``frames`` frames, as a copy: a view would hold the whole chunk."""
        self._frames[module] = x_BCTHW[:, :, -frames:].clone()


class CausalConv3d(nn.Conv3d):
    """A convolution over time and space that sees no later frame."""

    def __init__(self, channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        spatial = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(channels, out_channels, kernel, padding=spatial)
        self.history = kernel[0] - 1

    def forward(self, x_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:  # type: ignore[override]
        if self.history:
            x_BCTHW = past.before(self, x_BCTHW, self.history)
        small = x_BCTHW.shape[2] <= self.history + TEMPORAL_STRIDE
        if small and x_BCTHW.device.type == "cpu" and x_BCTHW.dtype == torch.float32:
            return self._by_windows(x_BCTHW)
        return F.conv3d(
            x_BCTHW, _channels_last(self.weight), self.bias, padding=cast("Any", self.padding)
        )

    def _by_windows(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """The same sums as a convolution over pictures, the frames of a window side by side.

        On a CPU, torch's float32 convolution over one short clip takes eight times as long.
        """
        windows = x_BCTHW.unfold(2, self.history + 1, 1)  # (B, C, T, H, W, history + 1)
        windows_FCHW = windows.permute(0, 2, 1, 5, 3, 4).flatten(2, 3).flatten(0, 1)
        y_FCHW = F.conv2d(windows_FCHW, self.weight.flatten(1, 2), self.bias, padding="same")
        return _as_clip(y_FCHW, x_BCTHW.shape[0])


class RMSNorm(nn.Module):
    """Scales the channel vector of each position to length √C, then by ``gamma``."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * axes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        square = wide.square().sum(1, keepdim=True).clamp_min(_NORM_EPS**2)
        gain = self.gamma.float() * math.sqrt(x.shape[1])
        return (wide * square.rsqrt() * gain).to(x.dtype)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels, axes=3)
        self.conv1 = CausalConv3d(channels, out_channels, (3, 3, 3))
        self.norm2 = RMSNorm(out_channels, axes=3)
        self.conv2 = CausalConv3d(out_channels, out_channels, (3, 3, 3))
        self.conv_shortcut = (
            CausalConv3d(channels, out_channels, (1, 1, 1)) if channels != out_channels else None
        )

    def forward(self, x_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:
        y_BCTHW = self.conv1(F.silu(self.norm1(x_BCTHW)), past)
        y_BCTHW = self.conv2(F.silu(self.norm2(y_BCTHW)), past)
        shortcut = x_BCTHW if self.conv_shortcut is None else self.conv_shortcut(x_BCTHW, past)
        return cast("torch.Tensor", y_BCTHW + shortcut)


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame; frames do not mix."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        frames_FCHW = _as_pictures(x_BCTHW)
        # Rows of C values side by side, whatever form the pictures have: for others torch has no
        # kernel without a matrix of all pairs, which at 704 x 1280 took 2.2 GiB of an H200.
        qkv_FNC = self.to_qkv(self.norm(frames_FCHW)).flatten(2).transpose(1, 2).contiguous()
        q, k, v = (part[:, None] for part in qkv_FNC.chunk(3, dim=2))
        attended_FNC = F.scaled_dot_product_attention(q, k, v)[:, 0]
        y_FCHW = self.proj(attended_FNC.transpose(1, 2).reshape(frames_FCHW.shape))
        return x_BCTHW + _as_clip(y_FCHW, x_BCTHW.shape[0])


class MidBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels)])

    def forward(self, x_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:
        x_BCTHW = self.attentions[0](self.resnets[0](x_BCTHW, past))
        return cast("torch.Tensor", self.resnets[1](x_BCTHW, past))


class Downsample(nn.Module):
    """Halves rows and columns, and frames too where ``in_time``: 1 + 2 n frames become 1 + n."""

    def __init__(self, channels: int, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        )
        self.time_conv = (
            nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if in_time else None
        )

    def forward(self, x_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:
        pad, convolution = cast("tuple[nn.ZeroPad2d, nn.Conv2d]", tuple(self.resample))
        halved_FCHW = F.conv2d(
            pad(_as_pictures(x_BCTHW)),
            _channels_last(convolution.weight),
            convolution.bias,
            stride=2,
        )
        x_BCTHW = _as_clip(halved_FCHW, x_BCTHW.shape[0])
        if self.time_conv is None:
            return x_BCTHW
        if not past.begins(self):
            return cast("torch.Tensor", self.time_conv(past.before(self, x_BCTHW, 1)))
        past.keep(self, x_BCTHW, 1)
        head = x_BCTHW[:, :, :1]  # the clip's first frame stays as it is
        if x_BCTHW.shape[2] == 1:
            return head
        return torch.cat((head, self.time_conv(x_BCTHW)), dim=2)


class Upsample(nn.Module):
    """Doubles rows and columns, and frames too where ``in_time``: 1 + n frames become 1 + 2 n."""

    def __init__(self, channels: int, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
        )
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if in_time else None

    def forward(self, x_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:
        if self.time_conv is not None:
            x_BCTHW = self._doubled(x_BCTHW, past)
        return _as_clip(self.resample(_as_pictures(x_BCTHW)), x_BCTHW.shape[0])

    def _doubled(self, x_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:
        assert self.time_conv is not None
        # The clip's first frame is neither doubled nor part of what the convolution remembers.
        single = 1 if past.begins(self) else 0
        head, tail = x_BCTHW[:, :, :single], x_BCTHW[:, :, single:]
        if tail.shape[2] == 0:
            return head
        batch, channels, frames, height, width = tail.shape
        pairs = self.time_conv(tail, past).reshape(batch, 2, channels, frames, height, width)
        doubled = torch.stack((pairs[:, 0], pairs[:, 1]), dim=3).flatten(2, 3)
        return torch.cat((head, doubled), dim=2)


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * factor for factor in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(3, widths[0], (3, 3, 3))
        layers: list[nn.Module] = []
        for level, (width, out_width) in enumerate(pairwise(widths)):
            for _ in range(config.num_res_blocks):
                layers.append(ResidualBlock(width, out_width))
                width = out_width
            if level < len(config.temporal_downsample):
                layers.append(Downsample(width, config.temporal_downsample[level]))
        self.down_blocks = nn.ModuleList(layers)
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = RMSNorm(widths[-1], axes=3)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_dim, (3, 3, 3))

    def forward(self, x_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:
        x_BCTHW = self.conv_in(x_BCTHW, past)
        for layer in self.down_blocks:
            x_BCTHW = layer(x_BCTHW, past)
        x_BCTHW = self.mid_block(x_BCTHW, past)
        return cast("torch.Tensor", self.conv_out(F.silu(self.norm_out(x_BCTHW)), past))


class UpBlock(nn.Module):
    def __init__(self, width: int, out_width: int, blocks: int, upsample: Upsample | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(out_width if index else width, out_width) for index in range(blocks)
        )
        self.upsamplers = nn.ModuleList([] if upsample is None else [upsample])

    def forward(self, x_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x_BCTHW = layer(x_BCTHW, past)
        return x_BCTHW


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * factor for factor in reversed(config.dim_mult)]
        in_time = config.temporal_downsample[::-1]
        self.conv_in = CausalConv3d(config.z_dim, widths[0], (3, 3, 3))
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        width = widths[0]
        for level, out_width in enumerate(widths):
            upsample = Upsample(out_width, in_time[level]) if level < len(in_time) else None
            self.up_blocks.append(UpBlock(width, out_width, config.num_res_blocks + 1, upsample))
            width = out_width // 2
        self.norm_out = RMSNorm(widths[-1], axes=3)
        self.conv_out = CausalConv3d(widths[-1], 3, (3, 3, 3))
        self.timed = max((level + 1 for level, doubles in enumerate(in_time) if doubles), default=0)
        """Blocks at the front, the last of which doubles frames."""

    def forward(
        self, z_BCTHW: torch.Tensor, past: Past, *, frame_by_frame: bool = False
    ) -> torch.Tensor:
        """
        Args:
            frame_by_frame: once no block doubles frames any more, each frame goes through the rest
                by itself: a causal network does the same, on a quarter of the memory.
        """
        x_BCTHW = self.mid_block(self.conv_in(z_BCTHW, past), past)
        for block in self.up_blocks[: self.timed]:
            x_BCTHW = block(x_BCTHW, past)
        if not frame_by_frame:
            return self._pictures(x_BCTHW, past)
        frames = [self._pictures(frame, past) for frame in x_BCTHW.split(1, dim=2)]
        return torch.cat(frames, dim=2)

    def _pictures(self, x_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:
        for block in self.up_blocks[self.timed :]:
            x_BCTHW = block(x_BCTHW, past)
        return cast("torch.Tensor", self.conv_out(F.silu(self.norm_out(x_BCTHW)), past))


def _channels_last(weight: torch.Tensor) -> torch.Tensor:
    """On a device as cuDNN's tensor-core kernels read; torch then has them read the input so, too.

    From other forms they make copies of input and output, 0.7 GB for a frame of 704 x 1280, and an
    encode takes a tenth longer. A picture alone does not tell which form it has.
    """
    if not weight.is_cuda:
        return weight
    last = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
    return weight.contiguous(memory_format=last)


def _as_pictures(x_BCTHW: torch.Tensor) -> torch.Tensor:
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def _as_clip(x_FCHW: torch.Tensor, batch: int) -> torch.Tensor:
    return x_FCHW.reshape(batch, -1, *x_FCHW.shape[1:]).transpose(1, 2)
