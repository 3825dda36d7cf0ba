"""The memory plan: what the networks need, what fits where, and what is said of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import torch

from cosmos_fast import _core
from cosmos_fast.config import Profile
from cosmos_fast.errors import InputError, MemoryPlanError
from cosmos_fast.memory import CARDS, Budget, Plan, footprint, plan
from cosmos_fast.memory import activations as requests_of_stages
from cosmos_fast.memory.budget import Memory, gib, parse_amount
from cosmos_fast.memory.footprint import peak_bytes
from cosmos_fast.memory.models import (
    _TEXT_OPENING_SECONDS,
    _TEXT_SECONDS,
    SLOWDOWNS,
    T5_11B,
    Workload,
    dit_bytes,
    stages,
)
from cosmos_fast.memory.plan import solve
from cosmos_fast.memory.request import GIB, MIB, Block, Link, Machine, Request, Shape, Stage
from cosmos_fast.memory.residence import Residence
from cosmos_fast.memory.room import Taken
from cosmos_fast.model.attention import Attended
from cosmos_fast.model.cuts import Cut
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.dit_layers import Placement
from cosmos_fast.model.ops import Ops
from cosmos_fast.types import Size, TokenLayout
from cosmos_fast.weights.released import ARCHITECTURES

if TYPE_CHECKING:
    from cosmos_fast.model.attention import AttentionSpec

SMALL = "nvidia/Cosmos-Predict2-2B-Video2World"
LARGE = "nvidia/Cosmos-Predict2-14B-Video2World"


@pytest.fixture(scope="module")
def large() -> Plan:
    return plan(LARGE, memory="12GiB", gpu="rtx4090-pcie4x16", size=(432, 768), num_frames=81)


@pytest.mark.parametrize(
    ("name", "block", "edges"),
    [("2B", 69_206_528, 18_630_656), ("14B", 393_216_512, 109_491_200)],
    ids=["2B", "14B"],
)
def test_bytes_are_those_of_the_network(name: str, block: int, edges: int) -> None:
    found = dit_bytes(ARCHITECTURES[name], torch.bfloat16)
    assert found == pytest.approx((2 * block, 2 * edges), rel=1e-5)  # 256 bytes to a parameter


def test_weights_of_the_stages_are_those_of_the_files() -> None:
    workload = _workload(LARGE)
    weights = {
        stage.component: sum(block.bytes for block in stage.blocks)
        for stage in stages(workload, CARDS["h200"])
    }
    assert weights["dit"] == pytest.approx(14_265_285_632 * 2, rel=1e-6)
    vae = weights["vae encoder"] + weights["vae decoder"]
    assert 0 <= vae - 126_892_531 * 2 < 194 * 256  # each parameter starts at a multiple of 256
    assert weights["text encoder"] == pytest.approx(4.865e9 * 2, rel=1e-3)


def test_peak_of_a_computation_is_counted_exactly() -> None:
    def compute() -> torch.Tensor:
        a = torch.empty(MIB, device="meta")
        b = a * 2  # 8 MiB
        del a
        c = b + 1
        view = c.view(-1)
        c += 1
        del b, c
        return view * torch.ones(1, device="meta")  # two of 4 MiB, and one number

    assert peak_bytes(compute) == 8 * MIB + 512
    assert (
        peak_bytes(lambda: torch.empty(11 * MIB + 1, device="meta", dtype=torch.int8)) == 12 * MIB
    )


@pytest.mark.parametrize("cut", SLOWDOWNS, ids=lambda cut: cut.name)
def test_token_tensors_are_those_of_the_block(cut: Cut) -> None:
    # A block with operations that work in place, as the kernels do, on a shape where nothing but
    # token tensors counts.
    config = replace(ARCHITECTURES["2B"], num_layers=1)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> Attended:
        return Attended(torch.empty(q.shape, dtype=q.dtype, device=q.device))

    ops = Ops(
        qk_norm_rope=lambda q, k, *_: (q, k),
        head_norm=lambda x, *_: x,
        layernorm_modulate=lambda x, *_: torch.empty_like(x),
        gated_residual=lambda x, *_: x,
        gated_layernorm_modulate=lambda x, gate, y, *_: (x, y),
        attention=attend,
    )
    frames, tokens = 21, 21 * 54 * 96
    with torch.device("meta"):
        network = DiT(config, ops).to(torch.bfloat16)
        layout = TokenLayout((frames, 54, 96))
        rope = network.rope(layout)
        text = torch.empty(1, 512, 2, 16, 128, dtype=torch.bfloat16)
        modulation = torch.empty(3, 1, frames, 3 * 2048, dtype=torch.bfloat16)

    def forward() -> torch.Tensor:
        x = torch.empty(1, tokens, 2048, dtype=torch.bfloat16, device="meta")
        return network.blocks[0](x, modulation, Placement(rope, None, cut), text)

    found = peak_bytes(forward) / (tokens * 2048 * 2)
    assert found == pytest.approx(cut.token_tensors(frames), rel=0.02)


def test_finer_cuts_need_less() -> None:
    needs = [cut.token_tensors(21) for cut in SLOWDOWNS]
    assert needs == sorted(needs, reverse=True)
    assert needs[-1] == 4
    # Four frames cannot be cut into eight stretches.
    assert Cut(8, 4).token_tensors(4) == Cut(4, 4).token_tensors(4)


def test_the_14b_streams_within_12_gib(large: Plan) -> None:
    denoise = large.stage("denoise")
    assert large.peak_bytes <= 12 * GIB
    assert large.peak_bytes == max(stage.peak_bytes for stage in large.stages)
    assert denoise.streamed > 0
    assert denoise.passes == 72
    assert denoise.peak_bytes == (
        large.fixed_bytes + large.kept_bytes + denoise.arena_bytes + denoise.activation_bytes
    )
    # 35 blocks of 786 MB over a bus of 25 GB/s hide behind a forward of this card.
    assert denoise.stall_seconds < 0.01 * denoise.seconds


def test_actions_and_timeline_are_those_of_the_plan(large: Plan) -> None:
    index = large.stages.index(large.stage("denoise"))
    actions = large.core.actions(index)
    copies, uses = large.core.timeline(index)
    denoise = large.stages[index]
    assert sum(kind == "use" for kind, _, _ in actions) == len(denoise.blocks) * denoise.passes
    assert len(uses) == len(denoise.blocks) * denoise.passes
    assert [(block, place) for kind, block, place in actions if kind == "copy"] == [
        (block, place) for block, place, _, _ in copies
    ]
    assert uses[-1][3] / 1e9 == pytest.approx(denoise.seconds)


def test_report_forms(large: Plan) -> None:
    plain = json.loads(json.dumps(large.as_dict()))
    assert plain["stages"]["denoise"]["streamed"] == large.stage("denoise").streamed
    assert plain["peak_bytes"] == large.peak_bytes
    for word in ("denoise", "peak", "smallest possible", "rtx4090-pcie4x16", "pinned"):
        assert word in large.table()
    drawing = large.timeline()
    assert drawing.png().startswith(b"\x89PNG")
    picture = ElementTree.fromstring(drawing.svg())
    assert picture.tag.endswith("svg")
    assert len(picture.findall(".//{*}rect")) > 100
    written = [label.text or "" for label in picture.findall(".//{*}text")]
    assert f"{large.model} on rtx4090-pcie4x16, 432x768 (height x width), 81 frames" in written[-1]
    assert written[-1].endswith(" of 12.00 GiB")


def test_the_summary_has_what_was_taken_beside_what_was_planned(large: Plan) -> None:
    seen = large.compared({"denoise": 1.0}, Taken(peak=10 * GIB, beside_torch=GIB))
    planned = f"{large.peak_bytes / GIB:.2f} GiB planned of 12.00 GiB, "
    taken = "10.00 GiB taken by the process in this call, "
    assert seen["summary"].startswith(f"{planned}{taken}streams ")
    assert seen["measured_peak_bytes"] == 10 * GIB
    unseen = large.compared({}, None)
    assert unseen["summary"].startswith(f"{planned}streams ")


def test_more_memory_is_not_slower_and_resident_is_fastest() -> None:
    plans = [_plan(SMALL, f"{gib}GiB") for gib in (4, 6, 8, 12, 24)]
    seconds = [one.seconds for one in plans]
    assert seconds == sorted(seconds, reverse=True)
    resident = _plan(SMALL, "resident")
    assert resident.seconds <= seconds[-1]
    assert set(resident.sources.values()) == {"device"}
    assert resident.exact
    assert resident.copied_bytes == 0


def test_offloading_is_a_demand_on_the_plan() -> None:
    kept = _plan(SMALL, "auto")
    dropped = _plan(SMALL, "auto", offload=["text encoder", "dit"])
    assert kept.sources["text encoder"] == "device"
    assert dropped.sources["text encoder"] == dropped.sources["dit"] == "pinned"
    assert dropped.sources["vae decoder"] == "device"
    assert dropped.kept_bytes < kept.kept_bytes


def test_little_host_memory_streams_from_the_files() -> None:
    rich = _plan(SMALL, "8GiB")
    poor = _plan(SMALL, "8GiB", host_memory="8GiB")
    assert poor.host_bytes <= 8 * GIB < rich.host_bytes
    assert poor.sources["text encoder"] == "files"
    assert poor.seconds >= rich.seconds


@pytest.mark.parametrize(
    ("budget", "needed"),
    [
        pytest.param(Budget(device=GIB), "device memory", id="device"),
        pytest.param(Budget(host=GIB), "host memory", id="host"),
    ],
)
def test_a_refusal_names_what_would_do_and_carries_its_plan(budget: Budget, needed: str) -> None:
    with pytest.raises(MemoryPlanError, match=needed) as refused:
        _plan(SMALL, budget)
    smallest = refused.value.plan
    assert str(smallest.budget_bytes if budget.device else smallest.host_budget_bytes) in str(
        refused.value
    )
    again = _plan(SMALL, Budget(smallest.smallest_bytes, smallest.smallest_host_bytes))
    assert again.peak_bytes <= smallest.smallest_bytes
    with pytest.raises(MemoryPlanError):
        _plan(SMALL, Budget(smallest.smallest_bytes - 1))


@pytest.mark.parametrize(
    ("memory", "gpu"),
    [
        pytest.param("130GiB", "h200", id="all fits"),
        pytest.param(Budget(host="4GiB"), "h200", id="all fits, little RAM"),
        pytest.param(Budget("8GiB", "12GiB"), "rtx4080", id="streams"),
    ],
)
def test_a_plan_is_the_one_that_an_engine_follows(memory: Memory, gpu: str) -> None:
    told = plan(SMALL, memory=memory, gpu=gpu, size=(432, 768), num_frames=81)
    card = CARDS[gpu]
    profile = replace(_profile(SMALL), name=told.model)
    workload = replace(
        _workload(SMALL), profile=profile, fused=True, products=card.products, text=T5_11B
    )
    followed = Residence(torch.device("cpu"), memory, card=card).prepare(workload)
    assert followed is not None
    numbers = ("kept_bytes", "peak_bytes", "host_bytes", "pinned_bytes", "seconds", "sources")
    assert {n: getattr(told, n) for n in numbers} == {n: getattr(followed, n) for n in numbers}


def test_where_all_stays_on_the_device_the_host_holds_nothing_until_it_sleeps() -> None:
    kept, streaming = _plan(SMALL, "auto"), _plan(SMALL, "8GiB")
    assert kept.pinned_bytes == 0
    assert "0.00 GiB pinned weights (12.94 GiB more to sleep)" in kept.table()
    assert "more to sleep" not in streaming.table()
    assert kept.smallest_bytes == streaming.smallest_bytes < kept.peak_bytes
    assert _plan(SMALL, "resident").smallest_bytes == kept.peak_bytes


@pytest.mark.parametrize("reserved", [0, 17 * GIB], ids=["alone", "beside a guardrail"])
def test_the_smallest_amount_can_be_asked_for_as_it_is_told(reserved: int) -> None:
    with pytest.raises(MemoryPlanError) as refused:
        _plan(SMALL, "1GiB", reserved=reserved)
    told = re.search(r"\((\d+\.\d\d GiB)\) is the smallest", str(refused.value))
    assert told is not None
    found = _plan(SMALL, told[1], reserved=reserved)
    assert f"smallest possible {told[1]}" in found.table()
    host = "2.5GiB"
    with pytest.raises(MemoryPlanError, match=r"2\.50 GiB"):
        _plan(SMALL, "8GiB", host_memory="1GiB")
    assert _plan(SMALL, "8GiB", host_memory=host).sources["dit"] == "files"


@pytest.mark.parametrize(
    ("amount", "plain", "up"),
    [
        (0, "0.00 GiB", "0.00 GiB"),
        (1000, "0.0 MiB", "0.1 MiB"),
        (47_441_408, "45.2 MiB", "45.3 MiB"),
        (3_741_113_344, "3.48 GiB", "3.49 GiB"),
        (12 * GIB, "12.00 GiB", "12.00 GiB"),
    ],
)
def test_amounts_are_told_in_units_that_fit(amount: int, plain: str, up: str) -> None:
    assert (gib(amount), gib(amount, up=True)) == (plain, up)


def test_planning_is_deterministic() -> None:
    assert _plan(LARGE, "8GiB").as_dict() == _plan(LARGE, "8GiB").as_dict()


def test_stable_slots_hold_the_same_block_in_every_pass() -> None:
    found = _plan(LARGE, "8GiB", stable_slots=True)
    index = found.stages.index(found.stage("denoise"))
    homes: dict[int, set[int]] = {}
    for block, place, _, _ in found.core.timeline(index)[0]:
        homes.setdefault(block, set()).add(place)
    assert all(len(places) == 1 for places in homes.values())


@pytest.mark.parametrize(
    ("text", "amount"),
    [("12GiB", 12 * GIB), ("8 GB", 8 * 10**9), ("512mib", 512 * MIB), ("1.5GiB", 1610612736),
     ("1000", 1000)],
)  # fmt: skip
def test_amounts(text: str, amount: int) -> None:
    assert parse_amount(text) == amount


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"memory": "lots"}, "12GiB", id="amount"),
        pytest.param({"memory": "-1GiB"}, "12GiB", id="negative"),
        pytest.param({"memory": "200GiB"}, "h200 has", id="beyond the card"),
        pytest.param({"memory": Budget(device=5)}, None, id="tiny"),
        pytest.param({"gpu": "gtx970"}, "known cards", id="card"),
        pytest.param({"model": "somebody/else"}, "released model", id="model"),
        pytest.param({"variant": "8k"}, "480p-16fps", id="variant"),
        pytest.param({"gpu": None}, "name of a card", id="no card"),
        pytest.param(
            {"model": f"{SMALL}/model-720p-10fps.pt", "variant": "480p-16fps"},
            "named for 720p-10fps",
            id="variant of another file",
        ),
        pytest.param(
            {"model": "nvidia/Cosmos-Predict2-2B-Sample-Action-Conditioned"},
            "plans are of videos",
            id="world",
        ),
        pytest.param({"num_frames": 80}, "77 or 81", id="frames"),
        pytest.param({"offload": ["dog"]}, "components are", id="component"),
        pytest.param({"offload": "dog"}, r"offload \['dog'\]", id="a component by itself"),
        pytest.param({"memory": "12G"}, '"auto", "resident" or a Budget', id="unit"),
        pytest.param({"memory": True}, "memory = True", id="truth"),
        pytest.param({"memory": 8e9}, "whole number of bytes", id="fraction"),
        pytest.param({"memory": None}, "memory = None", id="nothing"),
        pytest.param({"memory": 0}, "above 0 bytes", id="zero"),
        pytest.param({"memory": Budget(200 * GIB)}, "h200 has", id="budget beyond the card"),
        pytest.param({"host_memory": "auto"}, "host = 'auto'", id="host"),
        pytest.param({"host_memory": 1 << 70}, "below 64 TiB", id="host beyond all"),
        pytest.param({"reserved": "some"}, "reserved = 'some'", id="reserved"),
        pytest.param({"reserved": -1}, "reserved = -1", id="reserved below zero"),
        pytest.param({"reserved": 1 << 60}, f"reserved = {1 << 60}", id="reserved beyond all"),
        pytest.param({"memory": "9" * 400}, "memory = '999", id="more than floats hold"),
        pytest.param({"memory": -1}, "memory = -1", id="less than nothing"),
        pytest.param({"size": (432, 768, 3)}, r"size = \(432, 768, 3\)", id="three sides"),
        pytest.param({"size": (432.5, 768)}, "two whole numbers", id="part of a pixel"),
        pytest.param({"num_frames": 4001}, "128 latent frames, 509 frames", id="frames beyond"),
        pytest.param({"guidance": float("nan")}, "a finite number", id="guidance"),
        pytest.param({"guidance": "7"}, "guidance = '7'", id="guidance as text"),
        pytest.param({"num_frames": 81.0}, "num_frames = 81.0", id="frames as fraction"),
        pytest.param({"num_steps": "35"}, "num_steps = '35'", id="steps as text"),
        pytest.param({"num_conditional_frames": True}, "whole number", id="given as truth"),
        pytest.param({"offload": None}, "offload = None", id="components of nothing"),
        pytest.param({"model": 5}, "model = 5", id="model as number"),
        pytest.param({"variant": 5}, "variant = 5", id="variant as number"),
        pytest.param({"text_dtype": "fp8"}, "bfloat16, float32, none", id="text dtype"),
        pytest.param({"num_steps": 0}, "at least one step", id="steps"),
        pytest.param({"num_frames": 0}, "0 frames cannot be made", id="no frames"),
        pytest.param(
            {"num_frames": 5, "num_conditional_frames": 9}, "a clip of 5 has fewer", id="given"
        ),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str | None) -> None:
    options = {"model": SMALL, "memory": "8GiB", "gpu": "h200"} | arguments
    expected = MemoryPlanError if message is None else InputError
    with pytest.raises(expected, match=message):
        plan(**options)


@pytest.mark.parametrize(
    "arguments",
    [(8e9,), (None, True), (0,), (None, 0), ("-1GiB",), (None, "lots"), (1 << 46,)],
    ids=str,
)
def test_a_budget_is_checked_where_it_is_made(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match=r"^(device|host) = "):
        Budget(*arguments)


def test_a_budget_takes_amounts_as_plans_do() -> None:
    budget = Budget("12GiB", host="32 GB")
    assert budget == Budget(12 * GIB, 32 * 10**9)
    assert replace(budget, host=None) == Budget(device=12 * GIB)
    assert _plan(SMALL, budget).host_budget_bytes == 32 * 10**9


def test_a_file_is_planned_for_what_it_is_named_for() -> None:
    found = plan(f"checkpoints/{LARGE}/model-720p-10fps.pt", memory="14GiB", gpu="h200")
    assert (found.size, found.num_frames) == (Size(704, 1280), 61)
    assert found.model.endswith("/720p-10fps")


@pytest.mark.parametrize("name", ["memory_bytes", "bf16_flops", "bus_bytes_per_second"])
def test_a_card_of_ones_own_has_rates(name: str) -> None:
    with pytest.raises(InputError, match=f"mine: {name} = 0 is not above 0"):
        replace(CARDS["h100"], **dict[str, Any](name="mine", **{name: 0}))


def test_a_component_may_be_given_by_its_name() -> None:
    assert (
        _plan(SMALL, "8GiB", offload="dit").as_dict()
        == _plan(SMALL, "8GiB", offload=["dit"]).as_dict()
    )


def test_resident_weights_that_do_not_fit_are_told_of_streaming() -> None:
    with pytest.raises(MemoryPlanError, match='memory="auto"'):
        plan(LARGE, memory="resident", gpu="rtx3090", size=(432, 768), num_frames=81)
    moving = _plan(SMALL, "resident", offload=["dit"])  # as an engine does: what is told to leave
    assert moving.sources["dit"] == "pinned"


def _spoilt_requests() -> Iterator[tuple[str, Request]]:
    bus = Link(10**9)
    machine = Machine(10**9, 0, 10**9, 0, 0, bus, bus)
    stage = Stage("s", "c", (Block("b", 100, 5),), 1, (Shape("whole", 0),))
    good = Request(machine, (stage,))
    yield "no stage", replace(good, stages=())
    yield "no shape", replace(good, stages=(replace(stage, shapes=()),))
    yield "passes", replace(good, stages=(replace(stage, passes=0),))
    yield "no bytes", replace(good, stages=(replace(stage, blocks=(Block("b", 0, 5),)),))
    yield "twice", replace(good, stages=(replace(stage, blocks=stage.blocks * 2),))
    yield "two stages", replace(good, stages=(stage, stage))
    yield (
        "two sizes",
        replace(good, stages=(stage, replace(stage, name="t", blocks=(Block("b", 7, 5),)))),
    )
    yield "0 bytes a second", replace(good, machine=replace(machine, bus=Link(0)))
    yield "max_slots", replace(good, max_slots=9)
    yield (
        "years",
        replace(good, stages=(replace(stage, blocks=(Block("b", 100, 2**45),), passes=9999),)),
    )
    yield "residency", replace(good, stages=(replace(stage, residency="gone"),))  # type: ignore[arg-type]
    yield (
        "both stay",
        replace(
            good,
            stages=(replace(stage, residency="keep"), replace(stage, name="t", residency="drop")),
        ),
    )


@pytest.mark.parametrize(
    ("message", "request_"), [pytest.param(*case, id=case[0]) for case in _spoilt_requests()]
)
def test_the_core_refuses_what_makes_no_sense(message: str, request_: Request) -> None:
    with pytest.raises(InputError, match=message):
        _core.plan_memory(request_)


def _plan(model: str, memory: str | Budget, **options: object) -> Plan:
    return plan(
        model,
        memory=memory,
        gpu="h200",
        size=(432, 768),
        num_frames=81,
        **options,  # type: ignore[arg-type]
    )


def _workload(model: str) -> Workload:
    return Workload(
        profile=_profile(model),
        size=Size(432, 768),
        num_frames=81,
        num_conditional_frames=1,
        num_steps=35,
        guided=True,
    )


def _profile(model: str) -> Profile:
    size = "14B" if "14B" in model else "2B"
    return Profile(model, Size(432, 768), 93, 16.0, ARCHITECTURES[size])


# Seconds on an H200 at its power limit, with our kernels: model, size, frames, a forward with
# FlashAttention 3 and with our own attention, decoding.
MEASURED = [
    pytest.param(SMALL, Size(432, 768), 81, (0.4088, 0.4212), 0.701, id="2B 480p 81"),
    pytest.param(SMALL, Size(432, 768), 93, (0.5127, 0.5324), None, id="2B 480p 93"),
    pytest.param(SMALL, Size(704, 1280), 93, (2.798, 3.050), 2.266, id="2B 720p 93"),
    pytest.param(LARGE, Size(432, 768), 81, (1.898, 1.953), None, id="14B 480p 81"),
]


@pytest.mark.parametrize(("model", "size", "frames", "forwards", "decode"), MEASURED)
def test_predictions_are_within_a_tenth_of_what_an_h200_took(
    model: str, size: Size, frames: int, forwards: tuple[float, float], decode: float | None
) -> None:
    workload = replace(_workload(model), size=size, num_frames=frames, fused=True)
    found = solve(workload, CARDS["h200"], Budget(), resident=True)
    for seconds in forwards:
        assert found.stage("denoise").pass_seconds == pytest.approx(seconds, rel=0.1)
    if decode is not None:
        assert found.stage("decode").seconds == pytest.approx(decode, rel=0.1)


@pytest.mark.parametrize("memory", [None, "6GiB"])
def test_texts_go_through_their_encoder_together(memory: str | None) -> None:
    """Twice the operations beside what any text takes, and no weight twice; streamed, the bus
    decides."""
    budget = Budget() if memory is None else Budget(parse_amount(memory))
    one, two = (
        solve(replace(_workload(SMALL), guided=guided), CARDS["h200"], budget).stage("text")
        for guided in (False, True)
    )
    assert one.passes == two.passes == 1
    around = _TEXT_SECONDS + _TEXT_OPENING_SECONDS
    if memory is None:
        assert two.seconds - around == pytest.approx(2 * (one.seconds - around), rel=1e-6)
    else:
        assert two.seconds - around == pytest.approx(
            4.865e9 * 2 / CARDS["h200"].bus_bytes_per_second, rel=0.05
        )
        assert two.seconds < 1.02 * one.seconds


def test_one_size_is_counted_once_however_long_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes a good part of a second, in which a device has nothing to do."""
    counted = []

    def counting(compute: Any) -> Any:
        counted.append(compute)
        return footprint.trace(compute)

    monkeypatch.setattr(requests_of_stages, "trace", counting)
    requests_of_stages._counted.cache_clear()  # prompts are counted once for all sizes
    sizes: dict[str, Any] = {"gpu": "h200", "size": (208, 304), "num_frames": 13}
    resident = plan(LARGE, memory="resident", num_steps=1, **sizes)
    assert len(counted) == 4, "each stage as it is, and none of the ways to make it smaller"
    longer = plan(LARGE, memory="resident", num_steps=35, **sizes)
    assert len(counted) == 4
    assert longer.peak_bytes == resident.peak_bytes
