"""The executor: the same bytes as with everything resident, and everything returned."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch

from cosmos_fast.config import DiTConfig, T5Config, VAEConfig
from cosmos_fast.errors import CosmosFastError, InputError
from cosmos_fast.memory.components import dit_blocks, text_blocks, vae_blocks
from cosmos_fast.memory.engines import HostEngines
from cosmos_fast.memory.executor import Executor
from cosmos_fast.memory.host import HostBlock, arranged, layout, unique_parameters
from cosmos_fast.memory.request import Block, Link, Machine, Request, Residency, Shape, Stage
from cosmos_fast.memory.schedule import Schedule
from cosmos_fast.model.dit import DiT, TextContext
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.t5 import T5Encoder
from cosmos_fast.model.vae import VAE

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYERS = 6
PASSES = 4
HELD = ("edges", "embedding", "encoder", "decoder")
CONFIG = DiTConfig(num_layers=LAYERS, num_heads=2, head_dim=16, adaln_rank=8, text_dim=24)


def _network() -> DiT:
    network = DiT(CONFIG, Ops(), "float32")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


def _stage(name: str, component: str, blocks: Any, passes: int, **options: Any) -> Stage:
    described = tuple(
        Block(
            block,
            layout(unique_parameters(modules))[1],
            1000,
            hold=block in HELD,
        )
        for block, modules in blocks.items()
    )
    return Stage(name, component, described, passes, (Shape("whole", 0),), **options)


def _schedule(stages: tuple[Stage, ...], places: float, **options: Any) -> Schedule:
    """A budget of what is held and ``places`` blocks."""
    held = max(sum(-(-b.bytes // 512) * 512 for b in s.blocks if b.hold) for s in stages)
    loose = [-(-b.bytes // 512) * 512 for s in stages for b in s.blocks if not b.hold]
    largest = max(loose, default=0)
    bus = Link(10**9)
    machine = Machine(held + int(places * largest), 0, 1 << 40, 0, 0, bus, bus)
    return Schedule.solve(Request(machine, stages, **options))


def _executor(
    network: DiT,
    places: float,
    device: str = "cpu",
    residency: Residency = "drop",
    **options: Any,
) -> Executor:
    stage = _stage("denoise", "dit", dit_blocks(network), PASSES, residency=residency)
    schedule = _schedule((stage,), places, **options)
    components = {"dit": dit_blocks(network)}
    return Executor(schedule, components, torch.device(device), poison=True)


def _inputs(device: str = "cpu") -> Callable[[DiT], torch.Tensor]:
    """A forward pass that makes the text's keys and values first, as a generation does."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, 16, 2, 4, 6, generator=generator).to(device)
    t = torch.tensor([[0.3, 0.7]], device=device)
    mask = torch.zeros(1, 1, 2, 1, 1, device=device)
    kv = torch.randn(LAYERS, 1, 5, 2, 2, 16, generator=generator).to(device)

    def forward(network: DiT) -> torch.Tensor:
        with torch.no_grad():
            return network(x, t, mask, TextContext(tuple(kv)))

    return forward


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stable", [False, True], ids=["turning", "stable"])
@pytest.mark.parametrize("places", [1, 2, 3, 4.5, 5, 6])
def test_streaming_gives_the_same_bytes(places: float, stable: bool, device: str) -> None:
    network, forward = _network(), _inputs(device)
    expected = forward(network.to(device)).cpu()
    executor = _executor(network.cpu(), places, device, stable_slots=stable)
    streamed = executor.plan.stage("denoise").streamed
    assert streamed == (0 if places >= LAYERS else streamed) <= LAYERS
    for _ in range(3):
        with executor.stage("denoise"):
            outputs = [forward(network) for _ in range(PASSES)]
        assert all(torch.equal(output.cpu(), expected) for output in outputs)


def test_poison_shows_a_block_that_is_not_there() -> None:
    # The net under all tests here: without the action that waits and binds, the result is NaN.
    network, forward = _network(), _inputs()
    executor = _executor(network, 2)
    with executor.stage("denoise"):
        run = executor._running
        assert run is not None
        forward(network)
        run._places[0].fill_(0xFF)
        run._places[1].fill_(0xFF)
        assert forward(network).isnan().any()


