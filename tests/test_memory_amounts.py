"""What is asked of a memory plan: amounts as people write them, and mistakes that are named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cosmos_fast import _core
from cosmos_fast.errors import InputError, MemoryPlanError
from cosmos_fast.memory import CARDS, Budget, plan
from cosmos_fast.memory.budget import gib, parse_amount
from cosmos_fast.memory.request import GIB, MIB, Block, Link, Machine, Request, Shape, Stage
from cosmos_fast.types import Size
from test_memory_plan import LARGE, SMALL, plan_at_480p


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
    assert plan_at_480p(SMALL, budget).host_budget_bytes == 32 * 10**9


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
        plan_at_480p(SMALL, "8GiB", offload="dit").as_dict()
        == plan_at_480p(SMALL, "8GiB", offload=["dit"]).as_dict()
    )


def test_resident_weights_that_do_not_fit_are_told_of_streaming() -> None:
    with pytest.raises(MemoryPlanError, match='memory="auto"'):
        plan(LARGE, memory="resident", gpu="rtx3090", size=(432, 768), num_frames=81)
    moving = plan_at_480p(SMALL, "resident", offload=["dit"])  # as an engine: it has to leave
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
