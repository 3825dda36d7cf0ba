"""The forms of the networks that save memory: the same numbers as the plain ones."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cosmos_fast.config import DiTConfig, VAEConfig
from cosmos_fast.memory.activations import _METERED, Activations, decode_requests
from cosmos_fast.memory.footprint import peak_bytes, trace
from cosmos_fast.memory.models import SLOWDOWNS
from cosmos_fast.model.cuts import Cut
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.pixels import to_pixels
from cosmos_fast.model.vae import VAE
from cosmos_fast.model.vae_fused import FusedDecoder
from cosmos_fast.parallel.shards import cut
from cosmos_fast.types import TokenLayout

if TYPE_CHECKING:
    from collections.abc import Callable

CUTS = [*SLOWDOWNS, Cut(3, 1), Cut(1, 3), Cut(100, 100)]
CONFIG = DiTConfig(num_layers=2, num_heads=4, head_dim=16, adaln_rank=8, text_dim=24)


@pytest.fixture(scope="module")
def network() -> DiT:
    torch.manual_seed(2)
    network = DiT(CONFIG, Ops(), "float32")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("order", ["raster", "tiled"])
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
def test_a_cut_transformer_gives_the_same_velocity(
    cut: Cut, order: str, batch: int, network: DiT
) -> None:
    layout = TokenLayout((3, 2, 3))
    if order == "tiled":
        layout = TokenLayout((3, 2, 3), torch.randperm(18))
    x = torch.randn(batch, 16, 3, 4, 6)
    times = torch.rand(batch, 3)
    mask = torch.zeros(batch, 1, 3, 4, 6)
    with torch.no_grad():
        text = network.text_context(torch.randn(1, 5, CONFIG.text_dim))
        plain = network(x, times, mask, text, layout)
        cut_up = network(x, times, mask, text, layout, cut=cut)
    torch.testing.assert_close(cut_up, plain, rtol=1e-5, atol=1e-5)


def test_keys_made_as_they_are_used_are_the_same(network: DiT) -> None:
    rows = torch.randn(1, 5, CONFIG.text_dim)
    with torch.no_grad():
        at_once, as_used = network.text_context(rows), network.text_context(rows, as_used=True)
    assert len(as_used.blocks) == CONFIG.num_layers
    assert all(map(torch.equal, at_once.blocks, as_used.blocks))
    kept = as_used.blocks
    assert kept[0] is kept[0]


@pytest.mark.parametrize("temporal", [(False, True, True), (False, False, False)], ids=str)
def test_decoding_frame_by_frame_gives_the_same_pictures(
    temporal: tuple[bool, ...], parity: Callable[..., None]
) -> None:
    vae = VAE(VAEConfig(base_dim=8, temporal_downsample=temporal)).eval().requires_grad_(False)
    latents = torch.randn(1, 16, 4, 4, 6)
    with torch.no_grad():
        plain = list(vae.decode_chunks(latents))
        single = list(vae.decode_chunks(latents, frame_by_frame=True))
    assert [chunk.shape for chunk in single] == [chunk.shape for chunk in plain]
    error = (torch.cat(single, 2) - torch.cat(plain, 2)).abs().max() / torch.cat(
        plain, 2
    ).abs().max()
    parity("VAE decode frame by frame", "decode by latent frames", float(error), 1e-5)


def test_decoding_frame_by_frame_needs_less() -> None:
    with torch.device("meta"):
        vae = VAE(VAEConfig()).to(torch.bfloat16)
    latents = torch.empty(1, 16, 3, 54, 96, device="meta")
    plain, single = (
        peak_bytes(lambda one=one: list(vae.decode_chunks(latents, frame_by_frame=one)))  # type: ignore[misc]
        for one in (False, True)
    )
    assert single < 0.65 * plain


class Metered:
    """A stripe of rows that allocates what ranks do, and moves nothing."""

    def __init__(self, rows: int, ranks: int, rank: int) -> None:
        self.own = cut(rows, ranks)[rank]
        self._neighbours = len({rank - 1, rank + 1} & set(range(ranks)))
        self._rows, self._ranks = rows, ranks

    def border(self, x_BTHWC: torch.Tensor) -> None:
        sent = torch.stack([x_BTHWC[:, :, 1]] * self._neighbours)
        torch.empty_like(sent)

    def called(self, *_: object) -> Any:
        raise NotImplementedError("the fused decoder calls no layer")

    def gathered(self, pixels: torch.Tensor) -> torch.Tensor:
        count, height, width, channels = pixels.shape
        sent = pixels.transpose(0, 1).contiguous().flatten().repeat(self._ranks)
        rows = height // len(self.own) * self._rows
        received = sent.new_empty((rows, count, width, channels))
        return received.transpose(0, 1).contiguous()


@pytest.mark.parametrize("frame_by_frame", [False, True])
@pytest.mark.parametrize("rows", [(2, 2), (3, 40), (5, 200), (54, 96)], ids=str)
def test_a_stripe_takes_no_more_than_is_planned_for_the_whole(
    rows: tuple[int, int], frame_by_frame: bool
) -> None:
    """Whatever the ranks, a plan counts the decoder as if there were one."""
    with torch.device("meta"):
        vae = VAE(VAEConfig()).to(torch.bfloat16).requires_grad_(False)
    size = (3, *rows)
    planned = Activations(
        lambda: decode_requests(vae, size, fused=True, frame_by_frame=frame_by_frame)
    )

    def striped(stripe: Metered) -> None:
        latents = torch.empty((1, 16, *size), dtype=torch.bfloat16, device="meta")
        decoder = FusedDecoder(
            vae.decoder,
            vae.post_quant_conv,
            _METERED,
            frame_by_frame=frame_by_frame,
            stripe=stripe,
        )
        for chunk in latents.split(1, dim=2):
            stripe.gathered(to_pixels(decoder.chunk(chunk)))

    for ranks in (2, 3, 8):
        if ranks > rows[0]:
            continue
        for rank in (0, ranks // 2):  # the longest stripe; one between two others
            stripe = Metered(rows[0], ranks, rank)
            taken = Activations(partial(trace, partial(striped, stripe)))
            assert taken.tensors < planned.tensors, (ranks, rank)
            assert taken.heap.total <= planned.heap.total, (ranks, rank)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize(
    "forms",
    [
        (torch.contiguous_format, torch.contiguous_format),
        (torch.channels_last_3d, torch.channels_last_3d),
        (torch.channels_last_3d, torch.contiguous_format),
    ],
    ids=["plain", "channels last", "mixed"],
)
def test_what_is_put_together_lies_as_torch_has_it(
    dim: int, forms: tuple[torch.memory_format, torch.memory_format]
) -> None:
    plain = torch.empty(2, 3, 4, 5, 6, dtype=torch.bfloat16, device="meta")
    parts = [plain.to(memory_format=form) for form in forms]
    found: list[torch.Tensor] = []
    peak_bytes(lambda: found.append(torch.cat(parts, dim=dim)))
    (ours,), torchs = found, torch.cat(parts, dim=dim)
    assert (ours.shape, ours.stride(), ours.dtype) == (torchs.shape, torchs.stride(), torchs.dtype)
