"""What a generation needs of a machine: blocks, activations and operations of each stage.

Bytes of weights follow from the architecture. What else a stage takes is what torch's allocator
asks of the driver for the requests of ``activations.py``. Operations are those of
``model/flops.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import torch

from cosmos_fast.config import T5Config, check_size
from cosmos_fast.errors import InputError
from cosmos_fast.memory.activations import activations
from cosmos_fast.memory.budget import read_offload
from cosmos_fast.memory.components import dit_blocks
from cosmos_fast.memory.host import PARAMETER_ALIGNMENT, layout
from cosmos_fast.memory.request import NANOS, Block, Shape, Stage
from cosmos_fast.memory.segments import apart, in_turn
from cosmos_fast.model.cuts import Cut
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.flops import forward_flops
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.vae import VAE
from cosmos_fast.types import (
    LATENT_CHANNELS,
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    TEXT_ROWS,
    Size,
    latent_frames,
)

if TYPE_CHECKING:
    from cosmos_fast.config import DiTConfig, Profile
    from cosmos_fast.memory.cards import Card
    from cosmos_fast.memory.request import Residency

ShapesOf = Callable[[str, Mapping[str, tuple[float, bool]]], tuple[Shape, ...]]
"""The shapes of a stage, of the ways it may go: their names, additional shares of time, and whether
the bytes are those of the first."""

FLOAT: Final = 4

_ELEMENTWISE_PASSES: Final = {False: 27, True: 13}
"""Reads and writes of a token tensor in a block beside attention and linear layers, without and
with products of ours; counted in ``model/dit_layers.py``."""
_PIXEL_FLOPS_FIRST: Final = (10.85e6, 6.78e6)
"""Operations a pixel to decode and to encode the first frame."""
_PIXEL_FLOPS_NEXT: Final = (33.9e6, 20.0e6)
"""Operations a pixel to decode and to encode each further latent frame (four frames)."""

T5_11B: Final = T5Config(
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
_FRAME_BY_FRAME_SLOWDOWN: Final = 0.1
"""Additional share of time where the decoder is fused: its last two levels are launched four times
as often, for a quarter of the positions each; estimate."""
_FRAME_BY_FRAME_UNFUSED: Final = 0.14
"""The same of the plain decoder: 1.75 s and 1.53 s."""
_OPENING_SECONDS: Final = 0.0024
"""What a stage that gives its memory back takes for that, where it is short enough to show: an
encode took 1.6 to 3.9 ms longer."""
_ENCODING_SECONDS: Final = 0.0019
"""Of an encode, whatever its size: a picture's way to the device, and the first launches."""
_TEXT_SECONDS: Final = 0.003
"""Of the text stage, whatever the encoder: tokens, and rows on their way to the host and back."""
_TEXT_OPENING_SECONDS: Final = 0.015
"""What the text stage takes longer where its layers come over the bus, beside the copies: 9 to
33 ms, the longer ones where a 14B waits in host memory."""
_UNTRACED: Final = 80_000_000
"""What the transformer's stage takes beside all that is traced: 26 to 80 MB on an H200."""
_WHOLE: Final[Mapping[str, tuple[float, bool]]] = MappingProxyType({"whole": (0.0, True)})


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
    products: bool = False
    """The transformer's products are ours; see ``model/linear_table.py``."""
    text: T5Config | None = T5_11B
    """None: no prompt has to be encoded."""
    text_dtype: torch.dtype = torch.bfloat16
    """What the text encoder is stored in."""
    offloaded: frozenset[str] = frozenset()
    """Components that must leave the device when their stage ends."""
    split: int = 1
    """Ranks among which the guidance branches are divided: 1, or 2 with one branch each."""
    context: int = 1
    """Ranks that share the tokens of a branch. What a stage asks of the device is counted as if
    there were one: an upper bound."""

    def __post_init__(self) -> None:
        check_size(self.size, self.profile.dit)
        longest = self.profile.dit.max_size[0]
        if latent_frames(self.num_frames) > longest:
            raise InputError(
                f"num_frames = {self.num_frames}: the position table has {longest} latent frames, "
                f"{4 * (longest - 1) + 1} frames"
            )
        latent_frames(self.num_conditional_frames)
        if self.num_conditional_frames > self.num_frames:
            raise InputError(
                f"{self.num_conditional_frames} frames given: a clip of {self.num_frames} has fewer"
            )
        if self.num_steps < 1:
            raise InputError(f"num_steps = {self.num_steps}: at least one step is needed")
        read_offload(self.offloaded)

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
    def forwards(self) -> int:
        """That one rank computes."""
        return (self.num_steps + 1) * self.branches // self.split

    @property
    def latent_bytes(self) -> int:
        """One float32 latent of the whole clip."""
        frames, height, width = self.latent_size
        return LATENT_CHANNELS * frames * height * width * FLOAT

    def residency(self, component: str) -> Residency:
        return "drop" if component in self.offloaded else "free"


