"""The DiT against diffusers' transformer, and against itself in other orders and dtypes."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from cosmos_fast.config import DiTConfig
from cosmos_fast.errors import InputError
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.types import TokenLayout
from cosmos_fast_kernels import reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosmos_fast.config import RopeTable

SMALL = {
    "head_dim_64": DiTConfig(
        num_layers=2,
        num_heads=3,
        head_dim=64,
        adaln_rank=24,
        text_dim=40,
        rope_scale=(1.0, 4.0, 4.0),
    ),
    "head_dim_128_2b_ratios": DiTConfig(
        num_layers=2, num_heads=2, head_dim=128, adaln_rank=16, text_dim=64
    ),
    "head_dim_128_14b_ratios": DiTConfig(
        num_layers=2, num_heads=2, adaln_rank=16, text_dim=64, rope_scale=(20 / 24, 2.0, 2.0)
    ),
    "text2image": DiTConfig(
        num_layers=1, num_heads=2, head_dim=64, adaln_rank=16, text_dim=32, in_channels=16
    ),
}


OUTSIDE_BLOCKS = {
    "patch_embed.proj.weight": "patch_embed.weight",
    "time_embed.t_embedder.linear_1.weight": "time_embed.linear_1.weight",
    "time_embed.t_embedder.linear_2.weight": "time_embed.linear_2.weight",
    "time_embed.norm.weight": "time_embed.norm.weight",
    "norm_out.linear_1.weight": "final_layer.modulation.down.weight",
    "norm_out.linear_2.weight": "final_layer.modulation.up.weight",
    "proj_out.weight": "final_layer.linear.weight",
}
INSIDE_BLOCKS = {
    "attn1.norm_q": "self_attn.q_norm",
    "attn1.norm_k": "self_attn.k_norm",
    "attn1.to_out.0": "self_attn.output_proj",
    "attn2.to_q": "cross_attn.q_proj",
    "attn2.norm_q": "cross_attn.q_norm",
    "attn2.norm_k": "cross_attn.k_norm",
    "attn2.to_out.0": "cross_attn.output_proj",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
    "norm1.linear_1": "self_attn_modulation.down",
    "norm1.linear_2": "self_attn_modulation.up",
    "norm2.linear_1": "cross_attn_modulation.down",
    "norm2.linear_2": "cross_attn_modulation.up",
    "norm3.linear_1": "mlp_modulation.down",
    "norm3.linear_2": "mlp_modulation.up",
}


def network(config: DiTConfig, rope_table: RopeTable = "float32") -> DiT:
    """A network whose every weight matters: norms away from 1, logits away from uniform."""
    torch.manual_seed(1)
    dit = DiT(config, Ops(), rope_table)
    with torch.no_grad():
        for name, weight in dit.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 2.0)
            else:
                weight.normal_(std=1.5 * weight.shape[1] ** -0.5)
    return dit.eval()


def theirs(dit: DiT) -> CosmosTransformer3DModel:
    """diffusers' network with the weights of ours, by a table of its own."""
    config = dit.config
    other = CosmosTransformer3DModel(
        in_channels=config.in_channels,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_layers,
        text_embed_dim=config.text_dim,
        adaln_lora_dim=config.adaln_rank,
        rope_scale=config.rope_scale,
        extra_pos_embed_type=None,
    ).eval()
    for block in other.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.eps = attention.norm_k.eps = config.qk_norm_eps
    ours = {name: weight.detach() for name, weight in dit.named_parameters()}
    weights = {name: ours[key] for name, key in OUTSIDE_BLOCKS.items()}
    for index in range(config.num_layers):
        block, prefix = f"blocks.{index}", f"transformer_blocks.{index}"
        weights |= {
            f"{prefix}.{name}.weight": ours[f"{block}.{key}.weight"]
            for name, key in INSIDE_BLOCKS.items()
        }
        q, k, v = ours[f"{block}.self_attn.qkv_proj.weight"].chunk(3)
        weights |= {
            f"{prefix}.attn1.to_{name}.weight": w for name, w in zip("qkv", (q, k, v), strict=True)
        }
        k, v = ours[f"{block}.cross_attn.kv_proj.weight"].chunk(2)
        weights |= {
            f"{prefix}.attn2.to_{name}.weight": w for name, w in zip("kv", (k, v), strict=True)
        }
    other.load_state_dict(weights, strict=True)
    return other


