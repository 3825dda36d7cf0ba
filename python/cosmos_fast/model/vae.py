"""The Wan2.1 video VAE, above its layers: causal in time, 4 x in time and 8 x in space.

By chunks, or whole.

Axes: B batch, C channels, T frames, H W rows and columns (of pixels, latents or features between).
Parameter names are those of diffusers' ``AutoencoderKLWan``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from cosmos_fast.errors import InputError
from cosmos_fast.model.vae_layers import CausalConv3d, Decoder, Encoder, Past
from cosmos_fast.types import SPATIAL_STRIDE, TEMPORAL_STRIDE, latent_frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.config import VAEConfig
    from cosmos_fast.model.ops import Ops
    from cosmos_fast.model.stripe import Stripe


class VAE(nn.Module):
    """Pixels to normalised latents and back.

    Chunks bound the memory and let a decoded clip be streamed; the whole-sequence forms are for
    training. Both give the same numbers up to the rounding of the convolutions.
    """

    def __init__(self, config: VAEConfig, ops: Ops | None = None) -> None:
        """``ops``: whose kernels decode chunks where it has some; None: plain torch."""
        super().__init__()
        self.config = config
        self.ops = ops
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)
        self._moved: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights, in which everything between pixels and latents is computed."""
        return self.quant_conv.weight.dtype

    def encode(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        """Normalised posterior mean of a clip, its first frame alone and then 4 frames at a time.

        The latents of the first frames do not depend on the later ones: encode the frames that
        are needed, nothing more.

        Args:
            video_BCTHW: float, shape (B, 3, 4·n + 1, H, W), -1 to 1, H and W multiples of 8.

        Returns:
            float32, shape (B, 16, n + 1, H/8, W/8).

        Raises:
            InputError: another shape.
        """
        _check_video(video_BCTHW)
        past = Past()
        chunks = (
            self._moments(chunk, past) for chunk in _chunks(video_BCTHW, step=TEMPORAL_STRIDE)
        )
        return self._normalised(torch.cat(list(chunks), dim=2))

    def encode_whole(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        """:meth:`encode` in one differentiable pass over the clip."""
        _check_video(video_BCTHW)
        return self._normalised(self._moments(video_BCTHW, Past()))

    def decode_chunks(
        self,
        latents_BCTHW: torch.Tensor,
        *,
        frame_by_frame: bool = False,
        stripe: Stripe | None = None,
    ) -> Iterator[torch.Tensor]:
        """The clip of ``latents``, frame by latent frame.

        Args:
            latents_BCTHW: normalised, float, shape (B, 16, n + 1, h, w).
            frame_by_frame: less memory, the same numbers up to the rounding of the convolutions;
                see :meth:`Decoder.forward`.
            stripe: the latent rows whose pixels are wanted; None: all. Whoever computes the others
                has these layers too, with the same ``ops`` and nobody listening elsewhere.

        Returns:
            An iterator that computes as it is asked, under the caller's gradient mode: float32 of
            shape (B, 3, 1, 8·h, 8·w) first, then n times (B, 3, 4, 8·h, 8·w): about -1 to 1, not
            clamped. Of a stripe, its rows.

        Raises:
            InputError: another shape.
        """
        return self._decoded(self._denormalised(latents_BCTHW), frame_by_frame, stripe)

    def decode(self, latents_BCTHW: torch.Tensor) -> torch.Tensor:
        """The whole clip, made of :meth:`decode_chunks`: float32 (B, 3, 4·n + 1, 8·h, 8·w)."""
        return torch.cat(list(self.decode_chunks(latents_BCTHW)), dim=2)

    def decode_whole(self, latents_BCTHW: torch.Tensor) -> torch.Tensor:
        """:meth:`decode` in one differentiable pass over the clip."""
        past = Past()
        z_BCTHW = self.post_quant_conv(self._denormalised(latents_BCTHW), past)
        video_BCTHW: torch.Tensor = self.decoder(z_BCTHW, past)
        return video_BCTHW.float()

    def _decoded(
        self, z_BCTHW: torch.Tensor, frame_by_frame: bool, stripe: Stripe | None
    ) -> Iterator[torch.Tensor]:
        if self.ops is not None and self._fuses(self.ops, z_BCTHW):
            # It stands on this module; imported where it is used, it adds no cycle.
            from cosmos_fast.model.vae_fused import FusedDecoder

            fused = FusedDecoder(
                self.decoder,
                self.post_quant_conv,
                self.ops,
                frame_by_frame=frame_by_frame,
                stripe=stripe,
            )
            yield from map(fused.chunk, _chunks(z_BCTHW, step=1))
            return
        past, decoder = Past(), self.decoder
        following = (decoder.up_blocks, decoder.norm_out, decoder.conv_out)
        for chunk in _chunks(z_BCTHW, step=1):
            shared = stripe.called(decoder.mid_block, following) if stripe else nullcontext()
            with shared:  # but not while the caller has the chunk: another clip may be decoded
                z_chunk = self.post_quant_conv(chunk, past)
                y_BCTHW = decoder(z_chunk, past, frame_by_frame=frame_by_frame)
            yield y_BCTHW.float()

    def _fuses(self, ops: Ops, z_BCTHW: torch.Tensor) -> bool:
        """Whether the layers may be computed without being called: nobody listens at one."""
        called = (self.post_quant_conv, *self.decoder.modules())
        listening = any(one._forward_hooks or one._forward_pre_hooks for one in called)
        weights = (one for layer in called for one in layer.parameters(recurse=False))
        return not listening and ops.decodes(z_BCTHW, *weights)

    def _moments(self, video_BCTHW: torch.Tensor, past: Past) -> torch.Tensor:
        hidden_BCTHW = self.encoder(video_BCTHW.to(self.dtype), past)
        moments_BCTHW: torch.Tensor = self.quant_conv(hidden_BCTHW, past)
        return moments_BCTHW

    def _normalised(self, moments_BCTHW: torch.Tensor) -> torch.Tensor:
        mean, inverse_std = self._statistics(moments_BCTHW)
        return ((moments_BCTHW[:, : self.config.z_dim] - mean) * inverse_std).float()

    def _denormalised(self, latents_BCTHW: torch.Tensor) -> torch.Tensor:
        if latents_BCTHW.ndim != 5 or latents_BCTHW.shape[1] != self.config.z_dim:
            raise InputError(
                f"latents of shape {tuple(latents_BCTHW.shape)}: (B, {self.config.z_dim}, T, h, w)"
            )
        mean, inverse_std = self._statistics(latents_BCTHW)
        return latents_BCTHW.to(self.dtype) / inverse_std + mean

    def forget(self) -> None:
        """Lets go of what is on the device beside the weights; it is made again when needed."""
        self._moved = None

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and 1 / std of each channel, in the network's dtype: the reference rounds both.

        Made once, until :meth:`forget`: bringing them to a device makes the host wait for it.
        """
        moved = self._moved
        if moved and (moved[0].device, moved[0].dtype) == (like.device, self.dtype):
            return moved
        shape = (1, self.config.z_dim, 1, 1, 1)
        with torch.inference_mode(mode=False):  # what is kept must serve training as well
            mean = torch.tensor(self.config.latents_mean, dtype=self.dtype, device=like.device)
            std = torch.tensor(self.config.latents_std, dtype=self.dtype, device=like.device)
            self._moved = mean.view(shape), (1.0 / std).view(shape)
        return self._moved


def _chunks(x_BCTHW: torch.Tensor, step: int) -> Iterator[torch.Tensor]:
    """The first frame alone, then ``step`` frames at a time."""
    yield x_BCTHW[:, :, :1]
    for start in range(1, x_BCTHW.shape[2], step):
        yield x_BCTHW[:, :, start : start + step]


def _check_video(video_BCTHW: torch.Tensor) -> None:
    shape = tuple(video_BCTHW.shape)
    if len(shape) != 5 or shape[1] != 3 or shape[3] % SPATIAL_STRIDE or shape[4] % SPATIAL_STRIDE:
        raise InputError(
            f"video of shape {shape}: (B, 3, T, H, W) with H and W multiples of {SPATIAL_STRIDE}"
        )
    latent_frames(shape[2])
