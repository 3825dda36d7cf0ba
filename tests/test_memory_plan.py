"""The memory plan: what the networks need, what fits where, and what is said of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import torch

from cosmos_fast.config import Profile
from cosmos_fast.errors import MemoryPlanError
from cosmos_fast.memory import CARDS, Budget, Plan, footprint, plan
from cosmos_fast.memory import activations as requests_of_stages
from cosmos_fast.memory.budget import Memory, parse_amount
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
from cosmos_fast.memory.request import GIB, MIB
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
    plans = [plan_at_480p(SMALL, f"{gib}GiB") for gib in (4, 6, 8, 12, 24)]
    seconds = [one.seconds for one in plans]
    assert seconds == sorted(seconds, reverse=True)
    resident = plan_at_480p(SMALL, "resident")
    assert resident.seconds <= seconds[-1]
    assert set(resident.sources.values()) == {"device"}
    assert resident.exact
    assert resident.copied_bytes == 0


def test_offloading_is_a_demand_on_the_plan() -> None:
    kept = plan_at_480p(SMALL, "auto")
    dropped = plan_at_480p(SMALL, "auto", offload=["text encoder", "dit"])
    assert kept.sources["text encoder"] == "device"
    assert dropped.sources["text encoder"] == dropped.sources["dit"] == "pinned"
    assert dropped.sources["vae decoder"] == "device"
    assert dropped.kept_bytes < kept.kept_bytes


def test_little_host_memory_streams_from_the_files() -> None:
    rich = plan_at_480p(SMALL, "8GiB")
    poor = plan_at_480p(SMALL, "8GiB", host_memory="8GiB")
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
        plan_at_480p(SMALL, budget)
    smallest = refused.value.plan
    assert str(smallest.budget_bytes if budget.device else smallest.host_budget_bytes) in str(
        refused.value
    )
    again = plan_at_480p(SMALL, Budget(smallest.smallest_bytes, smallest.smallest_host_bytes))
    assert again.peak_bytes <= smallest.smallest_bytes
    with pytest.raises(MemoryPlanError):
        plan_at_480p(SMALL, Budget(smallest.smallest_bytes - 1))


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
    kept, streaming = plan_at_480p(SMALL, "auto"), plan_at_480p(SMALL, "8GiB")
    assert kept.pinned_bytes == 0
    assert "0.00 GiB pinned weights (12.94 GiB more to sleep)" in kept.table()
    assert "more to sleep" not in streaming.table()
    assert kept.smallest_bytes == streaming.smallest_bytes < kept.peak_bytes
    assert plan_at_480p(SMALL, "resident").smallest_bytes == kept.peak_bytes


@pytest.mark.parametrize("reserved", [0, 17 * GIB], ids=["alone", "beside a guardrail"])
def test_the_smallest_amount_can_be_asked_for_as_it_is_told(reserved: int) -> None:
    with pytest.raises(MemoryPlanError) as refused:
        plan_at_480p(SMALL, "1GiB", reserved=reserved)
    told = re.search(r"\((\d+\.\d\d GiB)\) is the smallest", str(refused.value))
    assert told is not None
    found = plan_at_480p(SMALL, told[1], reserved=reserved)
    assert f"smallest possible {told[1]}" in found.table()
    host = "2.5GiB"
    with pytest.raises(MemoryPlanError, match=r"2\.50 GiB"):
        plan_at_480p(SMALL, "8GiB", host_memory="1GiB")
    assert plan_at_480p(SMALL, "8GiB", host_memory=host).sources["dit"] == "files"


def test_planning_is_deterministic() -> None:
    assert plan_at_480p(LARGE, "8GiB").as_dict() == plan_at_480p(LARGE, "8GiB").as_dict()


def test_stable_slots_hold_the_same_block_in_every_pass() -> None:
    found = plan_at_480p(LARGE, "8GiB", stable_slots=True)
    index = found.stages.index(found.stage("denoise"))
    homes: dict[int, set[int]] = {}
    for block, place, _, _ in found.core.timeline(index)[0]:
        homes.setdefault(block, set()).add(place)
    assert all(len(places) == 1 for places in homes.values())


def plan_at_480p(model: str, memory: str | Budget, **options: object) -> Plan:
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
