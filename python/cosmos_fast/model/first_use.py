"""Which kernels a checkpoint's own clip needs: told from its sizes, and compiled as it is loaded.

The layers themselves say so, called with tensors of the meta device; between kernels results have
shapes and nothing else. Other sizes of clips may need a few kernels more, when they come.

Axes: B batch, T frames, N tokens, H heads, D features.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from cosmos_fast.model.dit import TEXT_BLOCK
from cosmos_fast.model.dit_layers import Block, Placement
from cosmos_fast.model.obstacles import obstacle
from cosmos_fast.model.ops import compiling, expected, name_tests
from cosmos_fast.model.rope import Rope
from cosmos_fast.model.vae import VAE
from cosmos_fast.model.vae_fused import FusedDecoder
from cosmos_fast.types import SPATIAL_STRIDE, TEXT_ROWS, latent_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from cosmos_fast.config import DiTConfig, Profile, VAEConfig
    from cosmos_fast.model.attention_table import ShapeClass
    from cosmos_fast.model.ops import Ops


@contextmanager
def kernels_ahead(
    profile: Profile,
    device: torch.device,
    dtype: torch.dtype,
    *,
    classes: Collection[ShapeClass],
    kernels: bool,
    processes: int = 1,
) -> Iterator[None]:
    """Compiles the kernels of a clip of the profile's own size while the body runs.

    They are there when it ends; a launch in the body, such as those of the tests of
    ``Ops.select``, waits for its own kernel alone. Where no kernel can run, nothing happens.

    Args:
        profile: of the checkpoint that the body loads.
        device, dtype: where and in what the networks run.
        classes: what attention will be asked for.
        kernels: whether any are wanted.
        processes: that load the same at the same time; they share the cores.
    """
    if not kernels or device.type != "cuda" or obstacle(device, dtype):
        yield
        return

    def calls() -> None:
        name_kernels(profile, device, dtype, classes=classes)

    with compiling(device, calls, processes=processes):
        yield


def name_kernels(
    profile: Profile,
    device: torch.device,
    dtype: torch.dtype,
    *,
    classes: Collection[ShapeClass],
) -> None:
    """Everything that is launched from the start of an engine to the end of its first clip, for
    ``only_named``; the slowest to compile first. Arguments are those of :func:`kernels_ahead`."""
    ops = expected(device, dtype, profile.dit.head_dim)
    frames = latent_frames(profile.num_frames)
    grid = (frames, profile.size.height // SPATIAL_STRIDE, profile.size.width // SPATIAL_STRIDE)
    with _Shapes():
        name_tests(ops, device, dtype, profile.dit.head_dim, classes)
        _name_block(profile.dit, ops, grid, dtype)
        _name_decoder(profile.vae, ops, grid, dtype)


def _name_block(
    config: DiTConfig, ops: Ops, grid: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """A block of the transformer behind a short prompt: all others, and the last layer, launch what
    it launches."""
    frames, height, width = grid
    tokens = frames * (height // config.patch) * (width // config.patch)
    with torch.device("meta"):
        block = Block(config, ops).to(dtype).requires_grad_(False)
        kept = TEXT_BLOCK if ops.folds_padding else TEXT_ROWS
        rows_BSC = torch.empty(1, kept, config.text_dim, dtype=dtype)
        x_BND = torch.empty(1, tokens, config.width, dtype=dtype)
        modulation_KBTE = torch.empty(3, 1, frames, 3 * config.width, dtype=dtype)
        rope = Rope(*torch.empty(2, tokens, config.head_dim // 2).unbind())
    text_BS2HD = block.cross_attn.keys_and_values(rows_BSC)
    block(x_BND, modulation_KBTE, Placement(rope, None), text_BS2HD, TEXT_ROWS - kept)


def _name_decoder(
    config: VAEConfig, ops: Ops, grid: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """The first chunk of a clip and the second: all others are like it."""
    frames, height, width = grid
    with torch.device("meta"):
        vae = VAE(config).to(dtype).requires_grad_(False)
        z_BCTHW = torch.empty(1, config.z_dim, 1, height, width, dtype=dtype)
    vae.decoder.mid_block.attentions[0] = nn.Identity()  # torch's from its start to its end
    decoder = FusedDecoder(vae.decoder, vae.post_quant_conv, ops)
    for _ in range(min(frames, 2)):
        decoder.chunk(z_BCTHW)


class _Shapes(TorchFunctionMode):
    """What is computed between kernels has its shape, no values, and is not computed.

    For these functions torch's own rules for tensors of the meta device load its compiler, which
    takes seconds.
    """

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        rule = _RULES.get(function, function)
        return rule(*arguments, **(options or {}))


def _linear(x: torch.Tensor, weight_EK: torch.Tensor, bias: object = None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight_EK.shape[0]))


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: object = None,
    stride: object = 1,
    padding: int | tuple[int, ...] = 0,
    *_: object,
) -> torch.Tensor:
    """Of stride 1 and without dilation, as all are in a decoder."""
    kernel = weight.shape[2:]
    pads = (padding,) * len(kernel) if isinstance(padding, int) else padding
    sides = (
        side + 2 * pad - wide + 1 for side, pad, wide in zip(x.shape[2:], pads, kernel, strict=True)
    )
    return x.new_empty((x.shape[0], weight.shape[0], *sides))


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(one.shape[dim] for one in tensors)
    return tensors[0].new_empty(shape)


def _stack(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    return _cat([one.unsqueeze(dim) for one in tensors], dim)


def _like(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return x.new_empty(x.shape)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


_RULES: Final[Mapping[Any, Callable[..., torch.Tensor]]] = {
    F.linear: _linear,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    torch.Tensor.clone: _like,
    torch.empty_like: _like,
    torch.Tensor.float: _wide,
    torch.Tensor.add: _like,
    F.gelu: _like,
    torch.cat: _cat,
    torch.stack: _stack,
}
