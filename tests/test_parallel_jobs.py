"""Long videos and the best of several, by several ranks: real processes over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from PIL import Image

import cosmos_fast as cf
from cosmos_fast.cli import main
from cosmos_fast.parallel import serve_store
from random_world import make_random_world
from rank_jobs_process import CHUNKS, GIVEN, OPTIONS, WIDTH, prompt_of
from rank_process import picture, text
from test_cli_interrupt import names, start, wait_for
from test_parallel_engine import PROFILE
from test_parallel_launch import DEADLINE, children, eventually_alone, line_of

PROGRAM: Final = Path(__file__).with_name("rank_jobs_process.py")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_random_world(folder / "world", PROFILE)
    Image.fromarray(picture(1)[0].numpy()).save(folder / "start.png")
    torn = bytearray((folder / "start.png").read_bytes())
    torn[100:200] = bytes(100)  # in the middle, which is read by rank 0 alone
    (folder / "torn.png").write_bytes(torn)
    (folder / "critics.py").write_text(CRITIC)
    return folder


@pytest.fixture(scope="module")
def made(inputs: Path) -> list[dict[str, Any]]:
    """What two ranks made of all pieces of work."""
    store = serve_store(2)
    program = [sys.executable, str(PROGRAM), str(store.port)]
    ranks = [subprocess.Popen([*program, str(rank), "2", str(inputs)]) for rank in range(2)]
    try:
        assert [rank.wait(300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(inputs / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_each_clip_of_two_ranks_is_that_of_one(inputs: Path, made: list[dict[str, Any]]) -> None:
    """From the same frames: one pixel at the edge of two values would make another video."""
    first, second = (each["memory"] for each in made)
    engine = cf.Video2World.from_pretrained(inputs / "world", device="cpu", prompt_cache=False)
    expected, sources = [], [picture(GIVEN), *first["tails"]]
    for chunk, tail in enumerate(sources):
        clip = engine.generate(tail, prompt_of(chunk), text(WIDTH, 9), seed=chunk, **OPTIONS)
        alone, shared = clip.latents.tensor, first["latents"][chunk]
        assert (shared - alone).abs().max() <= 1e-5 * alone.abs().max(), chunk
        expected.append(clip.frames.to("pt")[GIVEN if chunk else 0 :])
    frames = first["frames"]
    apart = (frames.int() - torch.cat(expected).int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-3
    assert len(frames) == 9 + (9 - GIVEN)
    assert torch.equal(first["tails"][0], frames[9 - GIVEN : 9])
    assert len(sources) == CHUNKS
    assert torch.equal(frames, second["frames"])
    assert first["ranks"] == 2


@pytest.mark.slow
def test_the_first_rank_alone_asks_for_prompts_and_uses_files(made: list[dict[str, Any]]) -> None:
    for way in ("memory", "file"):
        first, second = (each[way] for each in made)
        assert torch.equal(first["frames"], second["frames"])
        assert first["drift"] == second["drift"]
        assert [row["seam_psnr"] is None for row in first["drift"]] == [True, False]
        assert (first["asked"], second["asked"]) == ([0, 1], [])
    kept, lossy = (made[0][way]["frames"] for way in ("memory", "file"))
    assert torch.equal(kept[:9], lossy[:9])
    assert not torch.equal(kept[9:], lossy[9:])


@pytest.mark.slow
def test_all_ranks_go_on_behind_what_the_first_has_kept(made: list[dict[str, Any]]) -> None:
    for way, again in (("memory", "resumed"), ("file", "resumed file")):
        for rank, each in enumerate(made):
            whole, resumed = each[way], each[again]
            assert torch.equal(resumed["frames"], whole["frames"])
            assert (resumed["drift"], resumed["digest"]) == (whole["drift"], whole["digest"])
            assert "1 of 2 clips were kept from before" in resumed["notes"]
            assert len(resumed["latents"]) == 1, "the first clip is not made again"
            assert resumed["asked"] == ([1] if rank == 0 else [])
            assert resumed["stopped"]["error"] == "Cancelled"
        first, second = (each[again]["other"] for each in made)
        assert (first["error"], second["error"]) == ("InputError", "RankLost")
        assert "seed was 0 and is 7" in first["message"]
        assert second["agreed"] is True


@pytest.mark.slow
def test_ranks_go_on_where_all_know_and_end_where_one_fails(
    inputs: Path, made: list[dict[str, Any]]
) -> None:
    first, second = made
    assert [each["prompts"]["error"] for each in made] == ["ZeroDivisionError", "RankLost"]
    assert second["prompts"]["agreed"] is True
    assert [each["world"]["error"] for each in made] == ["InputError"] * 2
    assert "without parallel=" in first["world"]["message"]
    assert second["lost"]["error"] == "ZeroDivisionError"
    assert first["lost"]["message"] == "rank 1 failed: ZeroDivisionError: made up by the test"
    assert first["lost"]["agreed"] is False
    assert first["lost"]["at"] - float((inputs / "fault").read_text()) < DEADLINE
    assert [each["after"]["error"] for each in made] == ["RankLost"] * 2


@pytest.mark.slow
def test_all_ranks_pass_over_a_blocked_video_and_one_judges(
    inputs: Path, made: list[dict[str, Any]]
) -> None:
    first, second = (each["best"] for each in made)
    assert first["ranking"] == second["ranking"]
    assert first["ranking"] == [("video_seed2.mp4", 0.2), ("video_seed0.mp4", 0.1)]
    assert (first["judged"], second["judged"]) == ([9, 9], [])
    assert first["blocked"] == second["blocked"]
    assert first["blocked"][0].startswith("video_seed1.mp4 the video was blocked")
    assert (first["checked"], second["checked"]) == (3, 0)
    assert not [name for name in names(inputs / "best") if name.startswith("video_seed1")]


CRITIC = """
from cosmos_fast.jobs import Judgement

