"""What the soak of worlds says of a process's memory."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from tools.soak import Sample
from tools.soak_world import spread, verdict


def samples(megabytes: list[float]) -> list[Sample]:
    return [Sample(each, descriptors=9, threads=2, children=0) for each in megabytes]


@pytest.mark.parametrize(
    ("count", "told"),
    [
        pytest.param(1, [0], id="one"),
        pytest.param(3, [0, 1, 2], id="fewer than are told"),
        pytest.param(20, list(range(20)), id="as many"),
        pytest.param(39, list(range(0, 39, 2)), id="every other"),
    ],
)
def test_spread_takes_the_first_the_last_and_evenly_between(count: int, told: list[int]) -> None:
    assert spread(count) == told


def test_spread_of_many_is_even() -> None:
    told = spread(1000)
    assert (len(told), told[0], told[-1]) == (20, 0, 999)
    assert {after - before for before, after in pairwise(told)} <= {52, 53}


def test_the_shape_of_a_leak_can_be_seen_in_the_verdict() -> None:
    """A jump in the warm-up is none; the same growth in stairs is."""
    early = [100.0] * 20 + [160.004] * 180
    stairs = [100.0 + 10 * (at // 25) for at in range(200)]
    flat, grown = (verdict(samples(each), [(0, 0)] * 200, 1000) for each in (early, stairs))
    assert flat["ok"]
    assert not grown["ok"]
    assert flat["megabytes"] == [100.0] * 2 + [160.0] * 18
    told = json.loads(json.dumps(grown))["megabytes"]
    assert told == sorted(told)
    assert (len(told), told[0], told[-1]) == (20, 100.0, 170.0)
    assert set(told) == set(stairs)


def test_what_stays_behind_fails_the_soak() -> None:
    memory = [100.0] * 50
    held = samples(memory)
    assert verdict(held, [(0, 0)] * 50, 250)["ok"]
    held[-1] = held[-1]._replace(threads=3)
    assert not verdict(held, [(0, 0)] * 50, 250)["ok"]
    on_device = [(0, 0)] * 49 + [(2_000_000, 0)]
    assert not verdict(samples(memory), on_device, 250)["ok"]
