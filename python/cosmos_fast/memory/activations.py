"""What the stages of a generation ask of a device beside their weights, request by request.

The networks run on torch's meta device, with operations that allocate what the kernels do and
compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.memory.footprint import trace
from cosmos_fast.memory.segments import Heap, Segments, heap
from cosmos_fast.model.attention import Attended
from cosmos_fast.model.dit import AsUsed, DiT, Modulations, TextContext
from cosmos_fast.model.linear_table import Gated, design
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.pixels import to_pixels
from cosmos_fast.model.rope import Rope
from cosmos_fast.model.t5 import T5Encoder
from cosmos_fast.model.vae import VAE
from cosmos_fast.model.vae_fused import FusedDecoder
from cosmos_fast.sampling import adams_bashforth, denoiser, guided
from cosmos_fast.types import (
    LATENT_CHANNELS,
    TEMPORAL_STRIDE,
    TEXT_ROWS,
    Conditioning,
    LatentFrames,
    TokenLayout,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.config import T5Config, VAEConfig
    from cosmos_fast.memory.models import Workload
    from cosmos_fast.memory.segments import Trace
    from cosmos_fast.model.attention import AttentionSpec
    from cosmos_fast.model.cuts import Cut
    from cosmos_fast.model.linear_table import Epilogue, Following
    from cosmos_fast.types import Size

_LAYERS: Final = 4
"""Blocks of a transformer that stand for all: they ask for the same."""
_SIGMAS: Final = (80.0, 8.0, 0.8)
"""Levels of a run that stand for all: the first step, one after it, the clean-up evaluation."""
_CHUNKS: Final = 3
"""Latent frames that stand for a clip: the first, one after it, one with a full history."""


@dataclass(frozen=True)
class Activations:
    """Of one way to run a stage; counted when first asked for, which takes a good part of a
    second."""

    requests: Callable[[], Trace]

    @cached_property
    def trace(self) -> Trace:
        return self.requests()

    @cached_property
    def heap(self) -> Heap:
        """The segment that serves it."""
        return heap(self.trace)

    @cached_property
    def tensors(self) -> int:
        """The most bytes that its tensors hold at a time."""
        segments = Segments()
        segments.follow(self.trace)
        return segments.peak_allocated


def activations(workload: Workload, cuts: tuple[Cut, ...]) -> Mapping[str, Sequence[Activations]]:
    """Of each stage by name, in the order of its shapes: of decoding the plain way and frame by
    frame, of the transformer as ``cuts`` say.

    Workloads share what they do not differ in: each way is counted once for all of them.
    """
    frames, *latent_size = workload.latent_size
    coding = _coding(
        workload.profile.vae,
        workload.dtype,
        workload.size,
        workload.num_conditional_frames,
        (min(frames, _CHUNKS), *latent_size),
        workload.fused,
    )
    # What the transformer's part does not depend on is the same for all.
    alike = replace(
        workload,
        num_conditional_frames=1,
        fused=False,
        text=None,
        text_dtype=torch.bfloat16,
        offloaded=frozenset(),
        split=1,
        context=1,
    )
    text = (workload.text, workload.text_dtype, workload.branches)
    return {
        "text": [] if workload.text is None else [_counted(text_requests, *text)],
        "encode": coding["encode"],
        "denoise": [_counted(denoise_requests, alike, cut) for cut in cuts],
        "decode": coding["decode"],
    }


@lru_cache(maxsize=64)
def _counted(requests: Callable[..., Trace], *given: Any) -> Activations:
    return Activations(partial(requests, *given))


@lru_cache(maxsize=16)
def _coding(
    config: VAEConfig,
    dtype: torch.dtype,
    size: Size,
    frames: int,
    latent_size: tuple[int, ...],
    fused: bool,
) -> Mapping[str, Sequence[Activations]]:
    """Of encoding ``frames`` and of decoding latents of ``latent_size``, by one VAE: what it keeps
    from the first is not asked for again."""
    with torch.device("meta"):
        vae = VAE(config).to(dtype)
    vae.requires_grad_(False)
    decode = partial(decode_requests, vae, latent_size, fused)
    return {
        "encode": [Activations(partial(encode_requests, vae, size, frames))],
        "decode": [Activations(partial(decode, single)) for single in (False, True)],
    }


def text_requests(config: T5Config, dtype: torch.dtype, prompts: int) -> Trace:
    """All prompts in one pass."""
    with torch.device("meta"):
        network = T5Encoder(replace(config, num_layers=min(_LAYERS, config.num_layers))).to(dtype)

    def encode() -> list[torch.Tensor]:
        ids = _empty((prompts, TEXT_ROWS), torch.int64)
        rows = network(ids, [1] * prompts)
        return [rows_NC.to(torch.bfloat16) for rows_NC in rows]

    return trace(encode)


def denoise_requests(workload: Workload, cut: Cut) -> Trace:
    """The solver around the transformer, with what is made once a run."""
    config, dtype = workload.profile.dit, workload.dtype
    frames, rows, columns = workload.latent_size
    layers = min(_LAYERS, config.num_layers)
    with torch.device("meta"):
        ops = replace(_METERED, product=_metered_product) if workload.products else _METERED
        network = DiT(replace(config, num_layers=layers), ops).to(dtype)
    grid = (frames, rows // config.patch, columns // config.patch)
    layout = TokenLayout(grid)
    copies = -(-config.num_layers // layers)
    """Of what every block has of its own, for those that are left out."""

    def grown(shape: tuple[int, ...]) -> AsUsed:
        held: list[torch.Tensor] = []

        def make(_: int) -> torch.Tensor:
            held.extend(_empty(shape, dtype) for _ in range(copies - 1))
            return _empty(shape, dtype)

        made = AsUsed(make, layers)
        made.held = held  # type: ignore[attr-defined]
        return made

    def sample() -> None:
        first = _empty((1, LATENT_CHANNELS, 1, rows, columns), torch.float32)
        given = Conditioning.from_first_frames(first, LatentFrames(frames))
        half = (layout.tokens, config.head_dim // 2)
        rope = Rope(_empty(half, torch.float32), _empty(half, torch.float32))
        times = workload.num_steps + 2
        table = grown((3, 1, times, 3 * config.width))
        vectors: dict[int, Modulations] = {}

        def branch() -> Any:
            keys = (1, TEXT_ROWS, 2, config.num_heads, config.head_dim)
            text = TextContext(grown(keys))

            def velocity(
                x: torch.Tensor, t_BT: torch.Tensor, mask: torch.Tensor, step: int
            ) -> torch.Tensor:
                if step not in vectors:
                    vectors.clear()
                    list(table)
                    vectors[step] = Modulations(
                        grown((3, 1, frames, 3 * config.width)),
                        _empty((1, frames, 2 * config.width), dtype),
                    )
                flow: torch.Tensor = network(
                    x, t_BT, mask, text, layout, rope=rope, modulations=vectors[step], cut=cut
                )
                return flow

            return denoiser(velocity, given)

        branches = [branch() for _ in range(workload.branches)]
        other = branches[1] if workload.guided else None
        noise = _empty(given.latents.shape, torch.float32)
        adams_bashforth(guided(branches[0], other, 7.0), noise * 80, _SIGMAS)

    return trace(sample)


def encode_requests(vae: VAE, size: Size, frames: int) -> Trace:
    """The conditioning frames only."""

    def encode() -> torch.Tensor:
        pixels = _empty((frames, *size, 3), torch.uint8)
        video = pixels.permute(3, 0, 1, 2)[None].to(vae.dtype) / 127.5 - 1
        return vae.encode(video[:, :, : 1 + 2 * TEMPORAL_STRIDE])

    return trace(encode)


def decode_requests(
    vae: VAE, latent_size: tuple[int, ...], fused: bool, frame_by_frame: bool
) -> Trace:
    """A clip, one latent frame at a time, to pixels."""
    latents = _empty((1, LATENT_CHANNELS, *latent_size), torch.float32)

    def chunks() -> Iterator[torch.Tensor]:
        if not fused:
            yield from vae.decode_chunks(latents, frame_by_frame=frame_by_frame)
            return
        decoder = FusedDecoder(
            vae.decoder, vae.post_quant_conv, _METERED, frame_by_frame=frame_by_frame
        )
        yield from map(decoder.chunk, latents.to(vae.dtype).split(1, dim=2))

    def decode() -> None:
        for chunk in chunks():
            to_pixels(chunk)

    return trace(decode)


def _empty(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _metered_rms_silu(
    x: torch.Tensor,
    *others: Any,
    keep_total: bool,
    kept_BTHWC: torch.Tensor | None = None,
    border: int = 0,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    history: int = others[-1]
    batch, frames, height, *rest = x.shape
    padded = x.new_empty((batch, history + frames, height + 2 * border, *rest))
    if kept_BTHWC is None:
        kept_BTHWC = x.new_empty((x.shape[0], history, *x.shape[2:]))
    return (torch.empty_like(x) if keep_total else None), padded, kept_BTHWC


def _metered_upsample(
    x: torch.Tensor, _: torch.Tensor | None, *, in_time: bool, border: int = 0
) -> torch.Tensor:
    batch, frames, height, width, channels = x.shape
    if in_time:
        frames, channels = 2 * frames, channels // 2
    return x.new_empty((batch, frames, 2 * (height + border), 2 * width, channels))


def _metered_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec
) -> Attended:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    q.new_empty(q.shape[:3], dtype=torch.float32)  # its statistics
    return Attended(out)


def _metered_product(
    epilogue: Epilogue, x: torch.Tensor, weight: torch.Tensor, following: Following
) -> torch.Tensor | None:
    if design(epilogue, x.shape[:-1].numel(), x.shape[-1]) is None:
        return None
    if isinstance(following, Gated):
        return following.residual_BND
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


_METERED: Final = Ops(
    qk_norm_rope=lambda q, k, *_: (q, k),
    head_norm=lambda x, *_: x,
    layernorm_modulate=lambda x, *_: torch.empty_like(x),
    gated_residual=lambda x, *_: x,
    gated_layernorm_modulate=lambda x, gate, y, *_: (x, y),
    attention=_metered_attention,
    rms_silu=_metered_rms_silu,
    upsample=_metered_upsample,
)
"""What the kernels allocate, and nothing computed."""
