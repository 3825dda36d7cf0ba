"""The VAE's decoder on a GPU: the same layers as ``vae.py``, between them one kernel each.

The features stay channels last from the first convolution to the pixels, which is what cuDNN's
tensor-core kernels read. Between two convolutions there is one pass over memory: bias, shortcut,
norm, SiLU, and the causal frames in front (``ops.rms_silu``); before a spatial convolution that
follows an upsampling, another (``ops.upsample``). No bias is left to torch, which adds it in a pass
of its own.

Reads and writes of a level's feature tensor, convolutions aside: 5 + 3 a residual block (2 of them
for the shortcut), and a half more for the two frames of history beside each four.

Of a stripe of rows it is as many of them: what a spatial convolution reads is written with a row
to spare above and below, which come from the neighbours (``Stripe.border``). Up to the middle
block, whose attention mixes all rows, everything is whole.

Axes: B batch, T frames, H W rows and columns, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F

from cosmos_fast.model.vae_layers import Decoder, Past, ResidualBlock, UpBlock, Upsample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from cosmos_fast.model.ops import Ops
    from cosmos_fast.model.stripe import Stripe
    from cosmos_fast.model.vae_layers import CausalConv3d, MidBlock, RMSNorm

_CHANNELS_OF_PIXELS = 8
"""cuDNN's channels-last kernels want outputs in eights: three colours and five zeros."""


class Unfinished(NamedTuple):
    """A feature tensor as sums that nobody has added yet."""

    x_BTHWC: torch.Tensor
    bias_C: torch.Tensor | None = None
    residual_BTHWC: torch.Tensor | None = None
    residual_bias_C: torch.Tensor | None = None


