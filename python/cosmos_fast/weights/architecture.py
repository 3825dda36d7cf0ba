"""What the tensors of a checkpoint, and a config.json beside them, say about the network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.config import DiTConfig, VAEConfig
from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.types import LATENT_CHANNELS
from cosmos_fast.weights.dit_keys import detect
from cosmos_fast.weights.tensor_files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from cosmos_fast.weights.tensor_files import TensorFile

RopeScale = tuple[float, float, float]

_PROBES: Final = {
    "nvidia": {
        "patch": "x_embedder.proj.1.weight",
        "out": "final_layer.linear.weight",
        "head": "blocks.0.self_attn.q_norm.weight",
        "text": "blocks.0.cross_attn.k_proj.weight",
        "hidden": "blocks.0.mlp.layer1.weight",
        "rank": "blocks.0.adaln_modulation_mlp.1.weight",
        "block": r"blocks\.(\d+)\.",
    },
    "diffusers": {
        "patch": "patch_embed.proj.weight",
        "out": "proj_out.weight",
        "head": "transformer_blocks.0.attn1.norm_q.weight",
        "text": "transformer_blocks.0.attn2.to_k.weight",
        "hidden": "transformer_blocks.0.ff.net.0.proj.weight",
        "rank": "transformer_blocks.0.norm3.linear_1.weight",
        "block": r"transformer_blocks\.(\d+)\.",
    },
}
_ACTION: Final = "action_embedder_B_D.fc1.weight"
"""The same name in both layouts; its columns are the numbers of a chunk of actions."""
_PATCH: Final = 2
_SMALLEST_HEAD: Final = 12
"""Below it an axis of the rotary embedding has no second frequency."""
_REFUSALS: Final = {
    LATENT_CHANNELS: "a Text2Image network (no condition mask enters it)",
    LATENT_CHANNELS + 8: "a multiview network (seven channels of view embedding enter it)",
}


def infer_dit(file: TensorFile, ema: bool = False) -> DiTConfig:
    """The architecture that the shapes in a transformer file imply; its RoPE no tensor tells.

    Args:
        file: open, in either layout.
        ema: look at the moving average of the weights.

    Raises:
        CheckpointError: not a Video2World transformer, or a tensor is missing that tells its size.
    """
    layout, prefix = detect(file.entries, ema)
    probes = _PROBES[layout]

    def size(probe: str, axis: int) -> int:
        name = prefix + probes[probe]
        entry = file.entries.get(name)
        if entry is None or len(entry.shape) <= axis or not entry.shape[axis]:
            found = "missing" if entry is None else f"of shape {entry.shape}"
            raise CheckpointError(
                f"{file.path}: {name} is {found}, and the size of the network follows from it. "
                f"Is the file complete, and of this model?"
            )
        return entry.shape[axis]

    width, head_dim = size("patch", 0), size("head", 0)
    in_channels = size("patch", 1) // _PATCH**2 - 1
    if kind := _REFUSALS.get(in_channels):
        raise CheckpointError(f"{file.path}: {kind}; only Video2World networks are supported")
    if width % head_dim or head_dim < _SMALLEST_HEAD:
        raise CheckpointError(
            f"{file.path}: width {width} and head dimension {head_dim}; whole heads of at least "
            f"{_SMALLEST_HEAD} are needed"
        )
    action = f"{prefix}{_ACTION}" in file.entries
    block = re.compile(re.escape(prefix) + probes["block"])
    blocks = {match[1] for name in file.entries if (match := block.match(name))}
    try:
        config = DiTConfig(
            num_layers=len(blocks),
            num_heads=width // head_dim,
            head_dim=head_dim,
            mlp_ratio=size("hidden", 0) / width,
            adaln_rank=size("rank", 0),
            text_dim=size("text", 1),
            in_channels=in_channels,
            out_channels=size("out", 0) // _PATCH**2,
            action_inputs=file.entries[f"{prefix}{_ACTION}"].shape[-1] if action else 0,
        )
    except InputError as error:
        raise CheckpointError(f"{file.path}: no possible transformer: {error}") from error
    if config.out_channels != LATENT_CHANNELS or in_channels != LATENT_CHANNELS + 1:
        raise CheckpointError(
            f"{file.path}: {in_channels} channels enter and {config.out_channels} leave; "
            f"Video2World takes {LATENT_CHANNELS + 1} (latent and condition mask) and gives "
            f"{LATENT_CHANNELS}"
        )
    return config


def same_network(one: DiTConfig, other: DiTConfig) -> bool:
    """Whether two configurations have the same tensors (their RoPE may differ)."""
    return not list(differences(one, other))


def differences(found: DiTConfig, expected: DiTConfig) -> Iterator[str]:
    """What tells two architectures apart, in words; RoPE, which has no tensors, is left out."""
    for name in ("num_layers", "num_heads", "head_dim", "mlp_ratio", "adaln_rank", "text_dim",
                 "in_channels", "out_channels", "action_inputs"):  # fmt: skip
        here, there = getattr(found, name), getattr(expected, name)
        if here != there:
            yield f"{name} = {here}, expected {there}"


def diffusers_rope(path: Path) -> tuple[RopeScale, tuple[int, int, int]]:
    """``rope_scale`` and ``max_size``, both (t, h, w), of a diffusers ``transformer/config.json``.

    Raises:
        CheckpointError: the file is malformed, or describes a network that is not Predict2's.
    """
    config = read_json(path)
    expected: dict[str, tuple[Any, ...]] = {
        "_class_name": ("CosmosTransformer3DModel",),
        "concat_padding_mask": (True,),
        "extra_pos_embed_type": (None,),
        "patch_size": ([1, _PATCH, _PATCH],),
        "use_crossattn_projection": (False, None),
        "controlnet_block_every_n": (None,),
    }
    for key, values in expected.items():
        found = config.get(key, values[-1])
        if found not in values:
            raise CheckpointError(
                f"{path}: {key} = {found!r}; {values[0]!r} is needed for Cosmos-Predict2"
            )
    ratios = _triple(config, "rope_scale", path)
    max_t, max_h, max_w = map(int, _triple(config, "max_size", path))
    return ratios, (max_t, max_h, max_w)


def diffusers_vae(path: Path) -> VAEConfig:
    """The VAE that a diffusers ``vae/config.json`` describes.

    Raises:
        CheckpointError: malformed, or not the causal Wan2.1 VAE.
    """
    config = read_json(path)
    expected: dict[str, tuple[Any, ...]] = {
        "_class_name": ("AutoencoderKLWan",),
        "attn_scales": ([],),
        "is_residual": (False, None),
        "patch_size": (None, 1),
    }
    for key, values in expected.items():
        if config.get(key, values[-1]) not in values:
            raise CheckpointError(
                f"{path}: {key} = {config[key]!r}; {values[0]!r} is needed for the Wan2.1 VAE"
            )
    return vae_config(
        {
            "base_dim": config.get("base_dim", 96),
            "z_dim": config.get("z_dim", LATENT_CHANNELS),
            "dim_mult": config.get("dim_mult"),
            "num_res_blocks": config.get("num_res_blocks", 2),
            # diffusers' own spelling
            "temporal_downsample": config.get("temperal_downsample"),
            "latents_mean": config.get("latents_mean"),
            "latents_std": config.get("latents_std"),
        },
        path,
    )


def vae_config(fields: Mapping[str, Any], file: Path) -> VAEConfig:
    """A VAE configuration from JSON values of the same names as its fields.

    Raises:
        CheckpointError: a field is unknown or of the wrong type; named.
    """
    kinds: dict[str, tuple[type, ...]] = {
        "base_dim": (int,),
        "z_dim": (int,),
        "num_res_blocks": (int,),
        "dim_mult": (list, int),
        "temporal_downsample": (list, bool),
        "latents_mean": (list, int, float),
        "latents_std": (list, int, float),
    }
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in kinds:
            raise CheckpointError(f"{file}: vae.{name} is unknown; known are {', '.join(kinds)}")
        outer, *inner = kinds[name]
        items = value if isinstance(value, list) else [value]
        allowed = tuple(inner) or (outer,)
        if not isinstance(value, outer) or not all(type(item) in allowed for item in items):
            raise CheckpointError(f"{file}: vae.{name} = {value!r} is not of the right type")
        values[name] = tuple(items) if outer is list else value
    try:
        config = VAEConfig(**values)
    except InputError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if config.z_dim != LATENT_CHANNELS or min((config.base_dim, *config.dim_mult)) < 1:
        raise CheckpointError(
            f"{file}: {config.z_dim = }, {config.base_dim = }, {config.dim_mult = }; "
            f"{LATENT_CHANNELS} latent channels and positive widths are needed"
        )
    return config


def _triple(config: Mapping[str, Any], key: str, path: Path) -> RopeScale:
    value = config.get(key)
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(type(item) in (int, float) and item > 0 for item in value)
    ):
        raise CheckpointError(
            f"{path}: {key} = {value!r}; three positive numbers (t, h, w) are needed"
        )
    t, h, w = value
    return float(t), float(h), float(w)
