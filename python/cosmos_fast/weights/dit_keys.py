"""The transformer's names: ours, NVIDIA's and diffusers', side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights.key_map import KeyMap, Piece

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cosmos_fast.config import DiTConfig

Layout = Literal["nvidia", "diffusers"]
"""Whose names: NVIDIA's own (``.pt`` files) or diffusers'."""

Row = tuple[str, tuple[str, ...], tuple[str, ...], tuple[tuple[int, ...], ...]]
"""Ours, NVIDIA's, diffusers', and the shapes of the file's tensors."""

PREFIXES = ("net.", "net_ema.", "")
"""What NVIDIA's names may begin with: the trained weights, their moving average, or nothing."""

_COUNTERS = "video_sample_counter|image_sample_counter|iteration|train_in_hours"


def nvidia_keys(config: DiTConfig, prefix: str = "net.") -> KeyMap:
    """NVIDIA's layout, ``prefix`` before every name."""
    before = prefix.replace(".", r"\.")
    ignored = (
        rf"{before}pos_embedder\.(seq|dim_spatial_range|dim_temporal_range)",
        rf"{before}(.+\.)?_extra_state",
        rf"{before}accum_({_COUNTERS})",
    )
    others = tuple(
        rf"{other[:-1]}\..*" for other in PREFIXES if other and prefix and other != prefix
    )
    targets = {
        ours: tuple(map(Piece, (f"{name}.weight" for name in theirs), shapes))
        for ours, theirs, _, shapes in _rows(config)
    } | _action_targets(config)
    return KeyMap("NVIDIA", targets, prefix, ignored + others)


def diffusers_keys(config: DiTConfig) -> KeyMap:
    """diffusers' layout (``CosmosTransformer3DModel``)."""
    targets = {
        ours: tuple(map(Piece, (f"{name}.weight" for name in theirs), shapes))
        for ours, _, theirs, shapes in _rows(config)
    } | _action_targets(config)
    return KeyMap("diffusers", targets)


def detect(names: Collection[str], ema: bool = False) -> tuple[Layout, str]:
    """Layout and prefix that the names of a transformer file are in.

    Args:
        names: every name in the file.
        ema: take the moving average of the weights (``net_ema.``) in place of the weights.

    Raises:
        CheckpointError: the names are those of no known layout, or there is no moving average.
    """
    if "patch_embed.proj.weight" in names:
        if ema:
            raise CheckpointError("diffusers' layout holds no moving average: leave ema out")
        return "diffusers", ""
    for prefix in ("net_ema.",) if ema else ("net.", ""):
        if f"{prefix}x_embedder.proj.1.weight" in names:
            return "nvidia", prefix
    wanted = "net_ema.x_embedder.proj.1.weight" if ema else "x_embedder.proj.1.weight"
    raise CheckpointError(
        f"no {wanted} (NVIDIA) and no patch_embed.proj.weight (diffusers) among the names; found "
        f"{', '.join(sorted(names)[:4]) or 'none'}. A Cosmos-Predict2 transformer is needed"
    )


def _action_targets(config: DiTConfig) -> dict[str, tuple[Piece, ...]]:
    """The action MLPs; diffusers has no such network, so both layouts use NVIDIA's names."""
    targets: dict[str, tuple[Piece, ...]] = {}
    if not config.action_inputs:
        return targets
    hidden, inputs = config.action_hidden, config.action_inputs
    for ours, theirs, outputs in (
        ("to_time", "action_embedder_B_D", config.width),
        ("to_modulation", "action_embedder_B_3D", 3 * config.width),
    ):
        for name, shape in (
            ("fc1.weight", (hidden, inputs)),
            ("fc1.bias", (hidden,)),
            ("fc2.weight", (outputs, hidden)),
            ("fc2.bias", (outputs,)),
        ):
            targets[f"action_embed.{ours}.{name}"] = (Piece(f"{theirs}.{name}", shape),)
    return targets


def _rows(config: DiTConfig) -> Iterator[Row]:
    width, rank = config.width, config.adaln_rank
    out = config.patch**2 * config.out_channels
    features = config.patch_features
    square = (width, width)

    def row(ours: str, nvidia: str, diffusers: str, *shape: int) -> Row:
        return f"{ours}.weight", (nvidia,), (diffusers,), (shape,)

    yield row("patch_embed", "x_embedder.proj.1", "patch_embed.proj", width, features)
    yield row("time_embed.linear_1", "t_embedder.1.linear_1",
              "time_embed.t_embedder.linear_1", *square)  # fmt: skip
    yield row("time_embed.linear_2", "t_embedder.1.linear_2",
              "time_embed.t_embedder.linear_2", 3 * width, width)  # fmt: skip
    yield row("time_embed.norm", "t_embedding_norm", "time_embed.norm", width)
    for index in range(config.num_layers):
        for ours, nvidia, diffusers, shapes in _block_rows(config):
            yield (
                f"blocks.{index}.{ours}.weight",
                tuple(f"blocks.{index}.{name}" for name in nvidia),
                tuple(f"transformer_blocks.{index}.{name}" for name in diffusers),
                shapes,
            )
    yield row("final_layer.modulation.down", "final_layer.adaln_modulation.1",
              "norm_out.linear_1", rank, width)  # fmt: skip
    yield row("final_layer.modulation.up", "final_layer.adaln_modulation.2",
              "norm_out.linear_2", 2 * width, rank)  # fmt: skip
    yield row("final_layer.linear", "final_layer.linear", "proj_out", out, width)


def _block_rows(config: DiTConfig) -> Iterator[Row]:
    width, rank, head = config.width, config.adaln_rank, (config.head_dim,)
    square, from_text, hidden = (width, width), (width, config.text_dim), config.mlp_width

    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        q, k, v = (f"{ours}.{name}_proj" for name in "qkv")
        to_q, to_k, to_v = (f"{theirs}.to_{name}" for name in "qkv")
        if ours == "self_attn":
            yield f"{ours}.qkv_proj", (q, k, v), (to_q, to_k, to_v), (square,) * 3
        else:
            yield f"{ours}.q_proj", (q,), (to_q,), (square,)
            yield f"{ours}.kv_proj", (k, v), (to_k, to_v), (from_text,) * 2
        yield f"{ours}.q_norm", (f"{ours}.q_norm",), (f"{theirs}.norm_q",), (head,)
        yield f"{ours}.k_norm", (f"{ours}.k_norm",), (f"{theirs}.norm_k",), (head,)
        yield f"{ours}.output_proj", (f"{ours}.output_proj",), (f"{theirs}.to_out.0",), (square,)
    yield "mlp.layer1", ("mlp.layer1",), ("ff.net.0.proj",), ((hidden, width),)
    yield "mlp.layer2", ("mlp.layer2",), ("ff.net.2",), ((width, hidden),)
    for part, norm in (("self_attn", "norm1"), ("cross_attn", "norm2"), ("mlp", "norm3")):
        nvidia, diffusers = f"adaln_modulation_{part}", f"{norm}.linear_"
        yield f"{part}_modulation.down", (f"{nvidia}.1",), (f"{diffusers}1",), ((rank, width),)
        yield f"{part}_modulation.up", (f"{nvidia}.2",), (f"{diffusers}2",), ((3 * width, rank),)
