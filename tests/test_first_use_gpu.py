"""A first use on a card: kernels compiled side by side are loaded, launched, and right.

This file is also the programs, each of them a process that has compiled nothing: ``python FILE NAME
...`` calls a function of it and prints the JSON object that it returns. One that hangs says where.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ahead_of_time import printed_by
from test_first_use import ALONE, HALF, Told, profile_of_2b
from test_first_use_faults import compilers_left

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cosmos_fast.model.ops import Ops

LIMIT = 55.0
"""Seconds that a program may take before it ends itself, telling what each thread does."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what Triton compiles; the first test fills it."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.gpu
def test_side_by_side_in_an_empty_cache_and_found_again_give_the_same(
    cache: Path, measured: Callable[[str], None]
) -> None:
    ahead = printed_by(__file__, "one_engine", "0", "ahead", cache=cache)
    later = printed_by(__file__, "one_engine", "0", "later", cache=cache)
    for name, told in (("ahead", ahead), ("as they are launched", later)):
        measured(f"{name}: {told['seconds']}, {told['compiled']} compiled, {told['found']} found")
    assert ahead["compiled"] > 10
    assert ahead["late"] == later["compiled"] == 0
    assert ahead["left"] == []
    assert ahead["error"] < 0.02
    assert ahead["sha256"] == later["sha256"]