def stages(workload: Workload, card: Card, *, moves: bool = True) -> tuple[Stage, ...]:
    """The stages of ``workload`` on ``card``, in order.

    Args:
        moves: weights may, so that between stages the device is given back what none of them
            holds. Otherwise stages run in their plain shapes and memory stays with the process.
    """
    with torch.device("meta"):
        vae = VAE(workload.profile.vae).to(workload.dtype)
    shapes = partial(_shapes, workload, card)
    if card.caches and not moves:
        shapes = partial(_grown, workload, _taken_in_turn(workload))
    opens = moves and card.caches
    text: tuple[Stage, ...] = ()
    if workload.text is not None:
        text = (text_stage(workload, workload.text, card, shapes, opens=opens),)
    return (
        *text,
        encode_stage(workload, card, vae, shapes, opens=opens),
        denoise_stage(workload, card, shapes),
        decode_stage(workload, card, vae, shapes),
    )


def _taken_in_turn(workload: Workload) -> dict[str, int]:
    """What the driver counts at the end of each stage, where nothing is given back to it.

    Counted for the profile's own steps where a run has fewer: a longer table of times is all that
    differs, and every run of a size shares one count.
    """
    steps = max(workload.num_steps, workload.profile.num_steps)
    counted = activations(replace(workload, num_steps=steps), tuple(SLOWDOWNS))
    names = [name for name, ways in counted.items() if ways]
    taken = in_turn(counted[name][0].trace for name in names)
    return dict(zip(names, taken, strict=True))


def _grown(
    workload: Workload, taken: Mapping[str, int], stage: str, ways: Mapping[str, object]
) -> tuple[Shape, ...]:
    """The plain shape alone."""
    beside = apart([*_beside(workload, stage), *_untraced(stage)])
    return (Shape("whole", taken[stage] + beside),)


