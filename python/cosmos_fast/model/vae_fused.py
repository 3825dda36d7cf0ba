"""The VAE's decoder on a GPU: the same layers as ``vae.py``, between them one kernel each.

The features stay channels last from the first convolution to the pixels, which is what cuDNN's
tensor-core kernels read. Between two convolutions there is one pass over memory: bias, shortcut,
norm, SiLU, and the causal frames in front (``ops.rms_silu``); before a spatial convolution that
follows an upsampling, another (``ops.upsample``). No bias is left to torch, which adds it in a pass
of its own.

Reads and writes of a level's feature tensor, convolutions aside: 5 + 3 a residual block (2 of them
for the shortcut), and a half more for the two frames of history beside each four.

Axes: B batch, T frames, H W rows and columns, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F

from cosmos_fast.model.vae_layers import Decoder, Past, ResidualBlock, UpBlock, Upsample

if TYPE_CHECKING:
    from torch import nn

    from cosmos_fast.model.ops import Ops
    from cosmos_fast.model.vae_layers import CausalConv3d, MidBlock, RMSNorm

_CHANNELS_OF_PIXELS = 8
"""cuDNN's channels-last kernels want outputs in eights: three colours and five zeros."""


class Unfinished(NamedTuple):
    """A feature tensor as sums that nobody has added yet."""

    x_BTHWC: torch.Tensor
    bias_C: torch.Tensor | None = None
    residual_BTHWC: torch.Tensor | None = None
    residual_bias_C: torch.Tensor | None = None


