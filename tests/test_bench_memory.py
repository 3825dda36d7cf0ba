"""What the memory bench says of its rows: beside resident ones and plans, and in which order."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cosmos_fast as cf
from cosmos_fast.config import DiTConfig
from random_world import RANDOM_PROFILE, make_random_world

ROOT = Path(__file__).resolve().parent.parent
GIB = 1 << 30
DIT = DiTConfig(
    num_layers=8, num_heads=4, head_dim=64, adaln_rank=32, text_dim=64, rope_scale=(1, 1, 1)
)
"""Eight blocks of 4 MiB."""


@pytest.fixture(autouse=True)
def _benches_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benches"))


def row(name: str, **more: Any) -> dict[str, Any]:
    stages = {"decode": {"predicted_seconds": 0.7, "measured_seconds": 0.72}}
    plain = {
        "row": name,
        "kind": "run",
        "model": "2b",
        "shape": "480p",
        "asked": "6GiB",
        "steps": 1,
        "forward_s": 0.41,
        "predicted_forward_s": 0.4,
        "stages_s": {"denoise": 1.64, "decode": 0.72},
        "latents_sha256": "a",
        "peak_bytes": 6 * GIB,
        "timed_peak_bytes": int(5.9 * GIB),
        "context_bytes": 0,
        "memory": {
            "budget_bytes": 6 * GIB,
            "predicted_peak_bytes": int(5.8 * GIB),
            "stages": stages,
        },
    }
    return plain | more


@pytest.mark.parametrize(
    ("more", "outside"),
    [
        pytest.param({}, [], id="within"),
        pytest.param({"peak_bytes": int(6.3 * GIB)}, ["peak_gib"], id="peak"),
        pytest.param({"forward_s": 0.46}, ["forward_s"], id="forward"),
        pytest.param({"predicted_forward_s": 0.46}, ["forward_s"], id="too slow a prediction"),
    ],
)
def test_predictions_are_held_to_their_bounds(more: dict[str, Any], outside: list[str]) -> None:
    from memory_table import document, predictions, table

    point = predictions(row("2b_480p_6GiB", **more))
    assert point is not None
    assert point["outside"] == outside
    kept = document([row("2b_480p_6GiB", **more), {"row": "flat", "error": "gone"}], {})
    assert kept["points_within_bounds"] == (not outside)
    assert f"{int(not outside)} of 1 points" in table(kept["rows"])


@pytest.mark.parametrize(
    ("once", "each", "outside"),
    [
        pytest.param(0.2, [0.1, 0.101, 0.099, 0.3, 0.1], [], id="a clip that was disturbed"),
        pytest.param(0.1, [0.2, 0.2, 0.1, 0.2, 0.2], ["text_s"], id="a clip that was lucky"),
    ],
)
def test_short_stages_count_by_their_median_alone(
    once: float, each: list[float], outside: list[str]
) -> None:
    from memory_stages import spread
    from memory_table import compare, document, line, predictions, table

    found = row("2b_480p_6GiB", stages_s={"text": once, "denoise": 1.64, "decode": 0.72})
    found["memory"]["stages"]["text"] = {"predicted_seconds": 0.1, "measured_seconds": once}
    before = predictions(found)
    assert before is not None
    assert before["text_s"][1] == once
    found["short_stages"] = {"text": spread(each), "noise": spread([1e-5] * 5)}
    point = predictions(found)
    assert point is not None
    assert point["text_s"][1] == sorted(each)[2]
    assert point["outside"] == outside
    assert point["medians"].keys() == {"text_s"}
    assert point["medians"]["text_s"]["of"] == 5
    assert point["medians"]["text_s"]["spread"] == pytest.approx(
        (max(each) - min(each)) / sorted(each)[2]
    )
    kept = document([found], {})["rows"][0]["short_stages"]["text"]
    assert kept["each_s"] == each
    for said in (table([found]), line(found)):
        assert "median of 5, spread" in said
    resident = row("2b_480p_resident", asked="resident")
    compare([found, resident])
    assert found["whole_s"] == pytest.approx(72 * 0.41 + 0.72 + sorted(each)[2] + 1e-5)


def test_short_stages_and_decoding_are_repeated_without_a_forward(tmp_path: Path) -> None:
    """Of a plan that streams: nothing stays of the clips that end where their forward begins."""
    from memory_rows import Row
    from memory_stages import LEAST, LEAST_DECODES, REPEATS, decodes, generate, short_stages
    from memory_watch import Account, Watch

    checkpoint = make_random_world(tmp_path / "world", replace(RANDOM_PROFILE, dit=DIT))
    engine = cf.Video2World.from_pretrained(
        checkpoint, device="cpu", memory="24MiB", prompt_cache=False
    )
    row, watch = Row("tiny_24MiB", "run", "tiny", "tiny", "24MiB"), Watch(Account())
    before = generate(engine, row, watch)
    moving = engine._parts.residence.executor
    assert moving is not None
    assert before.report.memory is not None
    assert before.report.memory["stages"]["denoise"]["streamed"]
    forwards: list[None] = []
    engine._parts.dit.blocks[0].register_forward_hook(lambda *_: forwards.append(None))
    found = short_stages(engine, row, watch)
    assert forwards == []
    assert found.keys() == {"read", "text", "encode", "noise"}
    for name, one in found.items():
        assert LEAST <= one["repeats"] <= REPEATS
        assert len(one["each_s"]) == one["repeats"]
        assert one["median_s"] > 0, name
    found["decode"] = decodes(engine, row, watch, before.latents.tensor)
    assert forwards == []
    assert LEAST_DECODES <= found["decode"]["repeats"] <= REPEATS
    assert moving._running is None
    assert generate(engine, row, watch).report.latents_sha256 == before.report.latents_sha256
    assert forwards


@pytest.mark.parametrize(
    ("free", "looks"),
    [
        pytest.param([9, 9, 9, 0], 3, id="at rest"),
        pytest.param([9, 7, 5, 3, 3, 3, 0], 6, id="being filled"),
        pytest.param([None, None, None], 3, id="not told"),
    ],
)
def test_a_host_whose_memory_is_being_filled_is_waited_for(
    free: list[int | None], looks: int
) -> None:
    from bench_memory import settled

    left = [one and one * GIB for one in free]
    settled(lambda: left.pop(0), pause=0.0)
    assert len(left) == len(free) - looks
    start = time.perf_counter()
    moving = iter(range(0, 1 << 60, GIB))
    assert settled(lambda: next(moving), pause=0.01, most=0.1) >= 0.1
    assert time.perf_counter() - start < 30


def test_rows_stand_beside_the_resident_one_of_their_shape() -> None:
    from memory_table import compare, line

    rows = [
        row("2b_480p_6GiB", forward_s=0.42, latents_sha256="b"),
        row("2b_480p_resident", asked="resident", forward_s=0.4),
        row("2b_720p_resident", asked="resident", forward_s=2.8, shape="720p"),
        {"row": "2b_480p_diffusers", "kind": "diffusers", "model": "2b", "shape": "480p"}
        | {"asked": "resident", "forward_s": 0.8},
        {"row": "sleep_2b", "kind": "sleep", "error": "gone"},
    ]
    compare(rows)
    assert rows[0]["slowdown"] == pytest.approx(0.05)
    # 72 forwards and the stages around them.
    assert rows[0]["whole_s"] == pytest.approx(72 * 0.42 + 0.72)
    assert rows[0]["same_latents"] is False
    assert rows[1]["same_latents"] is True
    assert rows[3]["slowdown"] == pytest.approx(1.0)
    assert "slowdown" not in rows[4]
    assert "100.0% of the budget" in line(rows[0])


def test_a_process_is_not_taken_for_others_from_its_second_row_on() -> None:
    from memory_watch import Account, Watch

    others, context, kept = 300, 700, 100
    account = Account()
    account.begin(others)
    first = Watch(account)
    first.count(others + context + 5000, 5000, 4000)
    account.begin(others + context + kept)  # what the card holds between the rows
    second = Watch(account)
    second.count(others + context + 2000, 2000, 1500)
    for watch, reserved in ((first, 5000), (second, 2000)):
        found = watch.as_dict()
        assert found["peak_bytes"] == found["timed_peak_bytes"] == context + reserved
        assert found["context_bytes"] == context


def test_rows_of_a_process_follow_one_another() -> None:
    from bench_memory import rows

    for tiny in (False, True):
        names = [one.process for one in rows(tiny)]
        runs = [name for name, before in zip(names, [None, *names], strict=False) if name != before]
        assert len(runs) == len(set(runs)), "each process is begun once"


@pytest.mark.parametrize(("times", "lengths"), [(1.0, [10]), (2.2, [10, 10, 2]), (0.5, [5])])
def test_slow_copies_are_made_again(times: float, lengths: list[int]) -> None:
    from memory_rows import SlowCopies, repeats

    from cosmos_fast.memory.engines import HostEngines

    source, target = torch.arange(10, dtype=torch.uint8), torch.zeros(10, dtype=torch.uint8)
    assert [len(part) for part in repeats(source, times)] == lengths
    SlowCopies(HostEngines(), max(times, 1)).copy(target, source)
    assert torch.equal(target, source)
