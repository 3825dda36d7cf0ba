"""Rotary angles: known values of the released networks, both tables, any layout."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_cosmos import CosmosRotaryPosEmbed

from cosmos_fast.config import DiTConfig
from cosmos_fast.errors import InputError
from cosmos_fast.model.rope import axis_dims, rope, rope_angles
from cosmos_fast.types import TokenLayout

CONFIGS = {
    "2b": DiTConfig(num_layers=28, num_heads=16),
    "14b": DiTConfig(num_layers=36, num_heads=40, rope_scale=(20 / 24, 2.0, 2.0)),
    "0.6b": DiTConfig(num_layers=20, num_heads=20, head_dim=64, rope_scale=(1.0, 4.0, 4.0)),
}
LAYOUT = TokenLayout((24, 44, 80))
KNOWN = {
    ("2b", "float32"): (
        ["15.132464"],
        ["43.000000", "26.250416", "16.025217", "9.782991"],
        ["79.000000", "48.227505", "29.441679", "17.973402"],
    ),
    ("2b", "reference"): (
        ["15.1875"],
        ["43.0000", "26.2500", "16.0000", "9.8125"],
        ["79.0000", "48.2500", "29.5000", "18.0000"],
    ),
    ("14b", "float32"): (
        ["15.264416"],
        ["43.000000", "26.788031", "16.688339", "10.396457"],
        ["79.000000", "49.215218", "30.659971", "19.100468"],
    ),
    ("14b", "reference"): (
        ["15.2500"],
        ["43.0000", "26.8750", "16.7500", "10.4375"],
        ["79.0000", "49.5000", "30.7500", "19.1250"],
    ),
}
"""Angles at (t=23, i=1), (h=43, i=0..3), (w=79, i=0..3)."""


@pytest.mark.parametrize(("name", "table"), KNOWN, ids=["-".join(key) for key in KNOWN])
def test_angles_have_the_known_values(name: str, table, parity) -> None:
    expected = KNOWN[name, table]
    errors = []
    angles = rope_angles(CONFIGS[name], LAYOUT, table, "cpu")
    last = angles[-1]  # t 23, h 43, w 79
    temporal, height, width = last[1:2], last[22:26], last[43:47]
    for row, texts in zip((temporal, height, width), expected, strict=True):
        decimals = len(texts[0].split(".")[1])
        # Printed from a machine whose pow may round the last bit of float32 the other way.
        for value, text in zip(row.tolist(), texts, strict=True):
            rounding = 0.51 * 10**-decimals + 2**-22 * float(text)
            errors.append(abs(value - float(text)) / rounding)
    parity(
        f"RoPE angles, {name}, {table} table", "printed values, in their last digit", max(errors), 1
    )


def test_reference_table_rounds_every_step() -> None:
    # Written out once more, one rounding a line.
    half = torch.bfloat16
    theta = torch.tensor(10000.0 * 3.0 ** (42 / 40)).to(half)
    exponent = (torch.arange(0, 42, 2) / 42).to(half)
    power = (theta.float() ** exponent.float()).to(half)
    frequency = (1.0 / power.float()).to(half)
    expected = (torch.arange(80.0)[:, None] * frequency.float()).to(half).float()
    angles = rope_angles(CONFIGS["2b"], TokenLayout((1, 1, 80)), "reference", "cpu")
    assert torch.equal(angles[:, 43:], expected)


def test_largest_error_of_the_reference_table() -> None:
    exact, rounded = (
        rope_angles(CONFIGS["2b"], LAYOUT, table, "cpu") for table in ("float32", "reference")
    )
    worst = (exact - rounded).abs()
    assert f"{worst.max():.3f}" == "0.187"
    assert worst.amax(dim=0).argmax() == 22 + 21 + 1


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_table_equals_diffusers(name: str, parity) -> None:
    config = CONFIGS[name]
    module = CosmosRotaryPosEmbed(
        config.head_dim, config.max_size, (1, 2, 2), rope_scale=config.rope_scale
    )
    cos, sin = module(torch.zeros(1, 1, 5, 12, 18), fps=24)
    ours = rope(config, TokenLayout((5, 6, 9)), "float32", "cpu")
    for what, table, expected in (("cosines", ours.cos_NR, cos), ("sines", ours.sin_NR, sin)):
        worst = float((table - expected[:, : config.head_dim // 2]).abs().max())
        parity(f"RoPE {what}, {name}, float32 table", "diffusers, absolute", worst, 1e-6)
        assert torch.equal(expected[:, : config.head_dim // 2], expected[:, config.head_dim // 2 :])


def test_axis_dims_follow_the_head() -> None:
    assert axis_dims(128) == (44, 42, 42)
    assert axis_dims(64) == (24, 20, 20)


@pytest.mark.parametrize("table", ["reference", "float32"])
def test_permuted_layout_permutes_the_angles(table) -> None:
    order = torch.randperm(3 * 4 * 5)
    raster = rope_angles(CONFIGS["2b"], TokenLayout((3, 4, 5)), table, "cpu")
    permuted = rope_angles(CONFIGS["2b"], TokenLayout((3, 4, 5), order), table, "cpu")
    assert torch.equal(permuted, raster[order])


def test_smallest_heads_have_an_angle_on_every_axis() -> None:
    config = DiTConfig(num_layers=1, num_heads=1, head_dim=6)
    angles = rope_angles(config, TokenLayout((2, 3, 4)), "float32", "cpu")
    assert angles[-1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("grid", [(129, 1, 1), (1, 121, 1), (1, 1, 121), (0, 1, 1)])
def test_positions_beyond_the_table_are_refused(grid: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"layout\.grid"):
        rope(CONFIGS["2b"], TokenLayout(grid), "reference", "cpu")