class Histories:
    """What every causal convolution has seen last, in memory that is taken once a clip.

    A history is written while the one before is read, so there is one place more of each shape, and
    they go round. Made anew for every chunk, they leave holes among what comes and goes meanwhile:
    at 704 x 1280 the decoder took 0.7 GB of an H200 more than was planned.
    """

    def __init__(self, shapes: Mapping[CausalConv3d, tuple[int, ...]], like: torch.Tensor) -> None:
        """
        Args:
            shapes: (B, history, H, W, C) of each convolution.
            like: of the dtype, on the device.
        """
        self._places = {one: like.new_empty(shape) for one, shape in shapes.items()}
        self._spare = {shape: like.new_empty(shape) for shape in dict.fromkeys(shapes.values())}
        self._begun: set[CausalConv3d] = set()

    def turn(self, convolution: CausalConv3d) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What ``convolution`` has seen, None at the start of the clip, and where to write what it
        sees now: from here on its history, for as long as the other is read."""
        last = self._places[convolution]
        if convolution not in self._begun:
            self._begun.add(convolution)
            return None, last
        shape = tuple(last.shape)
        self._places[convolution], self._spare[shape] = self._spare[shape], last
        return last, self._places[convolution]


class FusedDecoder:
    """Decodes the chunks of one clip, in order; a new one starts a new clip.

    Args:
        decoder: the layers; their weights are copied to channels-last memory, once a clip.
        post_quant_conv: the pointwise convolution in front of them.
        ops: whose ``rms_silu`` and ``upsample`` run.
        frame_by_frame: once no block doubles frames any more, each frame goes through the rest by
            itself, on a third of the memory; see :meth:`Decoder.forward`.
        stripe: the rows whose pixels are wanted; None: all.
    """

    def __init__(
        self,
        decoder: Decoder,
        post_quant_conv: CausalConv3d,
        ops: Ops,
        *,
        frame_by_frame: bool = False,
        stripe: Stripe | None = None,
    ) -> None:
        self._decoder = decoder
        self._post_quant_conv = post_quant_conv
        self._ops = ops
        self._frame_by_frame = frame_by_frame and decoder.timed > 0
        self._stripe = stripe
        self._shares = False
        """Whether the layers have come to compute the stripe alone."""
        self._now: Unfinished | None = None
        """The features that the next layer reads."""
        self._past = Past()
        self._histories: Histories | None = None
        self._frames = torch.empty(0)
        """(B, T, 2, H, W, C): of the last doubling of frames, where they go on one by one."""
        self._weights: dict[nn.Module, torch.Tensor] = {}

    def chunk(self, z_BCTHW: torch.Tensor) -> torch.Tensor:
        """Pixels of one chunk of denormalised latents: float32 (B, 3, T', 8·H, 8·W).

        The first chunk of a clip holds one latent frame. A stripe has H of its own.
        """
        decoder = self._decoder
        if self._histories is None:
            self._histories = self._begun(z_BCTHW)
        z_BCTHW = self._post_quant_conv(z_BCTHW, self._past)
        self._now = Unfinished(_channels_last(decoder.conv_in(z_BCTHW, self._past)))
        self._shares = False
        self._middle(decoder.mid_block)
        if self._stripe is not None:
            self._cut(self._stripe.own)
        if self._frame_by_frame:
            return self._one_by_one()
        for block in decoder.up_blocks[: decoder.timed]:
            self._level(cast("UpBlock", block))
        return self._pictures()

    def _one_by_one(self) -> torch.Tensor:
        """The rest of a chunk: from the last doubling of frames on, each goes by itself."""
        decoder = self._decoder
        *levels, last = cast("list[UpBlock]", decoder.up_blocks[: decoder.timed])
        for level in levels:
            self._level(level)
        for block in last.resnets:
            self._residual(cast("ResidualBlock", block))
        layer = cast("Upsample", last.upsamplers[0])
        assert layer.time_conv is not None
        if self._past.begins(layer):
            frames_BTHWC = self._finished(self._take())
            biases: list[torch.Tensor | None] = [None]
        else:
            # Where nothing comes and goes: on top of what it was made from, it would cut the rest
            # of the memory in two.
            pairs_BTHWPC = self._paired(layer.time_conv).unflatten(4, (2, -1))
            frames_BTHWC = self._frames.flatten(1, 2)
            self._frames.copy_(pairs_BTHWPC.permute(0, 1, 4, 2, 3, 5))
            del pairs_BTHWPC
            biases = [*_bias(layer.time_conv).chunk(2)] * self._frames.shape[1]
        pixels = []
        for frame_B1HWC, bias_C in zip(frames_BTHWC.split(1, dim=1), biases, strict=True):
            wide_B1HWC = self._doubled(frame_B1HWC.contiguous(), bias_C, in_time=False)
            self._now = self._narrowed(wide_B1HWC, layer)
            del wide_B1HWC
            pixels.append(self._pictures())
        return torch.cat(pixels, dim=2)

    def _begun(self, z_BCTHW: torch.Tensor) -> Histories:
        """Makes whatever stays for the whole clip, before anything that comes and goes."""
        decoder = self._decoder
        batch, _, _, height, width = z_BCTHW.shape
        of_stripe = height if self._stripe is None else len(self._stripe.own)
        shapes: dict[CausalConv3d, tuple[int, ...]] = {}
        pairs: tuple[int, ...] = ()

        def history(convolution: nn.Module, rows: int, columns: int) -> None:
            one = cast("CausalConv3d", convolution)
            shapes[one] = (batch, one.history, rows, columns, one.in_channels)

        middle = cast("list[ResidualBlock]", decoder.mid_block.resnets)
        blocks = [(block, height, width) for block in middle]
        scale, frames = 1, 1
        for level in cast("list[UpBlock]", decoder.up_blocks):
            size = (scale * of_stripe, scale * width)
            blocks += [(cast("ResidualBlock", block), *size) for block in level.resnets]
            for layer in cast("list[Upsample]", level.upsamplers):
                self._weight(cast("nn.Conv2d", layer.resample[1]))
                if layer.time_conv is not None:
                    history(layer.time_conv, *size)
                    pairs = (batch, frames, 2, *size, layer.time_conv.in_channels)
                    frames *= 2
                scale *= 2
        for block, *size_there in blocks:
            history(block.conv1, *size_there)
            history(block.conv2, *size_there)
            if block.conv_shortcut is not None:
                self._weight(block.conv_shortcut)
        history(decoder.conv_out, scale * of_stripe, scale * width)
        for one in shapes:
            self._weight(one, _CHANNELS_OF_PIXELS if one is decoder.conv_out else 0)
        if self._frame_by_frame:
            self._frames = z_BCTHW.new_empty(pairs)
        return Histories(shapes, z_BCTHW)

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

    def _cut(self, own: range) -> None:
        """From here on, the stripe alone."""
        x = self._take()
        terms = (x.x_BTHWC, x.residual_BTHWC)
        # One frame is not copied: its rows lie together, and are read once.
        y, residual = (
            None if one is None else one[:, :, own.start : own.stop].contiguous() for one in terms
        )
        assert y is not None
        self._now = Unfinished(y, x.bias_C, residual, x.residual_bias_C)
        self._shares = True

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
        if layer.time_conv is None or self._past.begins(layer):
            wide_BTHWC = self._doubled(self._finished(self._take()), None, in_time=False)
        else:
            pairs_BTHWC = self._paired(layer.time_conv)
            wide_BTHWC = self._doubled(pairs_BTHWC, _bias(layer.time_conv), in_time=True)
            del pairs_BTHWC
        self._now = self._narrowed(wide_BTHWC, layer)

    def _paired(self, time_conv: CausalConv3d) -> torch.Tensor:
        """(B, T, H, W, 2 C): the channels of two frames that one becomes, side by side."""
        padded, _ = self._assembled(self._take(), None, time_conv, keep_total=False)
        return self._convolved(padded, time_conv)

    def _doubled(
        self, x_BTHWC: torch.Tensor, bias_C: torch.Tensor | None, *, in_time: bool
    ) -> torch.Tensor:
        """Rows and columns twice, and frames ``in_time``, for a spatial convolution to read."""
        wide_BTHWC = self._ops.upsample(
            x_BTHWC, bias_C, in_time=in_time, border=1 if self._shares else 0
        )
        return self._bordered(wide_BTHWC) if self._shares else wide_BTHWC

    def _bordered(self, x_BTHWC: torch.Tensor) -> torch.Tensor:
        assert self._stripe is not None
        self._stripe.border(x_BTHWC)
        return x_BTHWC

    def _narrowed(self, wide_BTHWC: torch.Tensor, layer: Upsample) -> Unfinished:
        """Half the channels of every picture."""
        convolution = cast("nn.Conv2d", layer.resample[1])
        pictures_FCHW = wide_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
        padding = (0 if self._shares else 1, 1)
        y_FCHW = F.conv2d(pictures_FCHW, self._weight(convolution), padding=padding)
        y_BTHWC = y_FCHW.permute(0, 2, 3, 1).contiguous().unflatten(0, wide_BTHWC.shape[:2])
        return Unfinished(y_BTHWC, _bias(convolution))

    def _finished(self, x: Unfinished) -> torch.Tensor:
        if x.bias_C is None and x.residual_BTHWC is None:
            return x.x_BTHWC
        return self._ops.rms_silu(x.x_BTHWC, None, *x[1:], None, 0, keep_total=False)[1]

    def _assembled(
        self, x: Unfinished, norm: RMSNorm | None, convolution: CausalConv3d, *, keep_total: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The input of ``convolution``, and the sum before the norm."""
        border = self._border(convolution)
        gamma_C = None if norm is None else norm.gamma.flatten()
        assert self._histories is not None
        earlier, kept = self._histories.turn(convolution)
        total, padded, _ = self._ops.rms_silu(
            x.x_BTHWC,
            gamma_C,
            *x[1:],
            earlier,
            convolution.history,
            keep_total=keep_total,
            kept_BTHWC=kept,
            border=border,
        )
        return self._bordered(padded) if border else padded, total

    def _border(self, convolution: CausalConv3d) -> int:
        """Rows of the neighbours at either end that ``convolution`` reads."""
        return convolution.kernel_size[1] // 2 if self._shares else 0

    def _convolved(
        self, padded_BTHWC: torch.Tensor, convolution: CausalConv3d, out_channels: int = 0
    ) -> torch.Tensor:
        """Without the bias; ``out_channels`` above its own come out as zeros."""
        weight = self._weight(convolution, out_channels)
        in_time, above, left = cast("tuple[int, int, int]", convolution.padding)
        padding = (in_time, above - self._border(convolution), left)
        y_BCTHW = F.conv3d(padded_BTHWC.permute(0, 4, 1, 2, 3), weight, padding=padding)
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
