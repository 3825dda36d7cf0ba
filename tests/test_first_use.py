"""A first use: which kernels it asks for, and that they are compiled side by side before that.

This file is also the programs that compile, for an H200 where none is: ``python FILE NAME ...``
calls a function of it and prints the JSON object that it returns.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ahead_of_time import pretend_target, printed_by
from cosmos_fast.config import Profile
from cosmos_fast.types import Size
from cosmos_fast.weights.released import ARCHITECTURES

if TYPE_CHECKING:
    from cosmos_fast.model.attention_table import ShapeClass

ALONE: tuple[ShapeClass, ...] = ("self", "cross", "folded")
"""What an engine of one rank asks of attention."""
CUDA = torch.device("cuda", 0)
HALF = torch.bfloat16


@pytest.mark.parametrize("shape", ["example1", "action"])
def test_what_is_named_is_what_a_run_asks_for(shape: str, tmp_path: Path) -> None:
    told = printed_by(__file__, "asked_for", shape, cache=tmp_path)
    named, run = Counter(told["named"]), Counter(told["run"])
    assert named
    assert not run - named, "compiled at a launch"
    if shape == "example1":  # a clip of actions has no prompt
        assert not named - run, "compiled for nothing"
    assert not told["compiler_of_torch"], "naming kernels must not take seconds of imports"


@pytest.mark.parametrize("dtype", [HALF, torch.float32])
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 3), (12, 0)])
@pytest.mark.parametrize("heads", [(2, 64), (40, 128), (3, 16)])
def test_kernels_can_be_named_for_every_card_and_network(
    heads: tuple[int, int],
    capability: tuple[int, int],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    dit = replace(profile_of_2b().dit, num_heads=heads[0], head_dim=heads[1])
    for profile in (profile_of_2b(), replace(profile_of_2b(), size=Size(64, 96), num_frames=1)):
        names = named_launches(replace(profile, dit=dit), dtype, (*ALONE, "listed", "merged"))
        kernels = {(one.kernel.__module__, one.kernel.__name__) for one in names}
        assert len(kernels) >= 5
        products = any(name == "_linear_kernel" for _, name in kernels)
        assert products == (capability == (9, 0) and dtype == HALF and heads[1] > 16)


@pytest.mark.slow
def test_kernels_are_compiled_once_and_found_by_the_next_process(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, second = (printed_by(__file__, "compile_ahead", cache=cache) for _ in range(2))
    assert first["late"] == second["late"] == {"compiled": [], "found": []}
    assert len(first["compiled"]) == len(set(first["keys"])) > 20
    assert first["found"] == []
    assert first["threads"] > 1 or len(os.sched_getaffinity(0)) == 1
    assert first["loaded"] == second["loaded"] == len(first["compiled"])
    assert second["compiled"] == []
    assert Counter(second["found"]) == Counter(first["compiled"])
    # Side by side or one after the other, the machine code is the same.
    alone = printed_by(__file__, "compile_some", cache=tmp_path / "alone")
    assert len(alone) == 3
    assert alone.items() <= first["machine_code"].items()


@pytest.mark.slow
def test_what_cannot_be_compiled_is_told_by_its_launch(tmp_path: Path) -> None:
    told = printed_by(__file__, "compile_what_fails", cache=tmp_path)
    assert told["good"] == "launched"
    assert "CompileTimeAssertionFailure" in told["bad, ahead"]
    assert "CompileTimeAssertionFailure" in told["bad, afterwards"]
    assert told["after a failure to load"] == "launched"
    assert told["body"] == "KeyError('body')"
    assert told["compiled after the body failed"] < 100


def profile_of_2b() -> Profile:
    """Of the released 2B: 704 x 1280, 93 frames, whatever is asked of it."""
    return Profile("2B", Size(704, 1280), 93, 16.0, dit=ARCHITECTURES["2B"])


def asked_for(shape: str) -> dict[str, Any]:
    """Keys of the kernels that are named for the 2B, and of those that a run launches."""
    pretend_target(90)
    from triton.compiler.compiler import get_cache_invalidating_env_vars, get_cache_key
    from triton.runtime.jit import JITFunction

    keys: dict[str, str] = {}

    def told(kernel: Any, key: object, signature: Any, device: int, *given: Any) -> None:
        constants, options, attributes, _ = given
        source = kernel.ASTSource(kernel, signature, constants, attributes)
        backend = kernel.device_caches[device][3]
        unique = get_cache_key(source, backend, options, get_cache_invalidating_env_vars())
        keys[hashlib.sha256(unique.encode()).hexdigest()[:12]] = source.name

    def taken() -> list[str]:
        found = [f"{name} {key}" for key, name in keys.items()]
        keys.clear()
        return found

    jit: Any = JITFunction
    jit._do_compile = told
    for one in named_launches():
        one.compile()
    named, heavy = taken(), sorted({"sympy", "torch._dynamo"} & set(sys.modules))
    run_tests()
    run_networks(shape)
    return {"named": named, "run": taken(), "compiler_of_torch": heavy}


def named_launches(
    profile: Profile | None = None,
    dtype: torch.dtype = HALF,
    classes: tuple[ShapeClass, ...] = ALONE,
) -> list[Any]:
    from cosmos_fast.model.first_use import name_kernels
    from cosmos_fast_kernels.launching import only_named

    with only_named() as launches, torch.no_grad():
        name_kernels(profile or profile_of_2b(), CUDA, dtype, classes=classes)
    return launches


def run_tests() -> None:
    """As an engine's start does, but that nothing is computed and so nothing is right."""
    from cosmos_fast.model.attention_table import self_test_error
    from cosmos_fast.model.linear_table import self_test_error as product_error
    from cosmos_fast.model.ops import products
    from cosmos_fast.model.ops.backends import candidates

    hopper = candidates((9, 0), HALF, 128)["hopper"]
    self_test_error(hopper, 128, HALF, "cpu", ALONE)
    product_error(products._hopper_product, 128, "cpu")


