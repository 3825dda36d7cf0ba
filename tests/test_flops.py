"""Operation counts against the figures known for the released networks."""

from __future__ import annotations

import pytest

from cosmos_fast.config import DiTConfig
from cosmos_fast.errors import InputError
from cosmos_fast.model.flops import forward_flops

SIZES = {
    "480p_10fps": (16, 54, 96),
    "432x768x81": (21, 54, 96),
    "480p_16fps": (24, 54, 96),
    "720p_10fps": (16, 88, 160),
    "720p_16fps": (24, 88, 160),
}
TERA = {
    "2b": [(70.8, 98.6), (92.8, 169.9), (106.1, 221.9), (192.0, 727.6), (287.9, 1637.0)],
    "14b": [(556.2, 317.0), (729.9, 546.1), (834.1, 713.3), (1510.0, 2338.6), (2264.7, 5261.9)],
}
CONFIGS = {
    "2b": DiTConfig(num_layers=28, num_heads=16),
    "14b": DiTConfig(num_layers=36, num_heads=40),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", SIZES)
def test_forward_flops_of_the_released_networks(name: str, size: str) -> None:
    flops = forward_flops(CONFIGS[name], SIZES[size])
    other, attention = TERA[name][list(SIZES).index(size)]
    assert round(flops.other / 1e12, 1) == other
    assert round(flops.self_attention / 1e12, 1) == attention
    assert flops.total == flops.other + flops.self_attention


def test_forward_flops_refuses_half_a_patch() -> None:
    with pytest.raises(InputError, match="multiples of 2"):
        forward_flops(CONFIGS["2b"], (1, 3, 4))