@pytest.mark.gpu
def test_two_engines_at_once_give_the_same(
    cache: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """On two cards where there are two."""
    told = printed_by(__file__, "two_engines", cache=tmp_path)
    measured(f"{told['devices']}: {told['seconds']:.1f} s")
    alone = printed_by(__file__, "one_engine", "0", "ahead", cache=cache)
    assert told["sha256"] == [alone["sha256"]] * 2
    assert told["current"] == 0
    assert told["left"] == []


@pytest.mark.gpu
def test_another_card_than_the_current_one_is_the_only_one_used(cache: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one card")
    ahead = printed_by(__file__, "one_engine", "1", "ahead", cache=cache)
    later = printed_by(__file__, "one_engine", "1", "later", cache=cache)
    assert ahead["contexts"] == later["contexts"]
    assert ahead["contexts"][1]
    assert ahead["sha256"] == later["sha256"]


@pytest.mark.gpu
def test_an_engine_can_be_loaded_after_an_interrupt(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    told = printed_by(__file__, "interrupted", cache=tmp_path)
    measured(f"out {told['way out']:.1f} s after the interrupt")
    assert told["left"] == []
    assert told["error"] < 0.02


def one_engine(index: str, how: str) -> dict[str, Any]:
    """What an engine's start and the first layers of a clip compile and compute.

    Args:
        index: of the card; the current one stays the first.
        how: "ahead", or "later": as a kernel is launched.
    """
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    device, told = torch.device("cuda", int(index)), Told()
    ops, seconds = started(device, kernels=how == "ahead")
    compiled, found, used = len(told.compiled), len(told.found), contexts()
    told.clear()
    outputs, first = computed(device, ops)
    late = len(told.compiled)
    return {
        "seconds": [round(each, 2) for each in (*seconds, first)],
        "compiled": compiled + (0 if how == "ahead" else late),
        "found": found,
        "late": late,
        "left": compilers_left(),
        "sha256": digest(outputs),
        "error": worst_error(outputs, device),
        "contexts": used,
    }


def two_engines() -> dict[str, Any]:
    """Loaded at once, by two threads; then each computes, one after the other."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    devices = [torch.device("cuda", index % torch.cuda.device_count()) for index in range(2)]
    chosen: dict[int, Ops] = {}

    def load(index: int) -> None:
        chosen[index], _ = started(devices[index], kernels=True)

    began = time.perf_counter()
    threads = [threading.Thread(target=load, args=(index,)) for index in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return {
        "seconds": time.perf_counter() - began,
        "devices": list(map(str, devices)),
        "sha256": [digest(computed(devices[index], chosen[index])[0]) for index in range(2)],
        "current": torch.cuda.current_device(),
        "left": compilers_left(),
    }


def interrupted() -> dict[str, Any]:
    """A start that is interrupted as kernels compile, and one more."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    device = torch.device("cuda", 0)
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    torch.zeros(1, device=device)
    timer = threading.Timer(1.5, interrupt)
    timer.start()
    try:
        started(device, kernels=True)
        timer.join()
    except KeyboardInterrupt:
        pass
    way_out = time.perf_counter() - sent[0]
    left = compilers_left()
    ops, _ = started(device, kernels=True)
    outputs, _ = computed(device, ops)
    return {"way out": way_out, "left": left, "error": worst_error(outputs, device)}


def started(device: torch.device, *, kernels: bool) -> tuple[Ops, tuple[float, float]]:
    """As an engine starts: its choice, and seconds until it and until all is compiled."""
    from cosmos_fast.model.first_use import kernels_ahead
    from cosmos_fast.model.ops import Ops

    warnings.simplefilter("error", RuntimeWarning)  # what falls back warns
    began = time.perf_counter()
    with kernels_ahead(profile_of_2b(), device, HALF, classes=ALONE, kernels=kernels):
        ops = Ops.select(device, HALF, kernels=True, classes=ALONE)
        tested = time.perf_counter() - began
    return ops, (tested, time.perf_counter() - began)


@torch.no_grad()
def computed(
    device: torch.device, ops: Ops, grid: tuple[int, int, int] = (21, 54, 96)
) -> tuple[list[torch.Tensor], float]:
    """A block of the 2B behind a short prompt, and two chunks decoded, of random weights and
    inputs, the same on every call; and seconds.

    Args:
        grid: of latents, along (t, h, w).
    """
    from cosmos_fast.model.dit import TEXT_BLOCK
    from cosmos_fast.model.dit_layers import Block, Placement
    from cosmos_fast.model.rope import Rope
    from cosmos_fast.model.vae import VAE
    from cosmos_fast.model.vae_fused import FusedDecoder
    from cosmos_fast.types import TEXT_ROWS

    began = time.perf_counter()
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = HALF) -> torch.Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    profile = profile_of_2b()
    config, (frames, height, width) = profile.dit, grid
    tokens = frames * (height // 2) * (width // 2)
    with torch.device("meta"):
        block, vae = Block(config, ops), VAE(profile.vae)
    for network in (block, vae):
        network.to(HALF).requires_grad_(False).to_empty(device=device)
        for name, weight in sorted(network.state_dict().items()):
            scale = 1.0 if weight.squeeze().dim() < 2 else weight[0].numel() ** -0.5
            shift = 1.0 if "norm" in name else 0.0
            weight.copy_(normal(*weight.shape) * (scale / 4 if shift else scale) + shift)
    angle = normal(tokens, config.head_dim // 2, dtype=torch.float32)
    kept = TEXT_BLOCK if ops.folds_padding else TEXT_ROWS
    rows = torch.zeros(1, TEXT_ROWS, config.text_dim, device=device, dtype=HALF)
    rows[:, :90] = normal(1, 90, config.text_dim)
    text = block.cross_attn.keys_and_values(rows[:, :kept])
    x, modulation = normal(1, tokens, config.width), normal(3, 1, frames, 3 * config.width) / 4
    place = Placement(Rope(angle.cos(), angle.sin()), None)
    outputs = [block(x, modulation, place, text, TEXT_ROWS - kept)]
    latents = [normal(1, config_z(vae), 1, height, width) for _ in range(2)]
    decoder = FusedDecoder(vae.decoder, vae.post_quant_conv, ops)
    outputs += [decoder.chunk(one).clone() for one in latents]
    outputs = [one.float().cpu() for one in outputs]
    return outputs, time.perf_counter() - began


def config_z(vae: torch.nn.Module) -> int:
    """Channels of latents."""
    weight = vae.get_parameter("post_quant_conv.weight")
    return int(weight.shape[1])


def digest(outputs: list[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(one.numpy().tobytes() for one in outputs)).hexdigest()


def worst_error(outputs: list[torch.Tensor], device: torch.device) -> float:
    """Relative to plain torch in the same dtype."""
    from cosmos_fast.model.ops import Ops

    plain, _ = computed(device, Ops.select(device, HALF, kernels=False))
    assert all(one.isfinite().all() for one in plain)
    return max(
        float((ours - other).norm() / other.norm())
        for ours, other in zip(outputs, plain, strict=True)
    )


def contexts() -> list[bool]:
    """Of each card: whether this process has a context there."""
    known: Any = torch._C
    return [known._cuda_hasPrimaryContext(index) for index in range(torch.cuda.device_count())]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
