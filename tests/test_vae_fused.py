"""The decoder between kernels against the plain one, in plain torch and in Triton's interpreter."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch

from cosmos_fast.config import VAEConfig
from cosmos_fast.model.attention import torch_attention
from cosmos_fast.model.ops import Ops, _with_kernels
from cosmos_fast.model.ops.fallback import needs_gradient
from cosmos_fast.model.vae import VAE
from cosmos_fast.model.vae_fused import FusedDecoder
from cosmos_fast.model.vae_layers import FrameAttention, Past
from cosmos_fast.types import TEMPORAL_STRIDE
from random_vae import network
from test_vae import relative_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONFIG = VAEConfig(base_dim=8)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def vae() -> VAE:
    return network(CONFIG).to(DEVICE)


def fused_chunks(vae: VAE, latents: torch.Tensor, ops: Ops) -> Iterator[torch.Tensor]:
    decoder = FusedDecoder(vae.decoder, vae.post_quant_conv, ops)
    z = vae._denormalised(latents)
    for index in range(z.shape[2]):
        yield decoder.chunk(z[:, :, index : index + 1])


@pytest.mark.parametrize("frames", [1, 2, 4])
@torch.inference_mode()
def test_between_kernels_the_numbers_are_those_of_the_plain_decoder(vae: VAE, frames: int) -> None:
    latents = torch.randn(2, 16, frames, 3, 2, device=DEVICE)
    chunks = list(fused_chunks(vae, latents, Ops()))
    assert [chunk.shape[2] for chunk in chunks] == [1] + [TEMPORAL_STRIDE] * (frames - 1)
    assert chunks[0].dtype == torch.float32
    assert relative_error(torch.cat(chunks, dim=2), vae.decode(latents)) <= 1e-5


@pytest.mark.parametrize("temporal", [(False, True, True), (False, False, False)], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_frame_by_frame_the_numbers_are_those_of_the_plain_decoder(
    batch: int, temporal: tuple[bool, ...]
) -> None:
    vae = network(VAEConfig(base_dim=8, temporal_downsample=temporal)).to(DEVICE)
    latents = torch.randn(batch, 16, 3, 3, 2, device=DEVICE)
    plain = vae.decode(latents)
    vae.ops = Everywhere()
    chunks = list(vae.decode_chunks(latents, frame_by_frame=True))
    assert [chunk.shape[2] for chunk in chunks] == [1, *[4 if any(temporal) else 1] * 2]
    assert relative_error(torch.cat(chunks, dim=2), plain) <= 1e-5


@pytest.mark.parametrize("frames", [1, 5])
@torch.inference_mode()
def test_attention_reads_rows_that_kernels_can(
    frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where values of a row lie apart, torch falls back to a matrix of all pairs."""
    vae = network(VAEConfig(base_dim=8))
    seen: list[int] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.extend(tensor.stride(-1) for tensor in (q, k, v))
        return attention(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    latents = vae.encode(torch.rand(1, 3, frames, 48, 32))
    list(vae.decode_chunks(latents))
    list(fused_chunks(vae.to(torch.bfloat16), latents.bfloat16(), Ops()))
    assert len(seen) == 9 * latents.shape[2]
    assert set(seen) == {1}


@pytest.mark.gpu
@torch.inference_mode()
def test_on_a_gpu_attention_takes_no_matrix_of_all_pairs() -> None:
    channels = 384
    block = FrameAttention(channels).to(DEVICE, torch.bfloat16)
    for form in (torch.contiguous_format, torch.channels_last_3d):
        x = torch.randn(1, channels, 1, 88, 160, device=DEVICE, dtype=torch.bfloat16)
        x = x.to(memory_format=form)
        block(x)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        block(x)
        matrix = 2 * (88 * 160) ** 2
        assert torch.cuda.max_memory_allocated() - before < matrix / 4


@torch.inference_mode()
def test_kernels_give_what_torch_gives(vae: VAE) -> None:
    latents = torch.randn(1, 16, 3, 1, 2, device=DEVICE)
    plain = torch.cat(list(fused_chunks(vae, latents, Ops())), dim=2)
    kernels = _with_kernels(torch_attention, dict(Ops().names))
    ours = torch.cat(list(fused_chunks(vae, latents, kernels)), dim=2)
    assert relative_error(ours, plain) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("frame_by_frame", [False, True])
@torch.inference_mode()
def test_what_stays_for_a_clip_is_there_before_its_first_chunk(
    vae: VAE, frame_by_frame: bool
) -> None:
    """And is never anywhere else: no history is made among what comes and goes."""
    decoder = FusedDecoder(vae.decoder, vae.post_quant_conv, Ops(), frame_by_frame=frame_by_frame)
    z = vae._denormalised(torch.randn(1, 16, 4, 3, 2, device=DEVICE))
    decoder._histories = histories = decoder._begun(z[:, :, :1])

    def places() -> set[int]:
        made = [*histories._places.values(), *histories._spare.values()]
        return {one.data_ptr() for one in (*made, *decoder._weights.values())}

    before = places()
    for index in range(z.shape[2]):
        decoder.chunk(z[:, :, index : index + 1])
        assert places() == before


def test_clips_may_alternate(vae: VAE) -> None:
    first, second = torch.randn(2, 1, 16, 2, 2, 2, device=DEVICE).unbind()
    one, two = (fused_chunks(vae, latents, Ops()) for latents in (first, second))
    pairs = list(zip(one, two, strict=True))
    expected = torch.cat(list(fused_chunks(vae, second, Ops())), dim=2)
    assert torch.equal(torch.cat([pair[1] for pair in pairs], dim=2), expected)


@torch.inference_mode()
def test_bf16_error_is_at_most_that_of_the_plain_decoder(
    vae: VAE, measured: Callable[[str], None]
) -> None:
    half = network(CONFIG).bfloat16().to(DEVICE)
    exact = network(CONFIG).bfloat16().to(DEVICE).double()
    latents = torch.randn(1, 16, 3, 4, 4, device=DEVICE)
    z = half._denormalised(latents)
    past = Past()
    expected = torch.cat(
        [
            exact.decoder(exact.post_quant_conv(z[:, :, i : i + 1].double(), past), past)
            for i in range(3)
        ],
        dim=2,
    )
    fused = torch.cat(list(fused_chunks(half, latents, Ops())), dim=2)
    plain = torch.cat(list(half.decode_chunks(latents)), dim=2)
    ours, bound = relative_error(fused, expected), 1.1 * relative_error(plain, expected)
    measured(f"relative error {ours:.2e}, plain decoder {bound / 1.1:.2e}")
    assert ours <= bound


class Everywhere(Ops):
    """Fuses on any device."""

    def decodes(self, *tensors: torch.Tensor) -> bool:
        return True


def test_one_trained_layer_gets_its_gradient(vae: VAE) -> None:
    class OnAnyDevice(Ops):
        def decodes(self, *tensors: torch.Tensor) -> bool:
            return not needs_gradient(*tensors)

    other = VAE(CONFIG, OnAnyDevice()).to(DEVICE).requires_grad_(False)
    other.load_state_dict(vae.state_dict())
    trained = other.decoder.get_parameter("up_blocks.1.resnets.0.conv1.weight")
    trained.requires_grad_(True)
    other.decode(torch.randn(1, 16, 2, 2, 2, device=DEVICE)).square().mean().backward()
    assert trained.grad is not None
    assert trained.grad.any()


@torch.inference_mode()
def test_a_layer_with_a_hook_is_called(vae: VAE) -> None:
    latents = torch.randn(1, 16, 2, 2, 2, device=DEVICE)
    plain, called = vae.decode(latents), []
    other = VAE(CONFIG, Everywhere()).to(DEVICE)
    other.load_state_dict(vae.state_dict())
    fused = other.decode(latents)
    assert not torch.equal(fused, plain)
    assert relative_error(fused, plain) <= 1e-5
    layer = other.decoder.get_submodule("up_blocks.1.resnets.0.conv1")
    handle = layer.register_forward_hook(lambda *_: called.append(1))
    assert torch.equal(other.decode(latents), plain)
    assert len(called) == 2, "once a chunk"
    handle.remove()
    assert torch.equal(other.decode(latents), fused)


def test_a_cpu_and_gradients_go_the_plain_way(vae: VAE) -> None:
    kernels = _with_kernels(torch_attention, dict(Ops().names))
    assert not kernels.decodes(torch.zeros(1))
    assert not Ops().decodes(torch.zeros(1, device=DEVICE))
    assert not kernels.decodes(torch.zeros(1, device=DEVICE, requires_grad=True))
    assert dataclasses.replace(kernels).names["upsample"] == "triton"


@pytest.mark.gpu
@torch.inference_mode()
def test_a_gpu_decodes_between_kernels_and_within_the_error_of_bf16() -> None:
    config = VAEConfig()
    half = network(config).bfloat16().cuda()
    half.ops = Ops.select("cuda", torch.bfloat16)
    latents = torch.randn(1, 16, 3, 12, 20, device="cuda")
    fused = torch.cat(list(half.decode_chunks(latents)), dim=2)
    half.ops = None
    plain = torch.cat(list(half.decode_chunks(latents)), dim=2)
    wide = half.double()
    expected = torch.cat(list(wide.decode_chunks(latents)), dim=2)
    assert relative_error(fused, expected) <= 1.1 * relative_error(plain, expected)
