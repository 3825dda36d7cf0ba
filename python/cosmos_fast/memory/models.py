"""What a generation needs of a machine: blocks, activations and operations of each stage.

Bytes of weights follow from the architecture. Activations are counted: the DiT's in units of one
token tensor (N tokens of width D) along ``model/dit.py`` with its fused operations, the VAE's by
running it on torch's meta device. Operations are those of ``model/flops.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.config import check_size
from cosmos_fast.errors import InputError
from cosmos_fast.memory.components import dit_blocks
from cosmos_fast.memory.footprint import peak_bytes
from cosmos_fast.memory.host import PARAMETER_ALIGNMENT, layout
from cosmos_fast.memory.request import NANOS, Block, Shape, Stage
from cosmos_fast.model.cuts import Cut
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.flops import forward_flops
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.vae import VAE
from cosmos_fast.model.vae_fused import FusedDecoder
from cosmos_fast.types import (
    LATENT_CHANNELS,
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    TEXT_ROWS,
    Size,
    latent_frames,
)
from cosmos_fast.weights.text_keys import TextShape

if TYPE_CHECKING:
    from cosmos_fast.config import DiTConfig, Profile
    from cosmos_fast.memory.cards import Card
    from cosmos_fast.memory.request import Residency

FLOAT: Final = 4

_ELEMENTWISE_PASSES: Final = 26
"""Reads and writes of a token tensor in a block beside attention and linear layers."""
_STATES: Final = 8
"""float32 latents that sampling holds: noise, state, two predictions, their mixture, the input."""
_PIXEL_FLOPS_FIRST: Final = (10.85e6, 6.78e6)
"""Operations a pixel to decode and to encode the first frame."""
_PIXEL_FLOPS_NEXT: Final = (33.9e6, 20.0e6)
"""Operations a pixel to decode and to encode each further latent frame (four frames)."""

T5_11B: Final = TextShape(
    vocab_size=32128,
    d_model=1024,
    d_kv=128,
    d_ff=65536,
    num_layers=24,
    num_heads=128,
    buckets=32,
)

SLOWDOWNS: Final[Mapping[Cut, float]] = MappingProxyType(
    {Cut(1, 1): 0.0, Cut(2, 1): 0.002, Cut(4, 2): 0.006, Cut(8, 4): 0.015}
)
"""Ways to cut a DiT block's activations up, and their additional share of time; estimates."""
FRAME_BY_FRAME: Final = "frame by frame"
"""The shape of decoding in which pictures are made one at a time."""
_FRAME_BY_FRAME_SLOWDOWN: Final = 0.03
"""Additional share of time; estimate."""


