"""``cosmos-fast rollout`` with actions: recorded ones, a policy's, a dataset's; real files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import cosmos_fast as cf
from action_world import CHUNK, DIM, HEIGHT, PROFILE, WIDTH, pictures
from commands import ran
from cosmos_fast.cli import main
from cosmos_fast.cli.settings import TOY_SOURCES
from cosmos_fast.media import VideoWriter, read_frames, write_png
from cosmos_fast.weights import packaged_worlds
from cosmos_fast.world import load_actions, rollout_actions
from cosmos_fast.world.lerobot import Dataset, DatasetWriter
from random_world import make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

SIZE = cf.Size(HEIGHT, WIDTH)
START = pictures(1)[0]
ROWS = np.random.default_rng(0).uniform(-1, 1, (2 * CHUNK + 3, DIM))
POLICY = """
import numpy as np

def push(frame):
    return np.full((3, 2), frame.mean() / 255)

def wrong(frame):
    return np.zeros((3, 5))
"""


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return ran(capfd, ["rollout", "--model", "model", *arguments])

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_world(tmp_path_factory.mktemp("actions"), PROFILE)


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released actions' seven values, for annotation files."""
    from cosmos_fast.weights.action_files import RELEASED_ACTIONS

    spec = replace(RELEASED_ACTIONS, chunk=4)
    profile = replace(
        PROFILE, num_frames=5, fps=4.0, actions=spec, num_steps=1,
        dit=replace(PROFILE.dit, num_layers=1, action_inputs=28),
    )  # fmt: skip
    return make_random_world(tmp_path_factory.mktemp("seven"), profile)


@pytest.fixture
def place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(model)
    np.save("rows.npy", ROWS)
    write_png("start.png", START)
    Path("my_policy.py").write_text(POLICY)
    monkeypatch.delitem(sys.modules, "my_policy", raising=False)
    return tmp_path


RECORDED = ("--actions", "rows.npy", "--input_path", "start.png")


def test_recorded_actions_give_the_librarys_frames(run: Run, place: Path) -> None:
    code, out, err = run(*RECORDED, "--seed", "4", "--save_path", "out/a.npy")
    assert (code, out) == (0, "out/a.npy\n"), err
    engine = cf.Video2World.from_pretrained("model", device="cpu")
    wanted = rollout_actions(engine, START, ROWS, seed=4)
    np.testing.assert_array_equal(np.load("out/a.npy"), wanted.frames.to("np"))
    record = json.loads(Path("out/a.json").read_text())
    assert record["video"]["frames"] == len(ROWS) + 1
    assert record["rollout"]["seed"] == 4
    assert record["rollout"]["num_steps"] == PROFILE.num_steps
    assert record["source"] == {"actions": "rows.npy", "input": "start.png"}
    assert record["guardrail"]["verdict"] == wanted.guardrail["verdict"]
    assert "step 19 of 19" in err
    assert "wrote out/a.npy" in err
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.json", "a.npy"]


def test_the_first_frame_of_a_video_is_the_start(run: Run, place: Path) -> None:
    with VideoWriter("episode.mkv", size=SIZE, fps=8) as writer:
        writer.write(pictures(5))
    code, _, err = run("--actions", "rows.npy", "--num_actions", "2", "--input_path",
                       "episode.mkv", "--save_path", "a.npy")  # fmt: skip
    assert code == 0, err
    np.testing.assert_array_equal(np.load("a.npy")[0], pictures(5)[0])
    assert len(np.load("a.npy")) == 3


def test_reference_switch_gives_the_scripts_seams(run: Run, place: Path) -> None:
    code, out, err = run(*RECORDED, "--reference", "--save_path", "a.npy", "--json")
    assert code == 0, err
    engine = cf.Video2World.from_pretrained("model", device="cpu")
    wanted = rollout_actions(engine, START, ROWS, reference=True).frames.to("np")
    made = np.load("a.npy")
    np.testing.assert_array_equal(made, wanted)
    np.testing.assert_array_equal(made[CHUNK], made[CHUNK + 1])
    told = json.loads(out)
    assert (told["frames"], told["actions"]) == (2 * CHUNK + 1, 2 * CHUNK)
    assert (told["settings"]["reference"], told["settings"]["noise"]) == (True, "reference")


