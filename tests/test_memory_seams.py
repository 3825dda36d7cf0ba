"""Where the memory pool meets others: guardrails beside it, faults amid a move, lack of memory."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cosmos_fast as cf
from cosmos_fast.config import DiTConfig
from cosmos_fast.memory import host
from cosmos_fast.prompt.networks import Seat
from cosmos_fast.weights import weight_bytes
from guarded import PROMPT, QWEN, SIGLIP, guarded_world
from random_world import RANDOM_PROFILE, make_random_world

MIB = 1 << 20
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
DIT = DiTConfig(
    num_layers=4, num_heads=4, head_dim=64, adaln_rank=32, text_dim=64, rope_scale=(1, 1, 1)
)
PROFILE = replace(
    RANDOM_PROFILE, dit=DIT, vae=replace(RANDOM_PROFILE.vae, base_dim=4, num_res_blocks=1)
)
"""Four blocks of 4 MiB, and little else."""
ALL = 64 * MIB
TIGHT = 12 * MIB


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_world(tmp_path_factory.mktemp("world"), PROFILE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guarded_world(tmp_path_factory.mktemp("guarded"))


def load(world: Path, memory: Any = ALL, **options: Any) -> cf.Video2World:
    return cf.Video2World.from_pretrained(
        world, device="cpu", memory=memory, prompt_cache=False, **options
    )


def run(engine: cf.Video2World, **options: Any) -> str:
    """The digest of the latents."""
    arguments: dict[str, Any] = {"num_steps": 1, "num_frames": 5, "size": (16, 16), "guidance": 0.0}
    return engine.generate(PICTURE, cf.NO_TEXT, **{**arguments, **options}).report.latents_sha256


@pytest.fixture(scope="module")
def plain(world: Path) -> str:
    return run(load(world, "auto"))


def out_of_memory(times: int) -> Callable[..., None]:
    """An ``on_step`` that lacks memory so many times."""
    left = [times]

    def on_step(*_: object) -> None:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    return on_step


def networks(engine: cf.Video2World) -> list[nn.Module]:
    """Of the guardrail and the upsampler, where they have been loaded."""
    guardrail, upsampler = engine._desk._gate.guardrail, engine._desk._upsampler
    assert guardrail is not None
    users: list[Any] = [*guardrail.prompt_checks, *guardrail.frame_checks, upsampler]
    return [user._seat._network for user in users if hasattr(user, "_seat")]


def storages(modules: list[nn.Module]) -> list[weakref.ref[Any]]:
    return [weakref.ref(p.untyped_storage()) for one in modules for p in one.parameters()]


def test_a_guardrail_that_leaves_no_room_is_refused_before_a_weight_is_read(
    small: Path, companions: Path
) -> None:
    stages: list[str] = []
    with pytest.raises(cf.MemoryPlanError, match="reserved") as refused:
        load(
            small,
            40 * MIB,
            checkpoint_root=companions,
            on_stage=lambda name, *_: stages.append(name),
        )
    assert set(stages) == {"find checkpoint"}
    told = str(refused.value)
    for words in (f"{40 * MIB} bytes", "face blur", 'placement="host"', "NoGuardrail"):
        assert words in told
    least = int(told.split("; ")[1].split()[0])
    assert load(small, least, checkpoint_root=companions).memory_plan is not None
    with pytest.raises(cf.MemoryPlanError, match=f"{least} bytes"):
        load(small, least - 1, checkpoint_root=companions)


def test_a_cure_that_would_not_do_is_told_with_what_it_needs(small: Path, companions: Path) -> None:
    """Networks that rest elsewhere come back, one at a time: the largest has to fit."""

    def parked(memory: int) -> cf.Video2World:
        guardrail = cf.DefaultGuardrail(placement="host")
        return load(small, memory, checkpoint_root=companions, guardrail=guardrail)

    with pytest.raises(cf.MemoryPlanError, match="for the largest of them in its turn") as refused:
        load(small, 16 * MIB, checkpoint_root=companions)
    with pytest.raises(cf.MemoryPlanError) as least:
        parked(MIB)
    needed = int(str(least.value).split("; ")[1].split()[0])
    told = math.ceil(100 * needed / (1 << 30)) / 100
    assert f"with at least {told:.2f} GiB" in str(refused.value)
    assert parked(needed).memory_plan is not None
    with pytest.raises(cf.MemoryPlanError) as rescued:
        load(small, needed, checkpoint_root=companions)
    assert "in its turn" not in str(rescued.value), "there resting elsewhere is enough"


def test_without_a_guardrail_a_hopeless_budget_is_refused_too(world: Path) -> None:
    with pytest.raises(cf.MemoryPlanError, match="the smallest clip takes") as refused:
        load(world, MIB)
    assert refused.value.plan is not None
    assert "NoGuardrail" not in str(refused.value)


def test_plan_errors_name_what_is_reserved(small: Path, companions: Path) -> None:
    engine = load(small, 256 * MIB, checkpoint_root=companions)
    with pytest.raises(cf.MemoryPlanError, match="reserved on the device"):
        engine.generate(PICTURE, PROMPT, size=(720, 1280), num_frames=93)
    with pytest.raises(cf.MemoryPlanError, match=r"2147483648 bytes \(2\.00 GiB\) reserved"):
        cf.plan("nvidia/Cosmos-Predict2-2B-Video2World", memory="3GiB", gpu="h200", reserved="2GiB")


def test_what_is_reserved_is_what_the_networks_hold(small: Path, companions: Path) -> None:
    engine = load(small, "1GiB", checkpoint_root=companions, upsampler=str(companions / QWEN))
    held = sum(p.nbytes for one in networks(engine) for p in one.parameters())
    counted = sum(need.weight_bytes for need in engine._desk._needs)
    assert held <= counted <= 1.01 * held + MIB
    working = [need.working_bytes for need in engine._desk._needs]
    assert engine._parts.residence.reserved_bytes == counted + max(working)
    assert all(one > 0 for one in working)


def test_of_siglip_the_tower_counts_in_the_dtype_it_gets(companions: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(companions / SIGLIP / "model.safetensors")
    tower = [one for name, one in tensors.items() if name.startswith("vision_model.")]
    found = weight_bytes(companions / SIGLIP, prefix="vision_model.", dtype=torch.float16)
    assert found == 2 * sum(one.numel() for one in tower)
    assert len(tower) < len(tensors)


def test_guardrail_and_upsampler_sleep_and_come_back(small: Path, companions: Path) -> None:
    engine = load(small, "auto", checkpoint_root=companions, upsampler=str(companions / QWEN))
    options: dict[str, Any] = {"num_steps": 1, "num_frames": 5, "upsample": False}
    before = engine.generate(PICTURE, PROMPT, **options)
    for _ in range(2):
        there = storages(networks(engine))
        engine.sleep()
        gc.collect()
        assert len(there) > 100
        assert all(storage() is None for storage in there)
        engine.wake()
        with pytest.raises(cf.GuardrailBlocked, match="llama guard"):
            engine.embed("poison the kettle")
        after = engine.generate(PICTURE, PROMPT, **options)
        assert after.report.latents_sha256 == before.report.latents_sha256
        assert torch.equal(after.frames.to("pt"), before.frames.to("pt"))
        assert engine.generate(PICTURE, PROMPT, num_steps=1, num_frames=5).report.upsampler["ran"]


def kept(modules: list[nn.Module]) -> list[str]:
    """Attributes of ``modules`` that hold tensors and are no parameters or buffers: no sleep and no
    plan knows of them."""
    return [
        f"{type(module).__name__}.{name}"
        for one in modules
        for module in one.modules()
        for name, value in vars(module).items()
        if any(isinstance(x, torch.Tensor) for x in (value if type(value) is tuple else (value,)))
    ]


def test_what_sleeps_holds_no_tensors_that_do_not(small: Path, companions: Path) -> None:
    engine = load(small, "auto", checkpoint_root=companions, upsampler=str(companions / QWEN))
    clip = engine.generate(PICTURE, PROMPT, num_steps=1, num_frames=5)
    assert clip.report.upsampler["ran"]
    engine.sleep()
    assert not kept([*networks(engine), engine._parts.dit, engine._parts.vae])
    again = engine.generate(PICTURE, PROMPT, num_steps=1, num_frames=5)
    assert again.report.latents_sha256 == clip.report.latents_sha256


@pytest.mark.gpu
def test_on_a_device_sleep_leaves_nothing_of_guardrail_and_upsampler(
    small: Path, companions: Path
) -> None:
    def taken() -> int:
        torch._C._cuda_clearCublasWorkspaces()  # 32 MiB that torch keeps for a stream
        return torch.cuda.memory_allocated()

    before = taken()
    engine = cf.Video2World.from_pretrained(
        small,
        device="cuda",
        prompt_cache=False,
        checkpoint_root=companions,
        upsampler=str(companions / QWEN),
    )
    options: dict[str, Any] = {"num_steps": 1, "num_frames": 5}
    expected = engine.generate(PICTURE, PROMPT, **options).report.latents_sha256
    engine.sleep()
    gc.collect()
    assert taken() - before < MIB
    engine.wake()
    assert engine.generate(PICTURE, PROMPT, **options).report.latents_sha256 == expected


def test_a_check_of_ones_own_is_told_to_sleep(world: Path) -> None:
    class Own:
        name = "own"
        asleep = 0

        def load(self) -> None: ...

        def check(self, _: object) -> cf.Verdict:
            return cf.Verdict(True)

        def sleep(self) -> None:
            self.asleep += 1

    own = Own()
    load(world, "auto", guardrail=cf.Guardrail([own], [Own()])).sleep()
    assert own.asleep == 1


def test_tied_weights_stay_one_through_sleep() -> None:
    def tied(at: torch.device) -> nn.Module:
        network = nn.Sequential(nn.Linear(8, 8, device=at), nn.Linear(8, 8, device=at))
        network[1].weight = nn.Parameter(network.get_parameter("0.weight").data)
        return network.requires_grad_(False)

    seat = Seat(tied, torch.device("cpu"), "device")
    with seat.taken() as network:
        expected = network(torch.ones(1, 8))
    there = storages([network])
    seat.sleep()
    assert [one() for one in there] == [None] * 4
    with seat.taken() as network:
        assert torch.equal(network(torch.ones(1, 8)), expected)
        first, second = network.get_parameter("0.weight"), network.get_parameter("1.weight")
        assert first.data_ptr() == second.data_ptr()


def test_memory_that_ends_for_one_call_is_there_for_the_next(world: Path, plain: str) -> None:
    engine = load(world, TIGHT)
    run(engine)
    assert engine.memory_plan is not None
    peak = engine.memory_plan.peak_bytes
    for _ in range(3):
        run(engine, on_step=out_of_memory(1))
        assert engine.memory_plan.peak_bytes < peak
    assert run(engine) == plain
    assert engine.memory_plan.peak_bytes == peak


def test_where_no_plan_is_smaller_the_error_tells_of_the_memory(world: Path) -> None:
    engine = load(world, TIGHT)
    run(engine)
    assert engine.memory_plan is not None
    least = load(world, engine.memory_plan.smallest_bytes)
    expected = run(least)
    for _ in range(2):
        with pytest.raises(cf.MemoryPlanError, match="out of memory on cpu"):
            run(least, on_step=out_of_memory(1))
        assert run(least) == expected


def test_one_level_down_takes_from_what_can_shrink(world: Path) -> None:
    residence = load(world, ALL)._parts.residence
    plan = residence.plan
    assert plan is not None
    residence.reserved_bytes = 0
    lowered = residence._one_level_down(replace(plan, peak_bytes=plan.peak_bytes + 100 * MIB))
    loose = plan.peak_bytes + 100 * MIB - plan.fixed_bytes
    assert lowered == plan.fixed_bytes + int(0.85 * loose)
    assert residence._one_level_down(replace(plan, peak_bytes=plan.fixed_bytes)) > plan.fixed_bytes


def failing_from(turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the ``turn``-th block on the host has no memory."""
    allocate, asked = host.allocate, [0]

    def scarce(size: int) -> torch.Tensor:
        asked[0] += 1
        if asked[0] >= turn:
            raise cf.MemoryPlanError("the driver cannot lock it")
        return allocate(size)

    monkeypatch.setattr(host, "allocate", scarce)