def judge(frames, *, trials, seed):
    return Judgement(frames.to("np").mean() / 255)
"""


def video_flags(inputs: Path, picture: str = "start.png") -> list[str]:
    return [
        *("--model", str(inputs / "world"), "--input_path", str(inputs / picture)),
        *("--prompt", "a ball", "--device", "cpu", "--num_steps", "1"),
        *("--num_video_frames", "5"),
    ]


TORCHRUN_RANK = """
import json, os, sys
from cosmos_fast.cli import main
codes = []
for port, given in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    codes.append(int(main(given)))
print(codes)
"""


@pytest.mark.slow
def test_torchrun_s_ranks_speak_with_one_voice(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As torchrun starts them: the first here, the second in a process of its own."""
    monkeypatch.chdir(inputs)
    long, folder = tmp_path / "long" / "long.mp4", tmp_path / "best"
    more = ["--save_path", str(long), "--num_chunks", "2", "--handover", "both", "--json"]
    runs = [["rollout", *video_flags(inputs), *more]]
    more = ["--save_path", str(folder), "--critic", "critics:judge", "--json"]
    runs += [["best-of-n", *video_flags(inputs, name), *more] for name in ("start.png", "torn.png")]
    given = list(zip(free_ports(3), runs, strict=True))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    other = subprocess.Popen(
        [sys.executable, "-c", TORCHRUN_RANK, json.dumps(given)],
        env={**os.environ, "RANK": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        monkeypatch.setenv("RANK", "0")
        codes = []
        for port, run in given:
            monkeypatch.setenv("MASTER_PORT", str(port))
            codes.append(main(run))
        out, err = other.communicate(timeout=120)
    finally:
        other.kill()
    assert codes == [0, 0, 1]
    assert (out, err) == ("[0, 0, 1]\n", "")
    out, err = capfd.readouterr()
    videos, best, torn = map(json.loads, out.splitlines())
    assert [each["report"]["parallel"]["ranks"] for each in videos["videos"]] == [2, 2]
    stems = ("long", "long_file_route")
    assert names(long.parent) == {f"{n}{end}" for n in stems for end in (".mp4", ".txt", ".json")}
    assert err.count("seam PSNR") == 2
    assert err.count("clip 1 of 2 is made") == 2
    assert {Path(each["video"]).name for each in best["ranking"]} == {
        "start_seed0.mp4", "start_seed1.mp4"
    }  # fmt: skip
    assert torn["error"]["type"] == "MediaError"
    assert err.count("error:") == 1
    assert err.count("wrote ") == 8
    assert not [name for name in names(folder) if name.startswith("torn")]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.slow
def test_a_rank_killed_in_a_later_video_ends_best_of_n(inputs: Path, tmp_path: Path) -> None:
    process = start(
        "best-of-n", *video_flags(inputs), "--save_path", str(tmp_path), "--critic", "json:loads",
        "--num_generations", "900", "--num_gpus", "2",
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "of 900" in line:
                break
        wait_for(process, "denoise")
        (rank,) = (pid for pid in children(process.pid) if "spawn_main" in line_of(pid))
        began = time.monotonic()
        os.kill(rank, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < DEADLINE
        assert process.returncode == 1
        assert "error: rank 1 died; rank 1 was ended by SIGKILL" in errors
        assert errors.count("error:") == 1
        whole = {f"start_seed{n}{end}" for n in (0, 1) for end in (".mp4", ".txt", ".json")}
        first = {name for name in whole if "seed0" in name}
        assert names(tmp_path) in (first, whole), "the second may have been done in the moment"
        eventually_alone(process.pid)
    finally:
        process.kill()


@pytest.mark.parametrize("how", ["--actions", "--policy"])
def test_a_world_is_not_shared(
    how: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.save("actions.npy", np.zeros((4, 2), np.float32))
    named = {"--actions": ["actions.npy"], "--policy": ["policies:act", "--num_actions", "4"]}[how]
    given = ["rollout", how, *named, "--input_path", str(inputs / "start.png")]
    given += ["--model", str(inputs / "world")]
    assert main([*given, "--num_gpus", "2"]) == 2
    assert "--num_gpus 2: a world steps on one GPU" in capfd.readouterr().err
    seat = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in seat.items():
        monkeypatch.setenv(name, value)
    assert main(given) == 2
    assert "--device cuda:0 and so on" in capfd.readouterr().err
    assert names(tmp_path) == {"actions.npy"}


def test_gpus_have_nothing_to_share_where_videos_are_there(
    inputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["best-of-n", "--skip_generation", "--num_gpus", "2", "--critic", "json:loads"]
    assert main([*given, "--save_path", str(inputs)]) == 2
    assert "--skip_generation makes none" in capfd.readouterr().err