def test_json_tells_what_was_made(run: Run, place: Path) -> None:
    code, out, err = run(*RECORDED, "--num_actions", "5", "--samples", "2", "--num_steps", "1",
                         "--fps", "20", "--save_path", "a.mp4", "--json")  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert (told["status"], told["video"], told["manifest"]) == ("ok", "a.mp4", "a.json")
    assert (told["frames"], told["actions"], told["stopped"]) == (6, 5, False)
    assert told["stopped_at"] is None
    assert len(told["disagreement"]) == 5
    assert (told["settings"]["samples"], told["settings"]["num_steps"]) == (2, 1)
    assert told["report"]["steps"] == 1
    assert read_frames("a.mp4", size=SIZE, num_frames=6).fps == pytest.approx(20)


def test_a_rollout_ends_where_the_futures_disagree(run: Run, place: Path) -> None:
    code, out, err = run(*RECORDED, "--samples", "2", "--stop_at", "1e-6", "--save_path", "a.npy",
                         "--json")  # fmt: skip
    assert code == 0, err
    told, manifest = json.loads(out), json.loads(Path("a.json").read_text())
    at = told["stopped_at"]
    assert told["stopped"]
    assert at == manifest["rollout"]["stopped_at"] > 1e-6
    said = f"the futures disagree by {at:.3g}, more than --stop_at 1e-06; 0 actions"
    assert said in " ".join(err.split())


def test_a_policy_of_the_working_directory_acts(run: Run, place: Path) -> None:
    code, _, err = run("--policy", "my_policy:push", "--num_actions", "7", "--input_path",
                       "start.png", "--save_path", "a.npy")  # fmt: skip
    assert code == 0, err
    frames, record = np.load("a.npy"), json.loads(Path("a.json").read_text())
    assert len(frames) == 8
    looked = [frames[at].mean() / 255 for at in (0, 3, 6)]
    carried = np.repeat(np.repeat(looked, 3)[:7, None], 2, axis=1)
    np.testing.assert_allclose(record["rollout"]["actions"], carried, rtol=1e-6)
    assert record["source"]["policy"] == "my_policy:push"
    code, _, err = run("--policy", "my_policy:wrong", "--num_actions", "7", "--input_path",
                       "start.png", "--save_path", "b.npy")  # fmt: skip
    assert code == 2
    assert "the policy's actions of shape (3, 5): (1 to 8, 2) is needed" in err
    assert not Path("b.npy").exists()


def annotate(actions: int) -> None:
    action = np.random.default_rng(1).uniform(-0.05, 0.05, (actions, 6))
    gripper = [0, 1, 1, 0, 0, 1, 0.5, 0, 1, 1][: actions + 1]
    content = {"action": action.tolist(), "continuous_gripper_state": gripper}
    Path("0.json").write_text(json.dumps(content))


