"""The forms of the networks that save memory: the same numbers as the plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cosmos_fast.config import DiTConfig, VAEConfig
from cosmos_fast.memory.footprint import peak_bytes
from cosmos_fast.memory.models import SLOWDOWNS
from cosmos_fast.model.cuts import Cut
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.vae import VAE
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