class FusedDecoder:
    """Decodes the chunks of one clip, in order; a new one starts a new clip.

    Args:
        decoder: the layers; their weights are copied to channels-last memory, once a clip.
        post_quant_conv: the pointwise convolution in front of them.
        ops: whose ``rms_silu`` and ``upsample`` run.
        frame_by_frame: once no block doubles frames any more, each frame goes through the rest by
            itself, on a third of the memory; see :meth:`Decoder.forward`.
    """

    def __init__(
        self,
        decoder: Decoder,
        post_quant_conv: CausalConv3d,
        ops: Ops,
        *,
        frame_by_frame: bool = False,
    ) -> None:
        self._decoder = decoder
        self._post_quant_conv = post_quant_conv
        self._ops = ops
        self._frame_by_frame = frame_by_frame
        self._now: Unfinished | None = None
        """The features that the next layer reads."""
        self._past = Past()
        self._kept: dict[nn.Module, torch.Tensor] = {}
        self._weights: dict[nn.Module, torch.Tensor] = {}

    def chunk(self, z_BCTHW: torch.Tensor) -> torch.Tensor:
        """Pixels of one chunk of denormalised latents: float32 (B, 3, T', 8·H, 8·W).

        The first chunk of a clip holds one latent frame.
        """
        decoder = self._decoder
        z_BCTHW = self._post_quant_conv(z_BCTHW, self._past)
        self._now = Unfinished(_channels_last(decoder.conv_in(z_BCTHW, self._past)))
        self._middle(decoder.mid_block)
        for block in decoder.up_blocks[: decoder.timed]:
            self._level(cast("UpBlock", block))
        if not self._frame_by_frame:
            return self._pictures()
        x = self._take()
        if x.residual_BTHWC is not None:
            x = Unfinished(self._finished(x))
        frames, bias_C = x.x_BTHWC.split(1, dim=1), x.bias_C
        pixels = []
        for frame_B1HWC in frames:
            self._now = Unfinished(frame_B1HWC.contiguous(), bias_C)
            pixels.append(self._pictures())
        return torch.cat(pixels, dim=2)

    def _take(self) -> Unfinished:
        """The features, held by nobody else: they go as soon as they have been read."""
        assert self._now is not None
        x, self._now = self._now, None
        return x

    def _pictures(self) -> torch.Tensor:
        """float32 (B, 3, T, H, W) of features after the last level that doubles frames."""
        decoder = self._decoder
        for block in decoder.up_blocks[decoder.timed :]:
            self._level(cast("UpBlock", block))
        out = decoder.conv_out
        padded, _ = self._assembled(self._take(), decoder.norm_out, out, keep_total=False)
        y_BTHWC = self._convolved(padded, out, _CHANNELS_OF_PIXELS)
        pixels_BTHWC = y_BTHWC[..., :3].float() + _bias(out).float()
        return pixels_BTHWC.permute(0, 4, 1, 2, 3)

    def _middle(self, block: MidBlock) -> None:
        self._residual(cast("ResidualBlock", block.resnets[0]))
        whole_BTHWC = self._finished(self._take())
        attended_BCTHW = block.attentions[0](whole_BTHWC.permute(0, 4, 1, 2, 3))
        self._now = Unfinished(_channels_last(attended_BCTHW))
        self._residual(cast("ResidualBlock", block.resnets[1]))

    def _level(self, block: UpBlock) -> None:
        for layer in block.resnets:
            self._residual(cast("ResidualBlock", layer))
        for layer in block.upsamplers:
            self._upsampled(cast("Upsample", layer))

    def _residual(self, block: ResidualBlock) -> None:
        padded, whole = self._assembled(self._take(), block.norm1, block.conv1, keep_total=True)
        assert whole is not None
        y = Unfinished(self._convolved(padded, block.conv1), _bias(block.conv1))
        del padded  # a feature tensor less at the peak
        padded, _ = self._assembled(y, block.norm2, block.conv2, keep_total=False)
        del y
        y_BTHWC = self._convolved(padded, block.conv2)
        if block.conv_shortcut is None:
            self._now = Unfinished(y_BTHWC, _bias(block.conv2), whole)
            return
        del padded
        shortcut_BTHWC = self._convolved(whole, block.conv_shortcut)
        self._now = Unfinished(
            y_BTHWC, _bias(block.conv2), shortcut_BTHWC, _bias(block.conv_shortcut)
        )

    def _upsampled(self, layer: Upsample) -> None:
        convolution = cast("nn.Conv2d", layer.resample[1])
        if layer.time_conv is None or self._past.begins(layer):
            wide_BTHWC = self._ops.upsample(self._finished(self._take()), None, in_time=False)
        else:
            padded, _ = self._assembled(self._take(), None, layer.time_conv, keep_total=False)
            pairs_BTHWC = self._convolved(padded, layer.time_conv)
            del padded
            wide_BTHWC = self._ops.upsample(pairs_BTHWC, _bias(layer.time_conv), in_time=True)
            del pairs_BTHWC
        pictures_FCHW = wide_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
        y_FCHW = F.conv2d(pictures_FCHW, self._weight(convolution), padding=1)
        y_BTHWC = y_FCHW.permute(0, 2, 3, 1).contiguous().unflatten(0, wide_BTHWC.shape[:2])
        self._now = Unfinished(y_BTHWC, _bias(convolution))

    def _finished(self, x: Unfinished) -> torch.Tensor:
        if x.bias_C is None and x.residual_BTHWC is None:
            return x.x_BTHWC
        return self._ops.rms_silu(x.x_BTHWC, None, *x[1:], None, 0, keep_total=False)[1]

    def _assembled(
        self, x: Unfinished, norm: RMSNorm | None, convolution: CausalConv3d, *, keep_total: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The input of ``convolution``, and the sum before the norm."""
        gamma_C = None if norm is None else norm.gamma.flatten()
        total, padded, kept = self._ops.rms_silu(
            x.x_BTHWC,
            gamma_C,
            *x[1:],
            self._kept.get(convolution),
            convolution.history,
            keep_total=keep_total,
        )
        self._kept[convolution] = kept
        return padded, total

    def _convolved(
        self, padded_BTHWC: torch.Tensor, convolution: CausalConv3d, out_channels: int = 0
    ) -> torch.Tensor:
        """Without the bias; ``out_channels`` above its own come out as zeros."""
        weight = self._weight(convolution, out_channels)
        y_BCTHW = F.conv3d(padded_BTHWC.permute(0, 4, 1, 2, 3), weight, padding=convolution.padding)
        return _channels_last(y_BCTHW)

    def _weight(self, convolution: nn.Module, out_channels: int = 0) -> torch.Tensor:
        if convolution not in self._weights:
            weight = cast("torch.Tensor", convolution.weight).detach()
            missing = max(0, out_channels - weight.shape[0])
            if missing:
                weight = torch.cat((weight, weight.new_zeros(missing, *weight.shape[1:])))
            order = torch.channels_last_3d if weight.ndim == 5 else torch.channels_last
            self._weights[convolution] = weight.contiguous(memory_format=order)
        return self._weights[convolution]


def _bias(convolution: nn.Module) -> torch.Tensor:
    return cast("torch.Tensor", convolution.bias).detach()


def _channels_last(x_BCTHW: torch.Tensor) -> torch.Tensor:
    """(B, T, H, W, C), copied only where it does not lie so already."""
    return x_BCTHW.permute(0, 2, 3, 4, 1).contiguous()