def test_an_error_in_any_block_leaves_everything_whole() -> None:
    network, forward = _network(), _inputs()
    expected = forward(network)
    executor = _executor(network, 3)
    for block in range(LAYERS):
        failing = network.blocks[block].register_forward_pre_hook(_raise)
        with pytest.raises(ZeroDivisionError), executor.stage("denoise"):
            forward(network)
        failing.remove()
        assert not any(module._forward_pre_hooks for module in network.modules())
        with executor.stage("denoise", passes=1):
            assert torch.equal(forward(network), expected)
    assert torch.equal(forward(network), expected), "the weights rest in host memory"


@pytest.mark.parametrize("turn", [1, 2, 4])
def test_a_copy_that_fails_is_waited_for_before_the_arena_goes(turn: int) -> None:
    network, forward = _network(), _inputs()
    expected = forward(network)
    executor = _executor(network, 4)

    class Failing(HostEngines):
        copies = 0
        waited = False

        def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
            self.copies += 1
            if self.copies == turn:
                raise ZeroDivisionError
            super().copy(target, source)

        def compute_after(self, mark: None) -> None:
            self.waited = True

    engines = executor._engines = Failing()
    with pytest.raises(ZeroDivisionError), executor.stage("denoise"):
        forward(network)
    assert engines.waited
    assert executor._running is None
    assert torch.equal(forward(network), expected), "the weights rest in host memory"
    with executor.stage("denoise", passes=1):
        assert torch.equal(forward(network), expected)


def test_a_stage_may_end_early_or_never_begin() -> None:
    network, forward = _network(), _inputs()
    expected = forward(network)
    executor = _executor(network, 2)
    with executor.stage("denoise"):
        pass
    with executor.stage("denoise"):
        forward(network)
    with executor.stage("denoise", passes=2 * PASSES):
        for _ in range(2 * PASSES):
            assert torch.equal(forward(network), expected)


def test_the_keys_of_a_prompt_are_a_pass_of_their_own() -> None:
    # Parts of each block run, in order, and no block as a whole.
    network, forward = _network(), _inputs()
    rows = torch.randn(1, 5, CONFIG.text_dim)
    with torch.no_grad():
        expected = (network.text_context(rows), forward(network))
    executor = _executor(network, 2)
    with executor.stage("denoise", passes=1 + PASSES), torch.no_grad():
        found = network.text_context(rows)
        assert all(map(torch.equal, found.blocks, expected[0].blocks))
        assert torch.equal(forward(network), expected[1])


def test_nothing_stays_on_the_device_after_a_stage() -> None:
    network, forward = _network(), _inputs()
    executor = _executor(network, 2)
    arenas: list[weakref.ref[torch.UntypedStorage]] = []
    for fail in (False, True, False):
        with suppress(ZeroDivisionError), executor.stage("denoise"):
            run = executor._running
            assert run is not None
            arenas.append(weakref.ref(run._places[0].untyped_storage()))
            forward(network)
            if fail:
                raise ZeroDivisionError
        del run
    gc.collect()
    assert all(arena() is None for arena in arenas)