@dataclass(frozen=True)
class Workload:
    """One generation."""

    profile: Profile
    size: Size
    num_frames: int
    num_conditional_frames: int
    num_steps: int
    guided: bool
    """Two forwards a step, and two prompts."""
    dtype: torch.dtype = torch.bfloat16
    """Of the transformer and the VAE."""
    fused: bool = False
    """The VAE's decoder runs between kernels; see ``model/vae_fused.py``."""
    text: TextShape | None = T5_11B
    """None: no prompt has to be encoded."""
    text_dtype: torch.dtype = torch.bfloat16
    """What the text encoder is stored in."""
    offloaded: frozenset[str] = frozenset()
    """Components that must leave the device when their stage ends."""

    def __post_init__(self) -> None:
        check_size(self.size, self.profile.dit)
        latent_frames(self.num_frames)
        latent_frames(self.num_conditional_frames)
        known = {"text encoder", "vae encoder", "dit", "vae decoder"}
        if unknown := self.offloaded - known:
            raise InputError(f"offload {sorted(unknown)}: components are {sorted(known)}")

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        height, width = self.size
        frames = int(latent_frames(self.num_frames))
        return frames, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE

    @property
    def tokens(self) -> int:
        frames, height, width = self.latent_size
        return frames * (height // self.profile.dit.patch) * (width // self.profile.dit.patch)

    @property
    def branches(self) -> int:
        return 2 if self.guided else 1

    @property
    def latent_bytes(self) -> int:
        """One float32 latent of the whole clip."""
        frames, height, width = self.latent_size
        return LATENT_CHANNELS * frames * height * width * FLOAT

    def residency(self, component: str) -> Residency:
        return "drop" if component in self.offloaded else "free"


def stages(workload: Workload, card: Card) -> tuple[Stage, ...]:
    """The stages of ``workload`` on ``card``, in order."""
    text = () if workload.text is None else (text_stage(workload, workload.text, card),)
    with torch.device("meta"):
        vae = VAE(workload.profile.vae).to(workload.dtype)
    vae.requires_grad_(False)
    return (
        *text,
        encode_stage(workload, card, vae),
        denoise_stage(workload, card),
        decode_stage(workload, card, vae),
    )


def text_stage(workload: Workload, shape: TextShape, card: Card) -> Stage:
    """T5, one pass a prompt; its layers may stream."""
    inner, width = shape.num_heads * shape.d_kv, workload.text_dtype.itemsize
    matrices = [shape.d_model * inner] * 4 + [shape.d_model * shape.d_ff] * 2
    norms = [shape.d_model] * 2
    layer = _packed([*matrices, *norms], width)
    flops = 2 * TEXT_ROWS * sum(matrices) + 4 * TEXT_ROWS**2 * inner
    nanos = _nanos(flops, card.text_flops)
    embedding = _packed([shape.vocab_size * shape.d_model, shape.d_model], width)
    blocks = [Block("embedding", embedding, 0, hold=True)]
    bias = _packed([shape.num_heads * shape.buckets], width)
    blocks += [
        Block(f"layer {index}", layer + bias * (index == 0), nanos)
        for index in range(shape.num_layers)
    ]
    pairs = shape.num_heads * TEXT_ROWS**2
    # Position bias and scores in the encoder's dtype, softmax in float32 and back, and beside them
    # q, k, v or the hidden layer before and after its ReLU.
    attention = pairs * (3 * width + FLOAT) + 4 * TEXT_ROWS * inner * width
    hidden = 2 * TEXT_ROWS * shape.d_ff * width
    return Stage(
        "text",
        "text encoder",
        tuple(blocks),
        workload.branches,
        (Shape("whole", attention + hidden),),
        workload.residency("text encoder"),
    )


def denoise_stage(workload: Workload, card: Card) -> Stage:
    """Every forward of every step; the blocks may stream."""
    config = workload.profile.dit
    block, edges = dit_bytes(config, workload.dtype)
    width = workload.dtype.itemsize
    flops = forward_flops(config, workload.latent_size)
    token_tensor = workload.tokens * config.width * width
    nanos = (
        _nanos(flops.self_attention / config.num_layers, card.attention_flops)
        + _nanos(flops.other / config.num_layers, card.linear_flops)
        + _nanos(_ELEMENTWISE_PASSES * token_tensor, card.memory_bytes_per_second)
    )
    blocks = [Block("edges", edges, 0, hold=True)]
    blocks += [Block(f"blocks.{index}", block, nanos) for index in range(config.num_layers)]
    text_keys = config.num_layers * 2 * TEXT_ROWS * config.width * width * workload.branches
    rope = workload.tokens * config.head_dim * FLOAT
    held = text_keys + rope + _STATES * workload.latent_bytes
    shapes = tuple(
        Shape(
            cut.name,
            int(cut.token_tensors(workload.latent_size[0]) * token_tensor) + held,
            round(slowdown * 1e6),
            exact=cut == Cut(),
        )
        for cut, slowdown in SLOWDOWNS.items()
    )
    return Stage(
        "denoise",
        "dit",
        tuple(blocks),
        (workload.num_steps + 1) * workload.branches,
        shapes,
        workload.residency("dit"),
    )


def encode_stage(workload: Workload, card: Card, vae: VAE) -> Stage:
    """The conditioning frames only."""
    height, width = workload.size
    frames = min(workload.num_conditional_frames, 1 + TEMPORAL_STRIDE)
    clip = torch.empty(1, 3, frames, height, width, device="meta")
    video = 2 * FLOAT * 3 * workload.num_conditional_frames * height * width
    return _vae_stage(
        workload,
        ("encode", "vae encoder", "encoder"),
        layout([*vae.encoder.parameters(), *vae.quant_conv.parameters()])[1],
        _vae_nanos(workload, card, 1, workload.num_conditional_frames),
        (Shape("whole", peak_bytes(lambda: vae.encode(clip)) + video),),
    )


def decode_stage(workload: Workload, card: Card, vae: VAE) -> Stage:
    """The whole clip, one latent frame at a time; its pictures may be made one by one."""
    frames, rows, columns = workload.latent_size
    latents = torch.empty(1, LATENT_CHANNELS, min(frames, 3), rows, columns, device="meta")

    def peak(frame_by_frame: bool) -> int:
        def decode() -> None:
            if workload.fused and not frame_by_frame:
                fused = FusedDecoder(vae.decoder, vae.post_quant_conv, _METERED)
                for chunk in latents.to(workload.dtype).split(1, dim=2):
                    fused.chunk(chunk)
                return
            for _ in vae.decode_chunks(latents, frame_by_frame=frame_by_frame):
                pass

        return peak_bytes(decode)

    pictures = 3 * workload.num_frames * workload.size.height * workload.size.width
    # The clip as bytes, once in chunks and once joined, and the latents it is made of.
    held = 2 * pictures + 2 * workload.latent_bytes
    shapes = (
        Shape("whole", peak(False) + held),
        Shape(
            FRAME_BY_FRAME,
            peak(True) + held,
            round(_FRAME_BY_FRAME_SLOWDOWN * 1e6),
            exact=False,
        ),
    )
    return _vae_stage(
        workload,
        ("decode", "vae decoder", "decoder"),
        layout([*vae.decoder.parameters(), *vae.post_quant_conv.parameters()])[1],
        _vae_nanos(workload, card, 0, workload.num_frames),
        shapes,
    )


def _metered_rms_silu(
    x: torch.Tensor, *others: Any, keep_total: bool
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    history: int = others[-1]
    padded = x.new_empty((x.shape[0], history + x.shape[1], *x.shape[2:]))
    kept = x.new_empty((x.shape[0], history, *x.shape[2:]))
    return (torch.empty_like(x) if keep_total else None), padded, kept


def _metered_upsample(x: torch.Tensor, _: torch.Tensor | None, *, in_time: bool) -> torch.Tensor:
    batch, frames, height, width, channels = x.shape
    if in_time:
        frames, channels = 2 * frames, channels // 2
    return x.new_empty((batch, frames, 2 * height, 2 * width, channels))


_METERED: Final = Ops(rms_silu=_metered_rms_silu, upsample=_metered_upsample)
"""What the kernels allocate, and nothing computed."""


def dit_bytes(config: DiTConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of one block's weights, and of those outside the blocks."""
    with torch.device("meta"):
        network = DiT(replace(config, num_layers=1), Ops())
    blocks = dit_blocks(network)
    sizes = {
        name: layout([p for module in modules for p in module.parameters()], dtype)[1]
        for name, modules in blocks.items()
    }
    return sizes["blocks.0"], sizes["edges"]


def _packed(counts: Iterable[int], width: int) -> int:
    """Bytes of parameters of so many values, side by side in a block."""
    return sum(-(-count * width // PARAMETER_ALIGNMENT) * PARAMETER_ALIGNMENT for count in counts)


def _vae_stage(
    workload: Workload,
    names: tuple[str, str, str],
    weights: int,
    nanos: int,
    shapes: tuple[Shape, ...],
) -> Stage:
    name, component, block = names
    blocks = (Block(block, weights, nanos, hold=True),)  # every chunk of a clip uses all of it
    return Stage(name, component, blocks, 1, shapes, workload.residency(component))


def _vae_nanos(workload: Workload, card: Card, way: int, frames: int) -> int:
    pixels = workload.size.height * workload.size.width
    further = int(latent_frames(frames)) - 1
    flops = pixels * (_PIXEL_FLOPS_FIRST[way] + further * _PIXEL_FLOPS_NEXT[way])
    return _nanos(flops, card.convolution_flops)


def _nanos(work: float, rate: float) -> int:
    return round(work / rate * NANOS)
