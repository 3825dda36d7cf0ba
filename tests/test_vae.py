"""The VAE against diffusers' AutoencoderKLWan, and its chunked forms against the whole ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import AutoencoderKLWan

from cosmos_fast.config import VAEConfig
from cosmos_fast.errors import InputError
from cosmos_fast.memory.footprint import peak_bytes
from cosmos_fast.model.vae import VAE
from cosmos_fast.model.vae_layers import Past
from random_vae import network

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = VAEConfig(base_dim=8)


def theirs(vae: VAE) -> AutoencoderKLWan:
    config = vae.config
    other = AutoencoderKLWan(
        base_dim=config.base_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        attn_scales=[],
        temperal_downsample=list(config.temporal_downsample),
    ).eval()
    other.load_state_dict(vae.state_dict(), strict=True)
    return other


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    exact = exact.detach().double()
    return float((ours.detach().double() - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def vae() -> VAE:
    return network(CONFIG)


def statistics(config: VAEConfig) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, 16, 1, 1, 1)
    return (
        torch.tensor(config.latents_mean, dtype=torch.float64).view(shape),
        torch.tensor(config.latents_std, dtype=torch.float64).view(shape),
    )


@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.inference_mode()
def test_encode_equals_diffusers(vae: VAE, frames: int, parity: Callable[..., None]) -> None:
    video = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    mean, std = statistics(vae.config)
    expected = (theirs(vae).encode(video).latent_dist.mean.double() - mean) / std
    latents = vae.encode(video)
    assert latents.dtype == torch.float32
    assert latents.shape == (2, 16, (frames - 1) // 4 + 1, 2, 3)
    ours = f"VAE encode of {frames} frames"
    parity(ours, "diffusers AutoencoderKLWan", relative_error(latents, expected), 1e-5)


@pytest.mark.parametrize("frames", [1, 2, 4])
@torch.inference_mode()
def test_decode_equals_diffusers(vae: VAE, frames: int, parity: Callable[..., None]) -> None:
    latents = torch.randn(2, 16, frames, 2, 3)
    mean, std = statistics(vae.config)
    expected = theirs(vae).decode((latents * std + mean).float()).sample
    video = vae.decode(latents)
    assert video.dtype == torch.float32
    assert video.shape == (2, 3, 4 * frames - 3, 16, 24)
    assert (expected.abs() < 1).float().mean() > 0.5
    error = relative_error(video.clamp(-1, 1), expected)
    parity(f"VAE decode of {frames} latent frames", "diffusers AutoencoderKLWan", error, 1e-5)


@torch.inference_mode()
def test_first_latents_do_not_depend_on_later_frames(vae: VAE, parity: Callable[..., None]) -> None:
    video = torch.rand(1, 3, 93, 16, 24) * 2 - 1
    latents = vae.encode(video)
    for frames, known in ((1, 1), (5, 2)):
        error = relative_error(vae.encode(video[:, :, :frames]), latents[:, :, :known])
        parity(f"latents of {frames} frames", "the first of a 93-frame encode", error, 0)


@pytest.mark.parametrize(("base_dim", "count"), [(96, 126_892_531), (16, 3_602_371)])
def test_known_sizes_have_their_number_of_parameters(
    base_dim: int, count: int, unchanged_globals: Callable
) -> None:
    with unchanged_globals(), torch.device("meta"):
        vae = VAE(VAEConfig(base_dim=base_dim))
    assert sum(weight.numel() for weight in vae.parameters()) == count


@torch.inference_mode()
def test_whole_encode_equals_chunked(vae: VAE) -> None:
    video = torch.rand(2, 3, 17, 16, 24) * 2 - 1
    assert relative_error(vae.encode_whole(video), vae.encode(video)) <= 1e-5


@torch.inference_mode()
def test_whole_decode_equals_chunked(vae: VAE) -> None:
    latents = torch.randn(2, 16, 5, 2, 3)
    assert relative_error(vae.decode_whole(latents), vae.decode(latents)) <= 1e-5


@torch.inference_mode()
def test_chunks_are_one_frame_and_then_four_each(vae: VAE) -> None:
    latents = torch.randn(1, 16, 3, 2, 2)
    chunks = list(vae.decode_chunks(latents))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    assert torch.equal(torch.cat(chunks, dim=2), vae.decode(latents))


@torch.inference_mode()
def test_chunks_of_two_clips_may_alternate(vae: VAE) -> None:
    first, second = torch.randn(2, 1, 16, 2, 2, 2).unbind()
    pairs = list(zip(vae.decode_chunks(first), vae.decode_chunks(second), strict=True))
    assert torch.equal(torch.cat([pair[0] for pair in pairs], dim=2), vae.decode(first))
    assert torch.equal(torch.cat([pair[1] for pair in pairs], dim=2), vae.decode(second))


def test_whole_forms_are_differentiable(vae: VAE) -> None:
    video = (torch.rand(1, 3, 5, 16, 16) * 2 - 1).requires_grad_()
    loss = vae.decode_whole(vae.encode_whole(video)).square().mean()
    gradients = torch.autograd.grad(loss, [video, *vae.parameters()])
    assert all(one.isfinite().all() and one.any() for one in gradients)


def test_gradient_equals_the_chunked_one(vae: VAE) -> None:
    video = (torch.rand(1, 3, 9, 16, 16) * 2 - 1).requires_grad_()
    whole, chunked = (
        torch.autograd.grad(encode(video).square().sum(), video)[0]
        for encode in (vae.encode_whole, vae.encode)
    )
    assert relative_error(whole, chunked) <= 1e-5


@torch.inference_mode()
def test_black_frames_stay_finite(vae: VAE) -> None:
    silent = network(CONFIG)
    silent.encoder.conv_in.bias.zero_()
    assert silent.encode(torch.zeros(1, 3, 1, 16, 16)).isfinite().all()


@torch.inference_mode()
def test_bf16_statistics_are_rounded_as_the_reference_rounds_them() -> None:
    vae = network(VAEConfig(base_dim=8)).bfloat16()
    mean = torch.tensor(vae.config.latents_mean).bfloat16().view(1, 16, 1, 1, 1)
    inverse = 1.0 / torch.tensor(vae.config.latents_std).bfloat16().view(1, 16, 1, 1, 1)
    moments = torch.randn(1, 32, 2, 2, 2, dtype=torch.bfloat16)
    expected = (moments[:, :16] - mean) * inverse
    assert expected.dtype == torch.bfloat16
    assert torch.equal(vae._normalised(moments), expected.float())


@torch.inference_mode()
def test_bf16_error_is_that_of_bf16(vae: VAE, measured: Callable[[str], None]) -> None:
    half = network(vae.config).bfloat16()
    exact, other = network(vae.config).bfloat16().float(), theirs(half.float()).bfloat16()
    half = half.bfloat16()
    moments = (torch.randn(1, 16, 2, 4, 4) * 2).bfloat16().float()
    mean, inverse = half._statistics(moments)
    expected = exact.decoder(exact.post_quant_conv(moments, Past()), Past()).clamp(-1, 1)
    ours = half.decode((moments.bfloat16() - mean) * inverse).clamp(-1, 1)
    plain = other.decode(moments.bfloat16()).sample.float()
    error, bound = relative_error(ours, expected), 1.1 * relative_error(plain, expected)
    measured(f"relative error {error:.2e}, diffusers' own in bfloat16 {bound / 1.1:.2e}")
    assert ours.dtype == torch.float32
    assert error <= bound


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 4, 16, 16), "use 1 or 5 frames"),
        ((1, 3, 1, 20, 16), "multiples of 8"),
        ((1, 4, 1, 16, 16), r"\(B, 3, T, H, W\)"),
        ((3, 1, 16, 16), r"\(B, 3, T, H, W\)"),
    ],
    ids=["frames", "height", "channels", "axes"],
)
def test_encode_refuses(vae: VAE, shape: tuple[int, ...], words: str) -> None:
    for encode in (vae.encode, vae.encode_whole):
        with pytest.raises(InputError, match=words):
            encode(torch.zeros(shape))


def test_decode_refuses_another_channel_count(vae: VAE) -> None:
    with pytest.raises(InputError, match=r"\(B, 16, T, h, w\)"):
        vae.decode_chunks(torch.zeros(1, 4, 1, 2, 2))


@pytest.mark.gpu
@torch.inference_mode()
def test_decode_on_gpu_equals_cpu(vae: VAE) -> None:
    # In float64: torch lets cuDNN round float32 convolutions to TF32.
    latents = torch.randn(1, 16, 3, 6, 10).double()
    video = torch.rand(1, 3, 5, 48, 80).double() * 2 - 1
    exact, device = network(vae.config).double(), network(vae.config).double().cuda()
    assert relative_error(device.decode(latents.cuda()).cpu(), exact.decode(latents)) <= 1e-5
    assert relative_error(device.encode(video.cuda()).cpu(), exact.encode(video)) <= 1e-5


@pytest.mark.gpu
@torch.inference_mode()
def test_on_a_gpu_a_picture_is_encoded_without_copies_in_another_form() -> None:
    """A quarter more was taken where the weights of convolutions did not say how rows lie."""
    with torch.device("meta"):
        traced = VAE(VAEConfig()).bfloat16().requires_grad_(False)
        picture = torch.empty(1, 3, 1, 432, 768, dtype=torch.bfloat16)
    counted = peak_bytes(lambda: traced.encode(picture))
    vae = network(VAEConfig()).cuda().bfloat16()
    picture = torch.rand(1, 3, 1, 432, 768, device="cuda", dtype=torch.bfloat16)
    vae.encode(picture)  # kernels are loaded
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    vae.encode(picture)
    assert torch.cuda.max_memory_allocated() - before <= 1.1 * counted