@torch.no_grad()
def run_networks(shape: str) -> None:
    """Forwards at the size of ``shape``, and three chunks of a tiny picture decoded."""
    from cosmos_fast.model.dit import DiT
    from cosmos_fast.model.ops import expected
    from cosmos_fast.model.vae import VAE
    from cosmos_fast.model.vae_fused import FusedDecoder
    from cosmos_fast.types import TokenLayout

    action = shape == "action"
    profile = profile_of_2b()
    config = replace(profile.dit, num_layers=2, action_inputs=84 if action else 0)
    ops = expected(CUDA, HALF, 128)
    frames, height, width = (4, 60, 80) if action else (21, 54, 96)
    layout = TokenLayout((frames, height // 2, width // 2))
    with torch.device("meta"):
        dit = DiT(config, ops).to(HALF).requires_grad_(False)
        x, mask = (
            torch.empty(1, 16, frames, height, width),
            torch.empty(1, 1, frames, height, width),
        )
        times, index = torch.empty(1, 36 * frames), torch.zeros(1, frames, dtype=torch.int64)
        rows = torch.empty(1, 512, profile.dit.text_dim)
        actions = dit.action_context(torch.empty(1, 12, 7) if action else None)
        modulations = dit.modulations(times, actions).at(index)
        rope = dit.rope(layout)
        for length in (0,) if action else (90, 20, 512):
            text = dit.text_context(rows, length)
            dit(x, times[:, :frames], mask, text, layout, rope=rope, modulations=modulations)
        vae = VAE(profile.vae).to(HALF).requires_grad_(False)
    vae.to_empty(device="cpu")
    decoder = FusedDecoder(vae.decoder, vae.post_quant_conv, ops)
    for _ in range(3):
        decoder.chunk(torch.zeros(1, 16, 1, 1, 2, dtype=HALF))


class Told:
    """What Triton says that it compiled and found, in which threads, and what came of it."""

    def __init__(self) -> None:
        from triton import knobs

        self.clear()
        self.threads: set[int] = set()
        self.machine_code: dict[str, str] = {}
        knobs.compilation.listener = self

    def clear(self) -> None:
        self.compiled: list[str] = []
        self.found: list[str] = []

    def __call__(
        self, *, src: Any, metadata: dict[str, Any], metadata_group: Any, cache_hit: bool, **_: Any
    ) -> None:
        (self.found if cache_hit else self.compiled).append(src.name)
        self.threads.add(threading.get_ident())
        (cubin,) = (path for name, path in metadata_group.items() if name.endswith(".cubin"))
        code = Path(cubin).read_bytes()
        self.machine_code[metadata["hash"]] = hashlib.sha256(code).hexdigest()


def compile_ahead() -> dict[str, Any]:
    """A start of an engine, and after it everything that a clip launches."""
    pretend_target(90)
    import triton

    from cosmos_fast.model.first_use import kernels_ahead

    told, loaded = Told(), 0
    utils = triton.runtime.driver.active.utils
    load = utils.load_binary

    def load_binary(*arguments: Any) -> Any:
        nonlocal loaded
        loaded += 1
        return load(*arguments)

    utils.load_binary = load_binary
    begun = time.perf_counter()
    with kernels_ahead(profile_of_2b(), CUDA, HALF, classes=ALONE, kernels=True):
        run_tests()
        tested = time.perf_counter() - begun
    report = {
        "compiled": told.compiled,
        "found": told.found,
        "keys": list(told.machine_code),
        "machine_code": told.machine_code,
        "threads": len(told.threads),
        "loaded": loaded,
        "seconds": [tested, time.perf_counter() - begun],
    }
    told.clear()
    for one in named_launches():
        one.kernel[one.grid](*one.arguments, **one.options)
    return report | {"late": {"compiled": told.compiled, "found": told.found}}


def compile_some() -> dict[str, str]:
    """Three kernels of different kinds, one after the other: machine code by key."""
    pretend_target(90)
    told = Told()
    first = {one.kernel.__name__: one for one in reversed(named_launches())}
    for name in ("_linear_kernel", "_norm_rope_kernel", "_assemble_kernel"):
        first[name].compile()
    return told.machine_code


def compile_what_fails() -> dict[str, Any]:
    """Each launch, or the body, and what came of it."""
    pretend_target(90)
    import triton
    import triton.language as tl

    from cosmos_fast.model.ops import compiling
    from cosmos_fast_kernels.launching import launch

    @triton.jit
    def store(x_pointer, VALUE: tl.constexpr):
        tl.static_assert(VALUE < 1000)
        tl.store(x_pointer, VALUE)

    x = torch.empty(16, device="meta")

    def outcome(value: int) -> str:
        try:
            launch(store, (1,), x, VALUE=value)
        except Exception as problem:
            return f"{type(problem).__name__}: {problem}"
        return "launched"

    def named(*values: int) -> Any:
        def calls() -> None:
            for one in values:
                launch(store, (1,), x, VALUE=one)

        return compiling(CUDA, calls)

    found = {}
    with named(1, 1000):
        found["bad, ahead"], found["good"] = outcome(1000), outcome(1)
    found["bad, afterwards"] = outcome(1000)

    utils = triton.runtime.driver.active.utils
    load, utils.load_binary = utils.load_binary, None
    with named(2):
        pass
    utils.load_binary = load
    found["after a failure to load"] = outcome(2)

    told = Told()
    try:
        with named(*range(100, 200)):
            raise KeyError("body")
    except KeyError as problem:
        found["body"] = repr(problem)
    return found | {"compiled after the body failed": len(told.compiled)}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
