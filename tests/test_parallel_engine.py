"""Several real processes over gloo make what one process makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch

import cosmos_fast as cf
from cosmos_fast.config import DiTConfig, VAEConfig
from cosmos_fast.parallel import serve_store
from cosmos_fast.types import Size
from random_world import RANDOM_PROFILE, make_random_world
from rank_process import OneCard, error_of, make

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HEADS: Final = 4
DEADLINE: Final = 10.0
"""Seconds from the end of one rank to the error in the others, promised to users."""
PROFILE: Final = replace(
    RANDOM_PROFILE,
    size=Size(32, 48),
    num_frames=9,
    dit=DiTConfig(
        num_layers=2, num_heads=HEADS, head_dim=16, adaln_rank=8, text_dim=64, rope_scale=(1, 1, 1)
    ),
    vae=VAEConfig(base_dim=4),
)

CASES: Final[tuple[dict[str, Any], ...]] = (
    {"name": "5 given frames", "given": 5},
    {
        "name": "21 latent frames",
        "num_frames": 81,
        "parallel": {"guidance": "together"},
    },
    {"name": "no guidance", "guidance": 0.0, "num_frames": 5},
    {
        "name": "by messages",
        "num_frames": 5,
        "parallel": {"guidance": "together", "windows": False},
    },
    {"name": "ring", "num_frames": 5, "parallel": {"guidance": "together", "context": "ring"}},
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_world(tmp_path_factory.mktemp("world"), PROFILE)


@pytest.fixture(scope="module")
def alone(world: Path) -> Mapping[str, cf.Clip]:
    """What one process makes of each case."""
    engine = cf.Video2World.from_pretrained(world, device="cpu", prompt_cache=False)
    return {case["name"]: make(engine, case) for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_make_what_one_process_makes(
    size: int, world: Path, alone: Mapping[str, cf.Clip], tmp_path: Path
) -> None:
    results = run(size, {"world": str(world), "out": str(tmp_path), "cases": CASES})
    for rank, made in enumerate(results):
        for name, clip in alone.items():
            expected, found = clip.latents.tensor, made[name]["latents"]
            error = (found - expected).abs().max() / expected.abs().max()
            assert error <= 1e-5, f"{name}, rank {rank}: {error:.2g}"
            # A value at the edge between two pixel values may fall to either side.
            apart = (made[name]["frames"].int() - clip.frames.to("pt").int()).abs()
            assert apart.max() <= 1, name
            assert (apart > 0).float().mean() < 1e-3, name
            assert torch.equal(found, results[0][name]["latents"]), name
            assert torch.equal(made[name]["frames"], results[0][name]["frames"]), name
    parallel = {name: json.loads(made["report"])["parallel"] for name, made in results[0].items()}
    ways = {name: (each["guidance_branches"], each["context"]) for name, each in parallel.items()}
    split = (1, 3) if size == 3 else (2, size // 2)
    assert ways["5 given frames"] == split
    assert ways["21 latent frames"] == ways["ring"] == ways["no guidance"] == (1, size)
    assert parallel["ring"]["attention"] == "ring"
    assert parallel["no guidance"]["attention"] == ("ring" if size == 3 else "heads")
    by_windows = {name for name, each in parallel.items() if each["exchange"] == "windows"}
    shared = {"21 latent frames", "no guidance"} | ({"5 given frames"} if size == 4 else set())
    assert by_windows == (set() if size == 3 else shared)
    assert all(0 < each["communication_share"] < 1 for each in parallel.values())
    assert {each["backend"] for each in parallel.values()} == {"gloo"}
    assert parallel["no guidance"]["sent_bytes"] > 0


MOVING_PROFILE: Final = replace(PROFILE, dit=replace(PROFILE.dit, num_layers=8, head_dim=32))
MOVING: Final[tuple[dict[str, Any], ...]] = (
    {"name": "a branch each", "memory": "10MiB"},
    {"name": "too large", "memory": "10MiB", "num_frames": 81},
    {"name": "the same again", "memory": "10MiB"},
    {
        "name": "tokens, cut",
        "memory": "13MiB",
        "num_frames": 33,
        "size": (96, 128),
        "parallel": {"guidance": "together"},
    },
    {"name": "frame by frame", "memory": "16MiB", "num_frames": 17, "size": (128, 160)},
    {"name": "offloaded", "offload": ["dit", "vae decoder"]},
)
"""Within budgets that do not hold all weights, or with parts that have to leave."""


@pytest.fixture(scope="module")
def moving_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_world(tmp_path_factory.mktemp("moving"), MOVING_PROFILE)


@pytest.fixture(scope="module")
def moved_alone(moving_world: Path) -> Callable[[str], cf.Clip]:
    """What one process makes of a case, by its name."""
    engine = cf.Video2World.from_pretrained(moving_world, device="cpu", prompt_cache=False)
    cases = {case["name"]: case for case in MOVING}
    return cache(lambda name: make(engine, cases[name]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_follow_one_plan_and_make_what_one_process_makes(
    size: int, moving_world: Path, moved_alone: Callable[[str], cf.Clip], tmp_path: Path
) -> None:
    # Three ranks are there for tokens that do not divide; the rest is as for two.
    cases = [case for case in MOVING if size == 2 or "memory" in case][: 6 if size == 2 else 4]
    results = run(size, {"world": str(moving_world), "out": str(tmp_path), "cases": cases})
    for rank, made in enumerate(results):
        refused = made.pop("too large")
        assert refused["error"] == "MemoryPlanError", f"rank {rank}: {refused}"
        assert "smallest budget" in refused["message"]
        assert made.keys() == {case["name"] for case in cases} - {"too large"}
        for case in cases:
            if case["name"] not in made:
                continue
            found, alone = made[case["name"]], moved_alone(case["name"])
            assert error_of(found["latents"], alone.latents.tensor) <= 1e-5, case
            for key in ("latents", "frames"):
                assert torch.equal(found[key], results[0][case["name"]][key]), case
            assert found["plan"] == results[0][case["name"]]["plan"], case
    plans = {name: found["plan"]["stages"] for name, found in results[0].items()}
    assert all(stages["denoise"]["streamed"] for name, stages in plans.items() if "off" not in name)
    assert "token chunks" in plans["tokens, cut"]["denoise"]["shape"]
    # Three evaluations of two branches: by one rank each where there are two.
    assert plans["a branch each"]["denoise"]["passes"] == (3 if size == 2 else 6)
    if size == 2:
        assert plans["frame by frame"]["decode"]["shape"] == "frame by frame"
        assert plans["offloaded"]["denoise"]["passes"] == 3


def test_a_plan_that_one_rank_cannot_follow_ends_the_work_of_all(
    moving_world: Path, tmp_path: Path
) -> None:
    case = {"name": "refused", "memory": "10MiB", "refuses": True, "rank": 1}
    other, own = run(2, {"world": str(moving_world), "out": str(tmp_path), "cases": [case]})
    assert own["refused"]["error"] == "MemoryPlanError"
    assert other["refused"]["error"] == "RankLost"
    assert "made up by the test" in other["refused"]["message"]
    assert other["refused"]["at"] - own["refused"]["at"] < 10


@pytest.mark.slow
def test_the_report_names_the_backend_of_a_lent_group(world: Path, tmp_path: Path) -> None:
    job = {"world": str(world), "out": str(tmp_path), "cases": [{"name": "lent"}]}
    for made in run(2, job | {"one_card": True}):
        told = json.loads(made["lent"]["report"])["parallel"]
        assert told["backend"] == OneCard.name()


@pytest.mark.slow
@pytest.mark.parametrize("fuses", [[0, 1], [1]], ids=["both", "one"])
def test_ranks_fuse_the_decoder_where_all_of_them_can(
    fuses: list[int], world: Path, alone: Mapping[str, cf.Clip], tmp_path: Path
) -> None:
    case = next(case for case in CASES if case["name"] == "no guidance")
    job = {"world": str(world), "out": str(tmp_path), "cases": [case], "fuses": fuses}
    together = len(fuses) == 2
    for made in run(2, job):
        found = made[case["name"]]
        assert (found["passes"] > 0) == together
        apart = (found["frames"].int() - alone[case["name"]].frames.to("pt").int()).abs()
        assert apart.max() <= 1
        assert (apart > 0).float().mean() < 1e-3
        backends = json.loads(found["report"])["backends"]
        assert backends["rms_silu"] == backends["upsample"] == ("counted" if together else "torch")


FAULTS: Final[tuple[dict[str, Any], ...]] = (
    {"name": "no such picture", "given": 0},
    {"name": "other arguments", "rank": 2, "guidance_here": 3.0},
    {"name": "cancelled by one", "rank": 1, "cancel": True},
    {"name": "a written prompt", "prompt": "a ball"},
    {"name": "killed", "rank": 1, "fault": "killed"},
    {"name": "after it"},
)


@pytest.mark.slow
def test_ranks_survive_what_all_know_of_and_end_when_one_is_killed(
    world: Path, tmp_path: Path
) -> None:
    job = {"world": str(world), "out": str(tmp_path), "cases": FAULTS}
    results = run(3, job, ends=[0, -signal.SIGKILL, 0])
    errors = {name: [made[name].get("error") for made in results] for name in results[0]}
    assert errors["no such picture"] == ["MediaError", "RankLost"]
    assert "nowhere.png" in results[1]["no such picture"]["message"]
    assert errors["other arguments"] == ["InputError"] * 2
    assert "ranks [2]" in results[0]["other arguments"]["message"]
    assert errors["cancelled by one"] == ["Cancelled"] * 2
    first, last = (made["a written prompt"] for made in results)
    assert torch.equal(first["latents"], last["latents"])
    assert (first["text encoder"], last["text encoder"]) == (True, False)
    assert errors["killed"] == errors["after it"] == ["RankLost"] * 2
    for made in results:
        assert made["killed"]["message"] == "rank 1 died"
        assert made["killed"]["at"] - float((tmp_path / "1.fault").read_text()) < DEADLINE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error"), [("raises", "ZeroDivisionError"), ("cancels", "Cancelled")]
)
@pytest.mark.parametrize("guidance", ["split", "together"])
def test_a_rank_that_raises_takes_the_others_with_it(
    fault: str, error: str, guidance: str, world: Path, tmp_path: Path
) -> None:
    """Also while it lends them memory, or with the error of those who were cancelled together."""
    sharing = {"parallel": {"guidance": guidance}}
    case = {"name": "raises", "rank": 1, "fault": fault, **sharing}
    job = {"world": str(world), "out": str(tmp_path)}
    first, second = run(2, job | {"cases": [case, {"name": "after it", **sharing}]})
    assert second["raises"]["error"] == error
    assert first["raises"]["error"] == "RankLost"
    assert first["raises"]["message"] == f"rank 1 failed: {error}: made up by the test"
    assert first["raises"]["at"] - float((tmp_path / "1.fault").read_text()) < DEADLINE
    assert first["after it"]["error"] == second["after it"]["error"] == "RankLost"


@pytest.mark.slow
def test_a_rank_killed_while_it_lends_memory_is_named(world: Path, tmp_path: Path) -> None:
    case = {"name": "killed", "rank": 1, "fault": "killed", "parallel": {"guidance": "together"}}
    job = {"world": str(world), "out": str(tmp_path), "cases": [case]}
    (left,) = run(2, job, ends=[0, -signal.SIGKILL])
    assert left["killed"]["error"] == "RankLost"
    assert left["killed"]["message"] == "rank 1 died"
    assert left["killed"]["at"] - float((tmp_path / "1.fault").read_text()) < DEADLINE


@pytest.mark.slow
def test_what_the_first_rank_s_guardrail_says_holds_for_all(world: Path, tmp_path: Path) -> None:
    texts = {"prompt": "a ball", "negative": "blurred"}
    cases = [
        {"name": "bad prompt", **texts, "prompt": "a bad ball"},
        {"name": "bad negative", **texts, "negative": "bad"},
        {"name": "good", **texts},
    ]
    job = {"world": str(world), "out": str(tmp_path), "cases": cases}
    first, second = run(2, job | {"guarded": True})
    for name in ("bad prompt", "bad negative"):
        assert [made[name]["error"] for made in (first, second)] == ["GuardrailBlocked"] * 2
        assert "a bad word" in second[name]["message"]
    plain, _ = run(2, job)
    for made in (first, second):
        assert torch.equal(made["good"]["frames"], 255 - plain["good"]["frames"])
        assert json.loads(made["good"]["report"])["guardrail"]["verdict"] == "safe"


def run(
    size: int,
    job: dict[str, Any],
    ends: list[int] | None = None,
    patience: float = 300,
    program: str = "rank_process.py",
) -> list[dict[str, Any]]:
    """What each rank that ended well made of the job.

    Args:
        ends: the exit code of each rank; None: all well.
        patience: seconds that a rank may take.
        program: of one rank or several, beside this file.
    """
    ends = ends or [0] * size
    store = serve_store(size)
    command = [sys.executable, str(Path(__file__).with_name(program)), str(store.port)]
    # Forks of one process, which imports torch once; what may have touched a GPU does not fork.
    together = "device" not in job
    ranks = list(map(str, range(size)))
    started = [
        subprocess.Popen([*command, each, str(size), json.dumps(job)], start_new_session=True)
        for each in ([",".join(ranks)] if together else ranks)
    ]
    try:
        found = [process.wait(patience) for process in started]
        if together:
            assert found == [0]
            found = json.loads(Path(job["out"], "ends.json").read_text("ascii"))
        assert found == ends
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return [
        torch.load(Path(job["out"], f"{rank}.pt"), weights_only=True)
        for rank, end in enumerate(ends)
        if end == 0
    ]
