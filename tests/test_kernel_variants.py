"""What would be compiled over several runs: other prompts, seeds and pictures need nothing new.

Run as a program, this file calls the launch wrappers as an engine does, under a driver that knows
its target and launches nothing, and prints the keys by which Triton tells compiled variants apart.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from ahead_of_time import pretend_target, printed_by

MOST_VARIANTS = 24
"""Of a whole engine: at about two seconds each, below the minute that a first run may wait."""


@pytest.fixture(scope="module")
def keys_of_runs() -> list[dict[str, list[str]]]:
    runs: list[dict[str, list[str]]] = printed_by(__file__)
    return runs


def test_other_prompts_seeds_and_pictures_compile_nothing(
    keys_of_runs: list[dict[str, list[str]]],
) -> None:
    first, *others = keys_of_runs
    assert all(first.values()), "every kernel was called"
    for other in others:
        assert {name: set(keys) - set(first[name]) for name, keys in other.items()} == {
            name: set() for name in first
        }


def test_an_engine_needs_few_variants(keys_of_runs: list[dict[str, list[str]]]) -> None:
    assert sum(len(set(keys)) for keys in keys_of_runs[0].values()) <= MOST_VARIANTS


def recording(kernels: dict[str, Any]) -> dict[str, list[str]]:
    """From here on the kernels note what they would compile, and do not."""
    found: dict[str, list[str]] = {name: [] for name in kernels}
    for name, kernel in kernels.items():

        def note(key: str, *_: Any, name: str = name) -> None:
            found[name].append(str(key))

        kernel._do_compile = note
    return found


def run_of_an_engine(seed: int, words: int) -> None:
    """Every launch of one block and of two chunks of a decoder, a prompt of ``words`` rows."""
    from cosmos_fast_kernels.attention import attention
    from cosmos_fast_kernels.attention_hopper import hopper_attention
    from cosmos_fast_kernels.gated_layernorm_modulate import (
        gated_layernorm_modulate,
        gated_residual,
    )
    from cosmos_fast_kernels.layernorm_modulate import layernorm_modulate
    from cosmos_fast_kernels.qk_norm_rope import head_norm, qk_norm_rope
    from cosmos_fast_kernels.rms_silu import rms_silu
    from cosmos_fast_kernels.upsample import upsample

    generator = torch.Generator().manual_seed(seed)
    frames, tokens, heads, features = 3, 3 * 40, 2, 128
    width = heads * features

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    x, y = some(1, tokens, width), some(1, tokens, width)
    shift, scale, gate = some(1, frames, 3 * width).chunk(3, -1)
    layernorm_modulate(x, shift, scale, None, 1e-6)
    q, k, v = some(1, tokens, 3, heads, features).unbind(2)
    weight, angles = some(features), torch.rand(tokens, features // 2, generator=generator)
    qk_norm_rope(q, k, weight, weight, angles, angles, 1e-6, out=(q, k))
    kept = min(512, -(-words // 128) * 128)
    kv = some(1, kept, 2, heads, features)
    text_k = head_norm(kv[:, :, 0], weight, 1e-6)
    for attend in (attention, hopper_attention):
        attend(q, k, v, scale=0.1)
        attend(head_norm(q, weight, 1e-6), text_k, kv[:, :, 1], scale=0.1, zero_keys=512 - kept)
        attend(q, k, v, scale=0.1, zero_keys=1)  # a prompt that fills all rows has none
    gated_layernorm_modulate(x, gate, y, shift, scale, None, 1e-6, out=(x, y))
    gated_residual(x, gate, y, None, out=x)
    products(x[0], some(width, width), some(4 * width, width), gate[0], weight)

    kept_frames, border = None, min(seed, 1)  # after the first run, as one of several ranks
    for count in (1, 2):
        features_BTHWC, bias = some(1, count, 6, 5, 96), some(96)
        made = rms_silu(
            features_BTHWC,
            bias,
            bias,
            features_BTHWC,
            None,
            kept_frames,
            2,
            keep_total=True,
            border=border,
        )
        kept_frames = made.kept
        upsample(some(1, count, 6, 5, 192), some(192), in_time=True, border=border)


def products(
    x: torch.Tensor,
    weight: torch.Tensor,
    wide: torch.Tensor,
    gate: torch.Tensor,
    norm: torch.Tensor,
) -> None:
    """Those of a block on Hopper."""
    from cosmos_fast.model.linear_table import DESIGNS
    from cosmos_fast_kernels import linear_hopper

    for epilogue, name in DESIGNS:
        config = linear_hopper.DESIGNS[name]
        if epilogue == "gated":
            linear_hopper.linear_gated_residual(x, weight, x, gate, None, out=x, config=config)
        elif epilogue == "gelu":
            linear_hopper.linear_gelu(x, wide, config=config)
        elif epilogue == "norm":
            linear_hopper.linear_head_norm(x, weight, norm, 1e-6, config=config)
        else:
            for one in (weight, wide):
                linear_hopper.linear(x, one, config=config)


def main() -> None:
    pretend_target(90)
    from cosmos_fast_kernels import (
        attention,
        attention_hopper,
        gated_layernorm_modulate,
        layernorm_modulate,
        linear_hopper,
        qk_norm_rope,
        rms_silu,
        upsample,
    )

    found = recording(
        {
            "attention": attention._attention_kernel,
            "attention_hopper": attention_hopper._attention_kernel,
            "gated_layernorm_modulate": gated_layernorm_modulate._gated_kernel,
            "linear_hopper": linear_hopper._linear_kernel,
            "layernorm_modulate": layernorm_modulate._layernorm_modulate_kernel,
            "qk_norm_rope": qk_norm_rope._norm_rope_kernel,
            "rms_silu": rms_silu._assemble_kernel,
            "upsample": upsample._upsample_kernel,
        }
    )
    runs = []
    for seed, words in ((0, 12), (1, 12), (2, 200), (3, 389), (4, 511), (5, 130)):
        for keys in found.values():
            keys.clear()
        run_of_an_engine(seed, words)
        runs.append({name: sorted(set(keys)) for name, keys in found.items()})
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