def inputs(config: DiTConfig, frames: int = 3, height: int = 6, width: int = 10) -> dict:
    generator = torch.Generator().manual_seed(2)
    mask = torch.zeros(1, 1, frames, 1, 1)
    mask[:, :, 0] = 1
    rows = torch.randn(2, 21, config.text_dim, generator=generator)
    rows[:, 13:] = 0
    return {
        "x_BCTHW": torch.randn(2, 16, frames, height, width, generator=generator),
        "t_BT": torch.rand(2, frames, generator=generator),
        "mask_B1THW": mask if config.in_channels == 17 else None,
        "rows": rows,
    }


def run(dit: DiT, x_BCTHW, t_BT, mask_B1THW, rows, layout=None, **options):
    return dit(x_BCTHW, t_BT, mask_B1THW, dit.text_context(rows), layout, **options)


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    exact = exact.detach().double()
    return float((ours.detach().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", SMALL)
@torch.inference_mode()
def test_forward_equals_diffusers(name: str, parity: Callable[..., None]) -> None:
    config = SMALL[name]
    dit, given = network(config), inputs(config)
    other, x = theirs(dit), given["x_BCTHW"]
    batch, _, frames, height, width = x.shape
    mask = given["mask_B1THW"]
    expected = other(
        hidden_states=x,
        timestep=given["t_BT"][:, None, :, None, None],
        encoder_hidden_states=given["rows"],
        fps=24,
        condition_mask=None if mask is None else mask.expand(batch, 1, frames, height, width),
        padding_mask=torch.zeros(1, 1, height * 8, width * 8),
    ).sample
    assert expected.std() > 0.1
    ours = f"DiT forward, {name.replace('_', ' ')}"
    error = relative_error(run(dit, **given), expected)
    parity(ours, "diffusers CosmosTransformer3DModel, fps 24, eps 1e-6", error, 1e-5)


@torch.inference_mode()
def test_permuted_layout_gives_the_same_velocity() -> None:
    dit = network(SMALL["head_dim_64"])
    given = inputs(dit.config)
    grid = (3, 3, 5)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(4))
    raster = run(dit, **given, layout=TokenLayout(grid))
    permuted = run(dit, **given, layout=TokenLayout(grid, order))
    assert torch.equal(run(dit, **given), raster)
    assert relative_error(permuted, raster) <= 1e-6


@torch.inference_mode()
def test_kernels_are_given_frames_in_one_piece() -> None:
    """They refuse strided ones, which a layout of one's own would have by nature."""
    seen: list[bool] = []

    def noted(*arguments: Any) -> torch.Tensor:
        seen.append(arguments[3].is_contiguous())
        return reference.layernorm_modulate(*arguments)

    dit = network(SMALL["head_dim_64"])
    other = DiT(dit.config, replace(Ops(), layernorm_modulate=noted))
    other.load_state_dict(dit.state_dict())
    run(other, **inputs(dit.config), layout=TokenLayout((3, 3, 5), torch.arange(45)))
    assert seen
    assert all(seen)


@torch.inference_mode()
def test_layout_of_some_tokens_leaves_the_others_zero() -> None:
    dit = network(SMALL["head_dim_64"])
    given = inputs(dit.config)
    some = torch.tensor([44, 0, 7])
    velocity = run(dit, **given, layout=TokenLayout((3, 3, 5), some))
    patches = velocity.reshape(2, 16, 3, 3, 2, 5, 2).abs().amax(dim=(0, 1, 4, 6)).flatten()
    assert patches.nonzero().flatten().tolist() == sorted(some.tolist())


@torch.inference_mode()
def test_tables_made_once_change_nothing() -> None:
    dit = network(SMALL["head_dim_64"])
    given = inputs(dit.config)
    times = torch.tensor([[0.25, 0.5, 0.0001]])
    index = torch.tensor([[2, 0, 0], [2, 1, 1]])
    given["t_BT"] = times[0, index]
    expected = run(dit, **given)
    table = dit.modulations(times).at(index)
    rope = dit.rope(TokenLayout((3, 3, 5)))
    assert relative_error(run(dit, **given, rope=rope, modulations=table), expected) <= 1e-6


@torch.inference_mode()
def test_one_time_for_all_frames_is_that_time_for_each() -> None:
    dit = network(SMALL["head_dim_64"])
    given = inputs(dit.config)
    given["t_BT"] = torch.tensor([[0.3], [0.7]])
    single = run(dit, **given)
    given["t_BT"] = given["t_BT"].expand(2, 3)
    assert torch.equal(run(dit, **given), single)


@torch.inference_mode()
def test_one_prompt_serves_a_batch() -> None:
    dit = network(SMALL["head_dim_64"])
    given = inputs(dit.config)
    given["rows"] = given["rows"][:1]
    single = run(dit, **given)
    given["rows"] = given["rows"].expand(2, -1, -1)
    assert relative_error(run(dit, **given), single) <= 1e-6


@torch.inference_mode()
def test_zero_rows_of_text_are_attended() -> None:
    dit = network(SMALL["head_dim_64"])
    given = inputs(dit.config)
    padded = run(dit, **given)
    given["rows"] = given["rows"][:, :13]
    assert relative_error(run(dit, **given), padded) > 1e-3


@pytest.mark.parametrize("length", [0, 1, 200, 512])
@torch.inference_mode()
def test_padding_that_is_folded_counts_all_the_same(length: int) -> None:
    config = SMALL["head_dim_64"]
    plain = network(config)
    folding = DiT(config, dataclasses.replace(Ops(), folds_padding=True), "float32").eval()
    folding.load_state_dict(plain.state_dict())
    given = inputs(config)
    rows = torch.randn(2, 512, config.text_dim)
    rows[:, length:] = 0
    given.pop("rows")
    expected = plain(*given.values(), plain.text_context(rows))
    text = folding.text_context(rows, length)
    assert text.blocks[0].shape[1] == {0: 0, 1: 128, 200: 256, 512: 512}[length]
    assert text.blocks[0].shape[1] + text.zero_keys == 512
    error = relative_error(folding(*given.values(), text), expected)
    assert error <= (1e-6 if length else 0)


@torch.inference_mode()
def test_condition_mask_and_time_of_each_frame_count() -> None:
    dit = network(SMALL["head_dim_64"])
    given = inputs(dit.config)
    velocity = run(dit, **given)
    other_mask = given | {"mask_B1THW": torch.zeros(1, 1, 3, 1, 1)}
    other_time = given | {"t_BT": given["t_BT"] * torch.tensor([1.0, 1.0, 0.5])}
    assert relative_error(run(dit, **other_mask), velocity) > 1e-3
    assert relative_error(run(dit, **other_time), velocity) > 1e-3


@torch.inference_mode()
def test_bf16_network_sees_bf16_times() -> None:
    dit = network(SMALL["head_dim_64"]).bfloat16()
    given = inputs(dit.config)
    # sigma 68.3251 and 58.1421 of the 35-step schedule: both round to 0.984375.
    first, second = (
        run(dit, **(given | {"t_BT": torch.full((2, 3), sigma / (1 + sigma))}))
        for sigma in (68.3251, 58.1421)
    )
    assert torch.equal(first, second)
    assert first.dtype == torch.float32


@torch.inference_mode()
def test_bf16_error_is_that_of_bf16(measured: Callable[[str], None]) -> None:
    config = SMALL["head_dim_128_2b_ratios"]
    given = inputs(config)
    given["t_BT"] = given["t_BT"].bfloat16().float()
    half = network(config).bfloat16()
    exact = run(network(config).bfloat16().float(), **given)
    ours = relative_error(run(half, **given), exact)
    plain = relative_error(plain_bf16(half, **given), exact)
    measured(f"relative error {ours:.2e}, diffusers' own in bfloat16 {plain:.2e}")
    assert ours <= 1.1 * plain


def plain_bf16(dit: DiT, x_BCTHW, t_BT, mask_B1THW, rows) -> torch.Tensor:
    """diffusers' network in bfloat16: every step of norm, modulation and gate is rounded."""
    batch, _, frames, height, width = x_BCTHW.shape
    output = (
        theirs(dit)
        .to(x_BCTHW.device)
        .bfloat16()(
            hidden_states=x_BCTHW.bfloat16(),
            timestep=t_BT[:, None, :, None, None].bfloat16(),
            encoder_hidden_states=rows.bfloat16(),
            fps=24,
            condition_mask=mask_B1THW.expand(batch, 1, frames, height, width).bfloat16(),
            padding_mask=x_BCTHW.new_zeros(1, 1, height * 8, width * 8).bfloat16(),
        )
    )
    return output.sample.float()


def test_forward_is_differentiable() -> None:
    dit = network(SMALL["head_dim_64"])
    given = inputs(dit.config)
    given["x_BCTHW"].requires_grad_()
    loss = run(dit, **given).square().mean()
    gradients = torch.autograd.grad(loss, [given["x_BCTHW"], *dit.parameters()])
    for (name, _), gradient in zip(dit.named_parameters(), gradients[1:], strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


def test_autocast_trains_float32_weights() -> None:
    dit = network(SMALL["head_dim_64"])
    given = inputs(dit.config)
    exact = run(dit, **given)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = run(dit, **given)
    velocity.square().mean().backward()
    assert relative_error(velocity, exact) < 5e-2
    assert all(weight.grad is not None and weight.grad.any() for weight in dit.parameters())


@torch.inference_mode()
def test_reference_rope_table_is_the_default_and_differs() -> None:
    config = SMALL["head_dim_64"]
    given = inputs(config)
    exact = network(config)
    reference = DiT(config, Ops()).eval()
    reference.load_state_dict(exact.state_dict())
    assert 1e-4 < relative_error(run(reference, **given), run(exact, **given)) < 0.2


def test_names_and_shapes_are_those_of_the_contract() -> None:
    config = SMALL["head_dim_64"]
    width, rank, text = config.width, config.adaln_rank, config.text_dim
    shapes = {name: tuple(weight.shape) for name, weight in DiT(config, Ops()).named_parameters()}
    expected = {
        "patch_embed.weight": (width, 72),
        "time_embed.linear_1.weight": (width, width),
        "time_embed.linear_2.weight": (3 * width, width),
        "time_embed.norm.weight": (width,),
        "final_layer.modulation.down.weight": (rank, width),
        "final_layer.modulation.up.weight": (2 * width, rank),
        "final_layer.linear.weight": (64, width),
    }
    for index in range(config.num_layers):
        block = f"blocks.{index}"
        expected |= {
            f"{block}.self_attn.qkv_proj.weight": (3 * width, width),
            f"{block}.self_attn.output_proj.weight": (width, width),
            f"{block}.cross_attn.q_proj.weight": (width, width),
            f"{block}.cross_attn.kv_proj.weight": (2 * width, text),
            f"{block}.cross_attn.output_proj.weight": (width, width),
            f"{block}.mlp.layer1.weight": (4 * width, width),
            f"{block}.mlp.layer2.weight": (width, 4 * width),
        }
        for attention in ("self_attn", "cross_attn"):
            expected[f"{block}.{attention}.q_norm.weight"] = (64,)
            expected[f"{block}.{attention}.k_norm.weight"] = (64,)
        for part in ("self_attn", "cross_attn", "mlp"):
            expected[f"{block}.{part}_modulation.down.weight"] = (rank, width)
            expected[f"{block}.{part}_modulation.up.weight"] = (3 * width, rank)
    assert shapes == expected


@pytest.mark.parametrize(
    ("layers", "heads", "count"),
    [(28, 16, 1_956_413_440), (36, 40, 14_265_285_632)],
    ids=["2b", "14b"],
)
def test_released_sizes_have_their_number_of_parameters(
    layers: int, heads: int, count: int, unchanged_globals: Callable
) -> None:
    with unchanged_globals(), torch.device("meta"):
        dit = DiT(DiTConfig(num_layers=layers, num_heads=heads), Ops())
    assert sum(weight.numel() for weight in dit.parameters()) == count


WRONG: dict[str, tuple[dict, str]] = {
    "channels": ({"x_BCTHW": torch.zeros(2, 15, 3, 6, 10)}, r"\(B, 16, T, H, W\)"),
    "odd_height": ({"x_BCTHW": torch.zeros(2, 16, 3, 5, 10)}, "multiples of 2"),
    "times": ({"t_BT": torch.zeros(2, 2)}, r"shape \(2, 2\)"),
    "no_mask": ({"mask_B1THW": None}, "condition mask is missing"),
    "text_width": ({"rows": torch.zeros(2, 21, 41)}, r"\(B, rows, 40\)"),
    "layout": ({"layout": TokenLayout((3, 3, 4))}, r"\(3, 3, 5\)"),
    "too_many_frames": (
        {"x_BCTHW": torch.zeros(2, 16, 129, 2, 2), "t_BT": torch.zeros(2, 1)},
        r"\(128, 120, 120\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@torch.inference_mode()
def test_forward_refuses(name: str) -> None:
    wrong, words = WRONG[name]
    dit = network(SMALL["head_dim_64"])
    with pytest.raises(InputError, match=words):
        run(dit, **(inputs(dit.config) | wrong))


def test_a_mask_for_a_network_without_its_channel_is_refused() -> None:
    dit = network(SMALL["text2image"])
    with pytest.raises(InputError, match="not among its channels"):
        run(dit, **(inputs(dit.config) | {"mask_B1THW": torch.zeros(1, 1, 3, 1, 1)}))


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [16, 40], ids=["2b_width", "14b_width"])
@torch.inference_mode()
def test_full_width_bf16_error_on_gpu(heads: int, measured: Callable[[str], None]) -> None:
    config = DiTConfig(num_layers=3, num_heads=heads)
    exact_net = network(config).bfloat16().float().cuda()
    given = on_gpu(inputs(config, frames=4, height=54, width=96))
    given["t_BT"] = given["t_BT"].bfloat16().float()
    exact = run(exact_net, **given)
    errors = {"diffusers": relative_error(plain_bf16(exact_net, **given), exact)}
    for name, kernels in (("torch", False), ("kernels", True)):
        half = with_ops(exact_net, Ops.select("cuda", torch.bfloat16, kernels=kernels)).bfloat16()
        errors[name] = relative_error(run(half, **given), exact)
    measured(", ".join(f"{name} {error:.2e}" for name, error in errors.items()))
    assert errors["kernels"] <= 1.1 * errors["torch"]
    assert errors["kernels"] <= 1.1 * errors["diffusers"]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@torch.inference_mode()
def test_forward_never_waits_for_the_device() -> None:
    dit = network(SMALL["head_dim_64"]).cuda().bfloat16()
    dit = with_ops(dit, Ops.select("cuda", torch.bfloat16))
    given = on_gpu(inputs(dit.config))
    text = dit.text_context(given.pop("rows"))
    dit(*given.values(), text)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        dit(*given.values(), text)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(given: dict) -> dict:
    return {name: value.cuda() for name, value in given.items()}


def with_ops(dit: DiT, ops: Ops) -> DiT:
    other = DiT(dit.config, ops, dit.rope_table).to(dit.patch_embed.weight)
    other.load_state_dict(dit.state_dict())
    return other