def _beside(workload: Workload, stage: str) -> list[int]:
    """Bytes of what outlives a stage, or lives on in it: each in memory of its own."""
    latent, height, width = workload.latent_bytes, *workload.size
    rows = TEXT_ROWS * workload.profile.dit.text_dim * torch.bfloat16.itemsize
    small = [*[rows] * workload.branches, rows * workload.branches]
    if stage in ("text", "encode"):
        return [*small, latent // workload.latent_size[0]]
    if stage == "denoise":
        return [*small, latent, latent]
    chunk = 3 * TEMPORAL_STRIDE * height * width
    return [latent, *[chunk] * -(-workload.num_frames // TEMPORAL_STRIDE)]


def _untraced(stage: str) -> list[int]:
    """Bytes that a device's libraries take in a stage."""
    return [_UNTRACED] if stage == "denoise" else []


def _shapes(
    workload: Workload, card: Card, stage: str, ways: Mapping[str, tuple[float, bool]]
) -> tuple[Shape, ...]:
    """
    Args:
        ways: names, additional shares of time, and whether the bytes are those of the first.
    """
    beside, found = _beside(workload, stage), []
    counted = activations(workload, tuple(SLOWDOWNS))[stage]
    for (name, (slowdown, exact)), one in zip(ways.items(), counted, strict=True):
        slower = round(slowdown * 1e6)
        if card.caches:
            taken = one.heap.total + apart([*beside, *_untraced(stage)])
            segment = one.heap.segment
        else:
            taken, segment = one.tensors + sum(beside), 0
        found.append(Shape(name, taken, slower, exact, segment))
    return tuple(found)


def text_stage(
    workload: Workload, shape: T5Config, card: Card, shapes: ShapesOf, *, opens: bool
) -> Stage:
    """T5, one pass for all prompts; its layers may stream. ``opens`` as for an encode."""
    inner, width = shape.num_heads * shape.d_kv, workload.text_dtype.itemsize
    matrices = [shape.d_model * inner] * 4 + [shape.d_model * shape.d_ff] * 2
    norms = [shape.d_model] * 2
    layer = _packed([*matrices, *norms], width)
    flops = 2 * TEXT_ROWS * sum(matrices) + 4 * TEXT_ROWS**2 * inner
    nanos = _nanos(workload.branches * flops, card.text_flops)
    embedding = _packed([shape.vocab_size * shape.d_model, shape.d_model], width)
    # On the last layer: it is before or behind all copies, and hides none of them.
    around = _nanos(_TEXT_SECONDS + _TEXT_OPENING_SECONDS * opens, 1)
    blocks = [Block("embedding", embedding, 0, hold=True)]
    bias = _packed([shape.num_heads * shape.buckets], width)
    blocks += [
        Block(
            f"layer {index}",
            layer + bias * (index == 0),
            nanos + around * (index == shape.num_layers - 1),
        )
        for index in range(shape.num_layers)
    ]
    return Stage(
        "text",
        "text encoder",
        tuple(blocks),
        1,
        shapes("text", _WHOLE),
        workload.residency("text encoder"),
    )


def denoise_stage(workload: Workload, card: Card, shapes: ShapesOf) -> Stage:
    """Every forward of every step; the blocks may stream."""
    config = workload.profile.dit
    block, edges = dit_bytes(config, workload.dtype)
    width = workload.dtype.itemsize
    flops = forward_flops(config, workload.latent_size)
    token_tensor = workload.tokens * config.width * width
    nanos = (
        _nanos(flops.self_attention / config.num_layers, card.attention_flops)
        + _nanos(flops.other / config.num_layers, card.linear_flops)
        + _nanos(_ELEMENTWISE_PASSES[workload.products] * token_tensor, card.copy_rate)
    )
    blocks = [Block("edges", edges, 0, hold=True)]
    nanos //= workload.context
    blocks += [Block(f"blocks.{index}", block, nanos) for index in range(config.num_layers)]
    ways = {cut.name: (slowdown, cut == Cut()) for cut, slowdown in SLOWDOWNS.items()}
    return Stage(
        "denoise",
        "dit",
        tuple(blocks),
        workload.forwards,
        shapes("denoise", ways),
        workload.residency("dit"),
    )


def encode_stage(
    workload: Workload, card: Card, vae: VAE, shapes: ShapesOf, *, opens: bool
) -> Stage:
    """The conditioning frames only.

    Args:
        opens: device memory is taken for the stage, and given back.
    """
    nanos = _vae_nanos(workload, card, 1, workload.num_conditional_frames)
    nanos += _nanos(_ENCODING_SECONDS, 1)
    return _vae_stage(
        workload,
        ("encode", "vae encoder", "encoder"),
        layout([*vae.encoder.parameters(), *vae.quant_conv.parameters()])[1],
        nanos + _nanos(_OPENING_SECONDS, 1) * opens,
        shapes("encode", _WHOLE),
    )


def decode_stage(workload: Workload, card: Card, vae: VAE, shapes: ShapesOf) -> Stage:
    """The whole clip, one latent frame at a time; its pictures may be made one by one."""
    slower = _FRAME_BY_FRAME_SLOWDOWN if workload.fused else _FRAME_BY_FRAME_UNFUSED
    return _vae_stage(
        workload,
        ("decode", "vae decoder", "decoder"),
        layout([*vae.decoder.parameters(), *vae.post_quant_conv.parameters()])[1],
        _vae_nanos(workload, card, 0, workload.num_frames) // (workload.split * workload.context),
        shapes("decode", {**_WHOLE, FRAME_BY_FRAME: (slower, False)}),
    )


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
    if way:
        return _nanos(flops, card.encoder_flops)
    return _nanos(flops, card.decoder_flops if workload.fused else card.convolution_flops)


def _nanos(work: float, rate: float) -> int:
    return round(work / rate * NANOS)
