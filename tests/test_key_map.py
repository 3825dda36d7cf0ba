"""The key tables against the networks they name, and against the renaming written out by hand."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_fast.config import DiTConfig, T5Config, VAEConfig
from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights import dit_keys, text_keys, vae_keys
from cosmos_fast.weights.key_map import KeyMap
from cosmos_fast.weights.released import ARCHITECTURES

SMALL = DiTConfig(num_layers=2, num_heads=3, head_dim=12, adaln_rank=4, text_dim=10)
SMALL_VAE = VAEConfig(base_dim=4)

# NVIDIA's name to diffusers', by hand and independently of the tables under test.
DIT_BY_HAND = [
    (r"^x_embedder\.proj\.1\.", "patch_embed.proj."),
    (r"^t_embedder\.1\.", "time_embed.t_embedder."),
    (r"^t_embedding_norm\.", "time_embed.norm."),
    (r"^blocks\.", "transformer_blocks."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn1.to_\1."),
    (r"\.cross_attn\.([qkv])_proj\.", r".attn2.to_\1."),
    (r"\.self_attn\.([qk])_norm\.", r".attn1.norm_\1."),
    (r"\.cross_attn\.([qk])_norm\.", r".attn2.norm_\1."),
    (r"\.self_attn\.output_proj\.", ".attn1.to_out.0."),
    (r"\.cross_attn\.output_proj\.", ".attn2.to_out.0."),
    (r"\.mlp\.layer1\.", ".ff.net.0.proj."),
    (r"\.mlp\.layer2\.", ".ff.net.2."),
    (r"\.adaln_modulation_self_attn\.", ".norm1.linear_"),
    (r"\.adaln_modulation_cross_attn\.", ".norm2.linear_"),
    (r"\.adaln_modulation_mlp\.", ".norm3.linear_"),
    (r"^final_layer\.adaln_modulation\.", "norm_out.linear_"),
    (r"^final_layer\.linear\.", "proj_out."),
]


def by_hand(name: str) -> str:
    for pattern, replacement in DIT_BY_HAND:
        name = re.sub(pattern, replacement, name)
    return name


def diffusers_dit(config: DiTConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return diffusers.CosmosTransformer3DModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            num_layers=config.num_layers,
            mlp_ratio=config.mlp_ratio,
            text_embed_dim=config.text_dim,
            adaln_lora_dim=config.adaln_rank,
            max_size=config.max_size,
            patch_size=(1, 2, 2),
            rope_scale=config.rope_scale,
            extra_pos_embed_type=None,
        )


def diffusers_vae(config: VAEConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return diffusers.AutoencoderKLWan(
            base_dim=config.base_dim,
            dim_mult=list(config.dim_mult),
            num_res_blocks=config.num_res_blocks,
            temperal_downsample=list(config.temporal_downsample),
        )


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def values(total: int) -> torch.Tensor:
    return torch.arange(total, dtype=torch.float32)


def parameters(key_map: KeyMap) -> dict[str, torch.Tensor]:
    """Every element of every parameter a different number."""
    filled, first = {}, 0
    for target in key_map.targets:
        shape = torch.Size(key_map.shape(target))
        filled[target] = values(shape.numel()).add(first).reshape(shape)
        first += shape.numel()
    return filled


@pytest.mark.parametrize("config", [*ARCHITECTURES.values(), SMALL], ids=["2B", "14B", "small"])
def test_diffusers_names_are_those_of_its_transformer(config: DiTConfig) -> None:
    assert dit_keys.diffusers_keys(config).file_names() == shapes(diffusers_dit(config))


@pytest.mark.parametrize("config", [*ARCHITECTURES.values(), SMALL], ids=["2B", "14B", "small"])
def test_nvidia_names_are_diffusers_renamed_by_hand(config: DiTConfig) -> None:
    table = dit_keys.nvidia_keys(config, "").file_names()
    assert {by_hand(name): shape for name, shape in table.items()} == shapes(diffusers_dit(config))


@pytest.mark.parametrize(
    ("size", "tensors", "numbers"),
    [("2B", 567, 1_956_413_440), ("14B", 727, 14_265_285_632)],
)
def test_released_sizes(size: str, tensors: int, numbers: int) -> None:
    names = dit_keys.nvidia_keys(ARCHITECTURES[size]).file_names()
    assert len(names) == tensors
    assert sum(torch.Size(shape).numel() for shape in names.values()) == numbers
    assert all(name.startswith("net.") for name in names)


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(),
        SMALL_VAE,
        VAEConfig(4, dim_mult=(1, 2, 4), num_res_blocks=1, temporal_downsample=(False, True)),
        VAEConfig(4, dim_mult=(1, 1, 2, 3), num_res_blocks=3, temporal_downsample=(True,) * 3),
    ],
    ids=["released", "small", "three levels", "odd"],
)
def test_vae_names_are_those_of_the_diffusers_module(config: VAEConfig) -> None:
    assert vae_keys.diffusers_keys(config).file_names() == shapes(diffusers_vae(config))


def test_wan_names_of_the_released_vae() -> None:
    names = vae_keys.wan_keys(VAEConfig()).file_names()
    assert len(names) == 194
    assert sum(torch.Size(shape).numel() for shape in names.values()) == 126_892_531
    expected = {
        "encoder.conv1.weight": (96, 3, 3, 3, 3),
        "encoder.downsamples.2.resample.1.weight": (96, 96, 3, 3),
        "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
        "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
        "encoder.downsamples.10.residual.6.bias": (384,),
        "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
        "encoder.middle.1.norm.gamma": (384, 1, 1),
        "encoder.middle.2.residual.0.gamma": (384, 1, 1, 1),
        "encoder.head.2.weight": (32, 384, 3, 3, 3),
        "conv1.weight": (32, 32, 1, 1, 1),
        "conv2.bias": (16,),
        "decoder.conv1.weight": (384, 16, 3, 3, 3),
        "decoder.upsamples.3.resample.1.weight": (192, 384, 3, 3),
        "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
        "decoder.upsamples.7.time_conv.bias": (768,),
        "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
        "decoder.upsamples.14.residual.2.weight": (96, 96, 3, 3, 3),
        "decoder.head.0.gamma": (96, 1, 1, 1),
        "decoder.head.2.bias": (3,),
    }
    assert {name: names[name] for name in expected} == expected
    assert "decoder.upsamples.11.time_conv.weight" not in names


def test_wan_weights_mean_the_same_as_diffusers_own_conversion() -> None:
    single_file: Any = pytest.importorskip("diffusers.loaders.single_file_utils")
    table = vae_keys.wan_keys(VAEConfig())
    ours = parameters(table)
    theirs = single_file.convert_wan_vae_to_diffusers(table.rename(ours))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_text_names_are_those_of_the_t5_encoder() -> None:
    transformers: Any = pytest.importorskip("transformers")
    shape = T5Config(50, 16, 4, 24, 3, 2, 32)
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=3, num_heads=2
    )
    with torch.device("meta"):
        expected = shapes(transformers.T5EncoderModel(config))
    for names in ((), (text_keys.EMBEDDING,), (text_keys.TIED_EMBEDDING,)):
        table = text_keys.text_keys(shape, names)
        found = table.file_names()
        assert set(expected) - set(found) == (
            {text_keys.EMBEDDING}
            if text_keys.TIED_EMBEDDING in names
            else {text_keys.TIED_EMBEDDING}
        )
        assert found.items() <= expected.items()


@pytest.mark.parametrize(
    "key_map",
    [
        dit_keys.nvidia_keys(SMALL),
        dit_keys.nvidia_keys(SMALL, ""),
        dit_keys.diffusers_keys(SMALL),
        vae_keys.wan_keys(SMALL_VAE),
        vae_keys.diffusers_keys(SMALL_VAE),
    ],
    ids=["NVIDIA", "NVIDIA without prefix", "diffusers", "Wan VAE", "diffusers VAE"],
)
def test_renaming_there_and_back_loses_nothing(key_map: KeyMap) -> None:
    ours = parameters(key_map)
    there = key_map.rename(ours)
    assert there.keys() == key_map.file_names().keys()
    for target, pieces in key_map.targets.items():
        stacked = torch.cat([there[key_map.prefix + piece.name] for piece in pieces])
        assert torch.equal(stacked, ours[target])


def test_fused_parameters_stack_q_k_v_in_that_order() -> None:
    table = dit_keys.nvidia_keys(SMALL)
    there = table.rename(parameters(table))
    qkv = parameters(table)["blocks.1.self_attn.qkv_proj.weight"]
    kv = parameters(table)["blocks.1.cross_attn.kv_proj.weight"]
    width = SMALL.width
    for place, name in enumerate("qkv"):
        rows = qkv[place * width : (place + 1) * width]
        assert torch.equal(there[f"net.blocks.1.self_attn.{name}_proj.weight"], rows)
    assert torch.equal(there["net.blocks.1.cross_attn.k_proj.weight"], kv[:width])
    assert torch.equal(there["net.blocks.1.cross_attn.v_proj.weight"], kv[width:])


def test_renaming_copies_nothing() -> None:
    table = dit_keys.nvidia_keys(SMALL)
    ours = parameters(table)
    there = table.rename(ours)
    ours["blocks.0.self_attn.qkv_proj.weight"].zero_()
    assert not there["net.blocks.0.self_attn.v_proj.weight"].any()


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_renaming_refuses(fault: str) -> None:
    table = dit_keys.nvidia_keys(SMALL)
    ours = parameters(table)
    name = "blocks.1.mlp.layer1.weight"
    if fault == "missing":
        del ours[name]
    elif fault == "extra":
        name = "blocks.2.mlp.layer1.weight"
        ours[name] = torch.zeros(1)
    else:
        ours[name] = ours[name].T
    with pytest.raises(CheckpointError, match=re.escape(name)):
        table.rename(ours)


def test_our_names_are_those_of_the_networks() -> None:
    dit: Any = pytest.importorskip("cosmos_fast.model.dit")
    vae: Any = pytest.importorskip("cosmos_fast.model.vae")
    ops: Any = pytest.importorskip("cosmos_fast.model.ops")
    with torch.device("meta"):
        network = dit.DiT(SMALL, ops.Ops.select("cpu", torch.float32))
        codec = vae.VAE(SMALL_VAE)
    table, codec_table = dit_keys.nvidia_keys(SMALL), vae_keys.wan_keys(SMALL_VAE)
    assert {name: table.shape(name) for name in table.targets} == shapes(network)
    assert {name: codec_table.shape(name) for name in codec_table.targets} == shapes(codec)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["net.x_embedder.proj.1.weight"], ("nvidia", "net.")),
        (["x_embedder.proj.1.weight"], ("nvidia", "")),
        (["net.x_embedder.proj.1.weight", "net_ema.x_embedder.proj.1.weight"], ("nvidia", "net.")),
        (["patch_embed.proj.weight"], ("diffusers", "")),
    ],
)
def test_layout_is_told_by_names(names: list[str], expected: tuple[str, str]) -> None:
    assert dit_keys.detect(names) == expected


def test_moving_average_is_taken_only_when_asked_for() -> None:
    names = ["net.x_embedder.proj.1.weight", "net_ema.x_embedder.proj.1.weight"]
    assert dit_keys.detect(names, ema=True) == ("nvidia", "net_ema.")
    with pytest.raises(CheckpointError, match="net_ema"):
        dit_keys.detect(names[:1], ema=True)
    with pytest.raises(CheckpointError, match="no moving average"):
        dit_keys.detect(["patch_embed.proj.weight"], ema=True)
    with pytest.raises(CheckpointError, match="unet"):
        dit_keys.detect(["unet.weight"])


@settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 4),
    heads=st.integers(1, 5),
    head_dim=st.sampled_from([6, 8, 64, 128]),
    rank=st.integers(1, 9),
    text=st.integers(1, 33),
)
def test_every_architecture_has_distinct_names_that_add_up(
    layers: int, heads: int, head_dim: int, rank: int, text: int
) -> None:
    config = DiTConfig(layers, heads, head_dim, adaln_rank=rank, text_dim=text)
    nvidia, theirs = dit_keys.nvidia_keys(config), dit_keys.diffusers_keys(config)
    assert len(nvidia.file_names()) == len(theirs.file_names()) == 20 * layers + 7
    for target in nvidia.targets:
        assert nvidia.shape(target) == theirs.shape(target)
