"""The VAE's names: diffusers' (ours too) and Wan's (``Wan2.1_VAE.pth``, ``tokenizer.pth``)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights.key_map import KeyMap, Piece

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cosmos_fast.config import VAEConfig
    from cosmos_fast.weights.dit_keys import Layout


class _Row(NamedTuple):
    ours: str
    wan: str
    shape: tuple[int, ...]


def wan_keys(config: VAEConfig) -> KeyMap:
    """Wan's layout: one flat file without a prefix."""
    return KeyMap("Wan VAE", {ours: (Piece(wan, shape),) for ours, wan, shape in _rows(config)})


def diffusers_keys(config: VAEConfig) -> KeyMap:
    """diffusers' layout (``AutoencoderKLWan``)."""
    targets = {ours: (Piece(ours, shape),) for ours, _, shape in _rows(config)}
    return KeyMap("diffusers VAE", targets)


def detect(names: Collection[str]) -> Layout:
    """Layout that the names of a VAE file are in.

    Raises:
        CheckpointError: they are those of no known layout.
    """
    if "encoder.conv_in.weight" in names:
        return "diffusers"
    if "encoder.conv1.weight" in names:
        return "nvidia"
    raise CheckpointError(
        f"no encoder.conv1.weight (Wan) and no encoder.conv_in.weight (diffusers) among the names; "
        f"found {', '.join(sorted(names)[:4]) or 'none'}. The Wan2.1 VAE is needed"
    )


def _rows(config: VAEConfig) -> Iterator[_Row]:
    latent = config.z_dim
    yield from _conv("quant_conv", "conv1", 2 * latent, 2 * latent, 1, 1, 1)
    yield from _conv("post_quant_conv", "conv2", latent, latent, 1, 1, 1)
    yield from _encoder(config)
    yield from _decoder(config)


def _encoder(config: VAEConfig) -> Iterator[_Row]:
    widths = [config.base_dim * multiple for multiple in (1, *config.dim_mult)]
    yield from _conv("encoder.conv_in", "encoder.conv1", widths[0], 3, 3, 3, 3)
    place = 0
    for level, (before, after) in enumerate(pairwise(widths)):
        for block in range(config.num_res_blocks):
            ours, wan = f"encoder.down_blocks.{place}", f"encoder.downsamples.{place}"
            yield from _residual(ours, wan, after if block else before, after)
            place += 1
        if level < len(config.dim_mult) - 1:
            ours, wan = f"encoder.down_blocks.{place}", f"encoder.downsamples.{place}"
            yield from _conv(f"{ours}.resample.1", f"{wan}.resample.1", after, after, 3, 3)
            if config.temporal_downsample[level]:
                yield from _conv(f"{ours}.time_conv", f"{wan}.time_conv", after, after, 3, 1, 1)
            place += 1
    yield from _middle("encoder", widths[-1])
    yield from _head("encoder", widths[-1], 2 * config.z_dim)


def _decoder(config: VAEConfig) -> Iterator[_Row]:
    widths = [
        config.base_dim * multiple for multiple in (config.dim_mult[-1], *config.dim_mult[::-1])
    ]
    upsample_time = config.temporal_downsample[::-1]
    yield from _conv("decoder.conv_in", "decoder.conv1", widths[0], config.z_dim, 3, 3, 3)
    yield from _middle("decoder", widths[0])
    place = 0
    for level, (before, after) in enumerate(pairwise(widths)):
        # Every up-sampling but the last one's level has halved the channels it hands on.
        entering = before // 2 if level else before
        for block in range(config.num_res_blocks + 1):
            ours = f"decoder.up_blocks.{level}.resnets.{block}"
            yield from _residual(
                ours, f"decoder.upsamples.{place}", after if block else entering, after
            )
            place += 1
        if level < len(config.dim_mult) - 1:
            ours, wan = f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.upsamples.{place}"
            yield from _conv(f"{ours}.resample.1", f"{wan}.resample.1", after // 2, after, 3, 3)
            if upsample_time[level]:
                yield from _conv(f"{ours}.time_conv", f"{wan}.time_conv", 2 * after, after, 3, 1, 1)
            place += 1
    yield from _head("decoder", widths[-1], 3)


def _residual(ours: str, wan: str, before: int, after: int) -> Iterator[_Row]:
    yield _Row(f"{ours}.norm1.gamma", f"{wan}.residual.0.gamma", (before, 1, 1, 1))
    yield from _conv(f"{ours}.conv1", f"{wan}.residual.2", after, before, 3, 3, 3)
    yield _Row(f"{ours}.norm2.gamma", f"{wan}.residual.3.gamma", (after, 1, 1, 1))
    yield from _conv(f"{ours}.conv2", f"{wan}.residual.6", after, after, 3, 3, 3)
    if before != after:
        yield from _conv(f"{ours}.conv_shortcut", f"{wan}.shortcut", after, before, 1, 1, 1)


def _middle(half: str, width: int) -> Iterator[_Row]:
    for place in (0, 1):
        ours, wan = f"{half}.mid_block.resnets.{place}", f"{half}.middle.{2 * place}"
        yield from _residual(ours, wan, width, width)
    ours, wan = f"{half}.mid_block.attentions.0", f"{half}.middle.1"
    yield _Row(f"{ours}.norm.gamma", f"{wan}.norm.gamma", (width, 1, 1))
    yield from _conv(f"{ours}.to_qkv", f"{wan}.to_qkv", 3 * width, width, 1, 1)
    yield from _conv(f"{ours}.proj", f"{wan}.proj", width, width, 1, 1)


def _head(half: str, width: int, channels: int) -> Iterator[_Row]:
    yield _Row(f"{half}.norm_out.gamma", f"{half}.head.0.gamma", (width, 1, 1, 1))
    yield from _conv(f"{half}.conv_out", f"{half}.head.2", channels, width, 3, 3, 3)


def _conv(ours: str, wan: str, channels: int, before: int, *kernel: int) -> Iterator[_Row]:
    yield _Row(f"{ours}.weight", f"{wan}.weight", (channels, before, *kernel))
    yield _Row(f"{ours}.bias", f"{wan}.bias", (channels,))