def test_an_annotation_is_carried_out(
    place: Path, seven: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    annotate(6)
    code = main(["rollout", "--model", str(seven), "--actions", "0.json", "--input_path",
                 "start.png", "--save_path", "a.npy"])  # fmt: skip
    assert code == 0, capfd.readouterr().err
    record = json.loads(Path("a.json").read_text())
    assert np.shape(record["rollout"]["actions"]) == (6, 7)
    assert [row[6] for row in record["rollout"]["actions"]] == [1, 1, 0, 0, 1, 0.5]


def test_the_action_scripts_own_command(
    place: Path, seven: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    annotate(9)
    script = ["video2world_action", "--dit_path", str(seven), "--input_video", "start.png",
              "--input_annotation", "0.json", "--seed", "3", "--guidance", "0"]  # fmt: skip
    assert main([*script, "--chunk_size", "4", "--save_path", "one.npy"]) == 0
    assert main([*script, "--chunk_size", "4", "--autoregressive", "--save_path", "all.npy"]) == 0
    engine = cf.Video2World.from_pretrained(seven, device="cpu")
    rows = load_actions("0.json")
    one = rollout_actions(engine, START, rows[:4], seed=3, noise="reference", guidance=0.0)
    np.testing.assert_array_equal(np.load("one.npy"), one.frames.to("np"))
    every = rollout_actions(engine, START, rows, reference=True, guidance=0.0)
    np.testing.assert_array_equal(np.load("all.npy"), every.frames.to("np"))
    capfd.readouterr()
    assert main(script) == 2
    assert "--chunk_size 12: " in capfd.readouterr().err
    assert main(["video2world-action", "--input_video", "start.png"]) == 2
    assert "--input_annotation is required" in capfd.readouterr().err


def test_a_dataset_is_rolled_out_and_written(run: Run, place: Path) -> None:
    eye, wrist = "observation.images.eye", "observation.images.wrist"
    with DatasetWriter("real", PROFILE.actions, {eye: SIZE, wrist: (64, 96)}, crf=0) as writer:  # type: ignore[arg-type]
        for episode, length in enumerate((4, 6)):
            pixels = np.full((length, HEIGHT, WIDTH, 3), 60 + 90 * episode, np.uint8)
            large = np.full((length, 64, 96, 3), 200, np.uint8)
            writer.add({eye: pixels, wrist: large}, ROWS[:length], f"task {episode}")
    command = ["--actions", "real", "--episode", "1", "--save_path", "a.npy"]
    code, _, err = run(*command)
    assert code == 2
    assert "2 cameras, name one of observation.images.eye, observation.images.wrist" in err
    code, out, err = run(*command, "--camera", "eye", "--save_dataset", "imagined", "--json")
    assert code == 0, err
    assert json.loads(out)["dataset"] == "imagined"
    assert np.abs(np.load("a.npy")[0].astype(int) - 150).max() <= 2
    one = Dataset("imagined").episode(0)
    assert (one.length, one.task, one.synthetic) == (6, "task 1", True)
    assert one.provenance["source"] == {
        "actions": "real", "episode": 1, "cameras": [eye], "input": None
    }  # fmt: skip
    np.testing.assert_array_equal(Dataset("imagined").actions(0), ROWS[:6].astype(np.float32))
    code, _, err = run(*command, "--camera", "eye", "--save_dataset", "imagined")
    assert code == 2
    assert "'imagined' is there" in err


@pytest.mark.parametrize("json_too", [False, True], ids=["rows", "json"])
def test_a_dry_run_resolves_and_makes_nothing(run: Run, place: Path, json_too: bool) -> None:
    before = sorted(place.iterdir())
    code, out, err = run(*RECORDED, "--samples", "3", "--dry-run", *["--json"] * json_too)
    assert code == 0, err
    if json_too:
        told = json.loads(out)
        assert (told["problems"], told["settings"]["samples"]) == ([], 3)
        assert (told["settings"]["height"], told["settings"]["num_steps"]) == (HEIGHT, 2)
    else:
        assert "rows.npy" in out
    assert sorted(place.iterdir()) == before


def test_a_dry_run_tells_everything_that_is_wrong(run: Run, place: Path) -> None:
    np.save("wide.npy", np.zeros((4, 5)))
    code, _, err = run("--actions", "wide.npy", "--input_path", "gone.png", "--dry-run")
    assert code == 2
    assert "--input_path: 'gone.png' is not there" in err
    assert "--actions: 5 values an action, where random actions takes 2: x, y" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--actions rows.npy --policy a:b", "contradict each other"),
        ("--policy my_policy:push", "--policy needs --num_actions"),
        ("--policy my_policy:pull --num_actions 3", "no attribute"),
        ("--policy nowhere --num_actions 3", "module:function"),
        ("--policy .my_policy:push --num_actions 3", "policy = '.my_policy:push'"),
        ("--policy my_policy:push --num_actions 3 --reference", "about recorded actions"),
        ("--actions rows.npy --prompt push", "--prompt: of no meaning with --actions"),
        ("--actions rows.npy --num_chunks 3", "--num_chunks: of no meaning"),
        ("--actions rows.npy --resume", "--resume: with --actions no chunks are kept"),
        ("--actions rows.npy --stop_at 0.5", "--stop_at needs --samples 2"),
        ("--actions rows.npy --reference --samples 2", "have one future"),
        ("--actions rows.npy --noise reference --samples 2", "have one future"),
        ("--actions rows.npy --noise device --reference", "leave --noise out"),
        ("--actions rows.npy --reference --seed 2", "not --seed"),
        ("--actions rows.npy --reference --num_actions 5", "whole 8s"),
        ("--actions rows.npy --episode 2", "no LeRobot dataset"),
        ("--actions rows.npy --task push", "name one with --save_dataset"),
        ("--actions gone.npy", "gone.npy: no array"),
        ("--actions start.png", "actions are read from .json"),
        ("--actions bad.npy", "numbers (T, dim) are needed"),
        ("--actions nan.npy", "value 1 of action 2 is nan"),
        ("--actions pickled.npy", "no array that can be read"),
        ("--actions far.npy", "beyond 20 in the network's scale"),
        ("--samples 2 --prompt push", "--samples: only with --actions or --policy"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Run, place: Path, words: str, message: str) -> None:
    np.save("bad.npy", np.zeros(5))
    bad = np.zeros((4, DIM))
    bad[2, 1] = np.nan
    np.save("nan.npy", bad)
    np.save("far.npy", np.full((4, DIM), 100.0))
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    code, out, err = run(*words.split(), "--input_path", "start.png", "--save_path", "a.npy")
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("a.npy").exists()


def test_every_world_that_ships_is_known_by_its_name(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sorted(TOY_SOURCES) == list(packaged_worlds())
    given = ["--model", "pusherworld", *RECORDED, "--num_actions", "3", "--num_steps", "1"]
    code, out, err = ran(capfd, ["rollout", *given, "--save_path", "a.npy", "--json"])
    assert code == 0, err
    assert np.load("a.npy").shape == (4, 96, 96, 3)
    assert json.loads(out)["guardrail"]["verdict"] == "not applicable"
    given = ["--model", "no_such_world", *RECORDED]
    code, _, err = ran(capfd, ["rollout", *given, "--save_path", "b.npy"])
    assert (code, "the small worlds that ship are called ballworld and pusherworld" in err) == (
        2, True,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["rollout", "video2world"])
def test_a_prompt_for_a_world_of_actions_is_sent_to_them(
    command: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "pusherworld", "--input_path", "start.png", "--prompt", "push"]
    code, _, err = ran(capfd, [command, *given, "--save_path", "a.npy"])
    assert code == 2
    assert "pusherworld follows actions, not a prompt" in err
    assert "T5" not in err


def test_no_dataset_of_no_action(run: Run, place: Path) -> None:
    code, _, err = run(*RECORDED, "--samples", "2", "--stop_at", "1e-6", "--save_path", "a.npy",
                       "--save_dataset", "imagined")  # fmt: skip
    assert (code, Path("imagined").exists()) == (2, False)
    assert "--save_dataset: an episode needs an action" in err


def test_a_model_without_actions_is_named(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["rollout", "--model", "ballworld", *RECORDED])
    assert code == 2
    assert "takes no actions; it follows a --prompt" in capfd.readouterr().err


def test_the_released_model_is_the_default(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["rollout", *RECORDED, "--dry-run", "--json", "--disable_guardrail"])
    settings = json.loads(capfd.readouterr().out)["settings"]
    assert settings["source"] == "nvidia/Cosmos-Predict2-2B-Sample-Action-Conditioned"
    assert settings["origins"]["source"] == "default"
    assert (code, settings["prompt"], settings["upsampler"]) == (0, None, "off")