def test_other_orders_and_more_passes_than_asked_for_are_refused() -> None:
    network, forward = _network(), _inputs()
    expected = forward(network)
    executor = _executor(network, 2)
    x = torch.zeros(1, 1, 32)
    with pytest.raises(CosmosFastError, match="another order"), executor.stage("denoise"):
        network.get_submodule("blocks.3.mlp.layer1")(x)
    with pytest.raises(CosmosFastError, match="more often"), executor.stage("denoise", passes=1):
        [forward(network) for _ in range(2)]
    with (
        executor.stage("denoise"),
        pytest.raises(CosmosFastError, match="while 'denoise' runs"),
        executor.stage("denoise"),
    ):
        pass
    with executor.stage("denoise"):
        assert torch.equal(forward(network), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_kept_weights_sleep_and_wake(device: str) -> None:
    network, forward = _network(), _inputs(device)
    expected = forward(network.to(device)).cpu()
    executor = _executor(network.cpu(), 8, device, residency="keep")
    for _ in range(2):
        with executor.stage("denoise"):
            assert torch.equal(forward(network).cpu(), expected)
        kept = weakref.ref(network.get_parameter("blocks.0.mlp.layer1.weight").untyped_storage())
        executor.sleep()
        assert executor.asleep
        gc.collect()
        assert kept() is None
        executor.wake()
        assert not executor.asleep


def test_two_executors_do_not_disturb_each_other() -> None:
    forward = _inputs()
    networks = [_network(), _network()]
    expected = [forward(network) for network in networks]
    executors = [_executor(network, 2) for network in networks]
    with executors[0].stage("denoise"), executors[1].stage("denoise"):
        for _ in range(PASSES):
            for network, wanted in zip(networks, expected, strict=True):
                assert torch.equal(forward(network), wanted)


def test_stages_of_several_components_follow_one_another() -> None:
    vae = VAE(VAEConfig(base_dim=4, dim_mult=(1, 1, 2, 2))).eval().requires_grad_(False)
    network, forward = _network(), _inputs()
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(clip)
        expected = (latents, forward(network), vae.decode(latents))
    components = {"dit": dit_blocks(network), **vae_blocks(vae)}
    stages = (
        _stage("encode", "vae encoder", components["vae encoder"], 1),
        _stage("denoise", "dit", components["dit"], PASSES),
        _stage("decode", "vae decoder", components["vae decoder"], 1),
    )
    budgets = [_schedule(stages, 1).smallest_bytes, 10**9]
    for budget in budgets:
        bus = Link(10**9)
        request = Request(Machine(budget, 0, 1 << 40, 0, 0, bus, bus), stages)
        executor = Executor(Schedule.solve(request), components, torch.device("cpu"), poison=True)
        for _ in range(2):
            with torch.no_grad(), executor.stage("encode"):
                assert torch.equal(vae.encode(clip), expected[0])
            with executor.stage("denoise"):
                assert torch.equal(forward(network), expected[1])
            with torch.no_grad(), executor.stage("decode"):
                assert torch.equal(vae.decode(latents), expected[2])


@pytest.mark.parametrize("device", DEVICES)
def test_the_text_encoder_streams_layer_by_layer_once_for_all_prompts(device: str) -> None:
    config = T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=5, num_heads=4, buckets=8
    )
    t5 = T5Encoder(config)
    for parameter in t5.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    t5.requires_grad_(False)
    tokens, lengths = torch.randint(50, (3, 16), device=device), [3, 16, 9]
    expected = [rows.cpu() for rows in t5.to(device)(tokens, lengths)]
    blocks = text_blocks(t5.cpu())
    schedule = _schedule((_stage("text", "text encoder", blocks, 1, residency="drop"),), 2)
    assert schedule.stage("text").streamed > 2
    executor = Executor(schedule, {"text encoder": blocks}, torch.device(device), poison=True)
    with executor.stage("text"):
        found = t5(tokens, lengths)
        with pytest.raises(CosmosFastError, match="more often"):
            t5(tokens, lengths)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(found, expected, strict=True))


def test_weights_that_were_read_into_place_are_not_copied() -> None:
    with torch.device("meta"):
        network = DiT(CONFIG, Ops(), "float32")
    places = arranged(network, dit_blocks(network), torch.bfloat16)
    for place in places.values():
        place.fill_(1.0)
    network.load_state_dict(places, assign=True)
    network.requires_grad_(False)
    for modules in dit_blocks(network).values():
        block = HostBlock(modules, pin=False)
        assert block.memory.data_ptr() == block.parameters[0].data_ptr()
        assert block.memory.data_ptr() == min(
            place.data_ptr()
            for name, place in places.items()
            if any(network.get_parameter(name) is one for one in block.parameters)
        )


def test_components_that_do_not_fit_the_plan_are_refused() -> None:
    network = _network()
    schedule = _executor(_network(), 3).plan
    cpu = torch.device("cpu")
    with (
        pytest.raises(InputError, match="no modules of 'dit'"),
        Executor(schedule, {}, cpu).stage("denoise"),
    ):
        pass
    with pytest.raises(InputError, match="no modules for 'edges'"):
        Executor(schedule, {"dit": {"blocks.0": [network.blocks[0]]}}, cpu)
    wide = DiT(DiTConfig(num_layers=LAYERS, num_heads=4, head_dim=16), Ops()).requires_grad_(False)
    with pytest.raises(InputError, match="another model"):
        Executor(schedule, {"dit": dit_blocks(wide)}, cpu)
    with pytest.raises(InputError, match="gradients"):
        Executor(schedule, {"dit": dit_blocks(network.requires_grad_(True))}, cpu)


def _raise(*_: object) -> None:
    raise ZeroDivisionError