def test_a_sleep_that_fails_moves_nothing(
    world: Path, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(world, "auto")
    places = [p.data_ptr() for p in engine._parts.dit.parameters()]
    with monkeypatch.context() as patch:
        failing_from(4, patch)
        with pytest.raises(cf.MemoryPlanError, match="cannot lock"):
            engine.sleep()
    assert not engine._parts.residence.asleep
    assert [p.data_ptr() for p in engine._parts.dit.parameters()] == places
    assert run(engine) == plain
    engine.sleep()
    assert engine._parts.residence.asleep
    assert run(engine) == plain


def test_a_take_over_that_fails_moves_nothing(
    world: Path, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(world, 44 * MIB)
    places = [p.data_ptr() for p in engine._parts.dit.parameters()]
    large: dict[str, Any] = {"size": (224, 256)}
    with monkeypatch.context() as patch:
        failing_from(4, patch)
        with pytest.raises(cf.MemoryPlanError, match="cannot lock"):
            run(engine, **large)
    assert engine._parts.residence.executor is None
    assert [p.data_ptr() for p in engine._parts.dit.parameters()] == places
    assert run(engine) == plain
    run(engine, **large)
    assert engine._parts.residence.executor is not None
    assert run(engine) == plain


@pytest.mark.parametrize("memory", ["auto", ALL, TIGHT], ids=str)
def test_waking_without_room_is_our_error_and_sleeps_on(
    memory: Any, world: Path, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(world, memory)
    assert run(engine) == plain
    engine.sleep()
    empty, asked = torch.empty, [0]

    def scarce(*arguments: Any, **options: Any) -> torch.Tensor:
        if options.get("dtype") == torch.uint8 and "device" in options:
            asked[0] += 1
            if asked[0] == (1 if memory == TIGHT else 3):
                raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", scarce)
        with pytest.raises(cf.MemoryPlanError, match="out of memory"):
            engine.wake()
    assert engine._parts.residence.asleep
    assert run(engine) == plain


def test_a_lost_device_neither_sleeps_nor_wakes(world: Path) -> None:
    engine = load(world, "auto")
    engine._lost = "cpu failed"
    for work in (engine.sleep, engine.wake):
        with pytest.raises(cf.DeviceLost):
            work()
    assert not engine._parts.residence.asleep
