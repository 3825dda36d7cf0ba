"""A guardrail at work, in the engine and on the command line: what is asked and published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cosmos_fast as cf
from commands import ran
from cosmos_fast.cli import main
from cosmos_fast.types import Frames
from guarded import MODEL, PROMPT, Check, copied, guarded_world, inverted

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
NEGATIVE = "Blurred and jerky."
SMALL: dict[str, Any] = {"num_steps": 1, "num_frames": 9, "size": (32, 48)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guarded_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def free(world: Path) -> cf.Video2World:
    return cf.Video2World.from_pretrained(
        world, device="cpu", guardrail=cf.NoGuardrail(reason="a test")
    )


def engine_with(world: Path, *checks: Check, **options: Any) -> cf.Video2World:
    """An engine whose guardrail has one check of prompts and the others of frames."""
    of_prompts, *of_frames = checks
    return cf.Video2World.from_pretrained(
        world, device="cpu", guardrail=cf.Guardrail([of_prompts], of_frames), **options
    )


def test_every_prompt_that_is_read_is_checked(world: Path) -> None:
    words, frames = Check("words"), Check("frames")
    engine = engine_with(world, words, frames)
    clip = engine.generate(PICTURE, PROMPT, **SMALL)
    assert words.seen == [PROMPT, NEGATIVE]
    assert frames.seen == [(9, 32, 48, 3)]
    found = clip.report.as_dict()["guardrail"]
    assert (found["requested"], found["loaded"], found["ran"]) == ("own", True, True)
    assert found["verdict"] == "safe"
    assert [(one["check"], one["subject"], one["ran"]) for one in found["checks"]] == [
        ("frames", "video", True),
        ("words", "prompt", True),
        ("words", "negative prompt", True),
    ]
    assert "guardrail: frames" in clip.report.table()
    words.seen.clear()
    engine.generate(PICTURE, PROMPT, guidance=0, **SMALL)
    assert words.seen == [PROMPT]  # nobody reads the negative prompt
    words.seen.clear()
    engine.generate(PICTURE, cf.NO_TEXT, PROMPT, **SMALL)
    assert words.seen == [PROMPT]


@pytest.mark.parametrize("bad", ["prompt", "negative prompt"])
def test_a_blocked_prompt_stops_before_anything_is_read(world: Path, bad: str) -> None:
    words = Check("words", lambda text: cf.Verdict("rifle" not in text, "a weapon"))
    engine = engine_with(world, words, Check("frames"))
    stages: list[str] = []
    texts = {"prompt": (PROMPT, "a rifle"), "negative prompt": ("a rifle", PROMPT)}
    negative, prompt = texts[bad]
    with pytest.raises(cf.GuardrailBlocked, match="a weapon") as blocked:
        engine.generate(
            "not/there.png", prompt, negative,
            on_stage=lambda name, *_: stages.append(name), **SMALL,
        )  # fmt: skip
    assert (blocked.value.cause, blocked.value.subject) == ("verdict", bad)
    assert blocked.value.record["reason"] == str(blocked.value)
    assert stages == ["check prompt"]


def test_what_a_check_gives_back_is_what_is_published(
    world: Path, free: cf.Video2World, tmp_path: Path
) -> None:
    plain = free.generate(PICTURE, cf.NO_TEXT, guidance=0, **SMALL).frames.to("pt")
    engine = engine_with(world, Check("words"), Check("invert", inverted))
    clip = engine.generate(PICTURE, cf.NO_TEXT, guidance=0, **SMALL)
    assert torch.equal(clip.frames.to("pt"), 255 - plain)
    streamed = [*engine.stream(PICTURE, cf.NO_TEXT, guidance=0, **SMALL)]
    assert [len(frames) for frames in streamed] == [1, 4, 4]
    assert torch.equal(torch.cat([frames.to("pt") for frames in streamed]), 255 - plain)
    written = engine.generate_to(tmp_path / "a.mp4", PICTURE, cf.NO_TEXT, guidance=0, **SMALL)
    assert torch.equal(written.frames.to("pt"), 255 - plain)


def test_checks_run_in_order_until_one_says_no(world: Path) -> None:
    last = Check("last")
    seen: list[Frames] = []

    def look(frames: Frames) -> cf.Verdict:
        seen.append(frames)
        return cf.Verdict(False, "grim")

    checks = [Check("invert", inverted), Check("look", look), last]
    engine = engine_with(world, Check("words"), *checks)
    with pytest.raises(cf.GuardrailBlocked, match="grim") as blocked:
        engine.generate(PICTURE, cf.NO_TEXT, guidance=0, **SMALL)
    assert last.seen == []
    verdicts = {one["check"]: one["verdict"] for one in blocked.value.record["checks"]}
    assert verdicts == {"invert": "safe", "look": "blocked", "last": "not run"}


def test_a_stream_ends_where_a_frame_is_blocked(world: Path) -> None:
    pieces = 0

    def second(_: Frames) -> cf.Verdict:
        nonlocal pieces
        pieces += 1
        return cf.Verdict(pieces != 2, "the second piece")

    stream = engine_with(world, Check("words"), Check("frames", second)).stream(
        PICTURE, cf.NO_TEXT, guidance=0, **SMALL
    )
    assert len(next(stream)) == 1
    with pytest.raises(cf.GuardrailBlocked, match="the second piece"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_details_add_up_over_the_pieces_of_a_video(world: Path, tmp_path: Path) -> None:
    def count(frames: Frames) -> cf.Verdict:
        return cf.Verdict(True, details={"frames": len(frames), "doubt": len(frames) / 10})

    engine = engine_with(world, Check("words"), Check("count", count))
    clip = engine.generate_to(
        tmp_path / "a.mp4", PICTURE, cf.NO_TEXT, guidance=0, **(SMALL | {"num_frames": 33})
    )
    [one] = clip.report.guardrail["checks"]
    assert one["details"] == {"frames": 33, "doubt": 2.9}  # 29 and 4 frames together


def test_a_check_left_out_on_purpose_is_on_record(world: Path, tmp_path: Path) -> None:
    engine = cf.Video2World.from_pretrained(
        world,
        device="cpu",
        guardrail=cf.Guardrail([Check("words")], [cf.NoCheck(reason="simulated scenes")]),
    )
    engine.generate_to(tmp_path / "a.mp4", PICTURE, PROMPT, guidance=0, **SMALL)
    found = json.loads((tmp_path / "a.json").read_text())["guardrail"]
    assert found["verdict"] == "partly checked"
    left_out = found["checks"][0]
    assert (left_out["verdict"], left_out["ran"]) == ("not checked", False)
    assert left_out["reason"] == "simulated scenes"
    with pytest.raises(cf.InputError, match="say in a few words"):
        cf.NoCheck(reason=" ")


def test_going_without_is_warned_of_and_recorded(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = cf.Video2World.from_pretrained(
        world, device="cpu", guardrail=cf.NoGuardrail(reason="our own filter follows")
    )
    assert "our own filter follows" in caplog.text
    clip = engine.generate(PICTURE, cf.NO_TEXT, guidance=0, **SMALL)
    assert clip.report.guardrail == {
        "requested": "none", "loaded": False, "ran": False, "verdict": "not checked",
        "reason": "our own filter follows", "checks": (),
    }  # fmt: skip


def test_a_guardrail_touches_no_global(
    world: Path, companions: Path, unchanged_globals: Any
) -> None:
    options: dict[str, Any] = {"checkpoint_root": companions, "device": "cpu"}
    with unchanged_globals():
        engine = cf.Video2World.from_pretrained(world, upsampler=UPSAMPLER, **options)
        clip = engine.generate(PICTURE, PROMPT, guidance=0, **SMALL)
    assert clip.report.guardrail["verdict"] == "safe"
    assert clip.report.upsampler["ran"]


@pytest.mark.parametrize("wrong", ["off", None, True, [], Check()])
def test_what_is_no_guardrail_is_refused(world: Path, wrong: Any) -> None:
    with pytest.raises(cf.InputError, match="NoGuardrail"):
        cf.Video2World.from_pretrained(world, device="cpu", guardrail=wrong)


def test_checks_that_are_none_are_refused() -> None:
    strange: Any = lambda prompt: cf.Verdict(True)  # noqa: E731
    with pytest.raises(cf.InputError, match="name, load"):
        cf.Guardrail([strange], [Check()])
    with pytest.raises(cf.InputError, match="one name"):
        cf.Guardrail([Check(), Check()], [Check()])
    with pytest.raises(cf.InputError, match="timeout_s"):
        cf.Guardrail([Check()], [Check()], timeout_s=0)
    with pytest.raises(cf.InputError, match="placement"):
        cf.DefaultGuardrail(placement="attic")  # type: ignore[arg-type]
    with pytest.raises(cf.InputError, match="not a folder"):
        cf.DefaultGuardrail(folder="/not/there")


UPSAMPLER = "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.fixture(scope="module")
def checkpoints(companions: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("roots") / "checkpoints"
    copied(companions, root)
    (root / MODEL).symlink_to(world)
    return root


@pytest.fixture
def place(tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    Image.fromarray(PICTURE).save("start.png")
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Runs the original's command: exit code, the JSON object of stdout, stderr."""

    def call(*arguments: str) -> tuple[int, Any, str]:
        start = ["--checkpoint_dir", "checkpoints", "--input_image_or_video_path", "start.png"]
        size = ["--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "1"]
        code, out, err = ran(capfd, ["video2world", *start, *size, *arguments, "--json"])
        return code, json.loads(out), err

    return call


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_guarded_command_writes_its_verdicts(run: Any, place: Path) -> None:
    code, found, err = run("--prompt", PROMPT, "--offload_guardrail_models",
                           "--offload_prompt_upsampler")  # fmt: skip
    assert code == 0, err
    assert files(place / "outputs") == ["output.json", "output.mp4", "output.txt"]
    manifest = json.loads((place / "outputs/output.json").read_text())
    assert manifest["guardrail"]["verdict"] == found["report"]["guardrail"]["verdict"] == "safe"
    ran = {(one["check"], one["subject"]) for one in manifest["guardrail"]["checks"] if one["ran"]}
    texts = ("prompt", "negative prompt", "upsampled prompt")
    assert ran == {
        *(("blocklist", text) for text in texts),
        *(("llama guard", text) for text in texts),
        ("video filter", "video"),
        ("face blur", "video"),
    }
    assert manifest["arguments"]["prompt"] == PROMPT
    upsampled = manifest["upsampler"]["prompt"]
    assert upsampled.startswith("A red kettle stands on one wooden table")
    assert (place / "outputs/output.txt").read_text() == upsampled


@pytest.mark.parametrize(
    ("given", "subject"),
    [
        (["--prompt", "a jar of Kaboomium"], "prompt"),
        (["--prompt", "he lifts the rifle"], "prompt"),
        (["--prompt", " "], "prompt"),
        (["--prompt", PROMPT, "--negative_prompt", "a rifle"], "negative prompt"),
    ],
    ids=["listed", "unsafe", "blank", "negative"],
)
def test_a_blocked_prompt_ends_a_command(
    run: Any, place: Path, given: list[str], subject: str
) -> None:
    code, found, err = run(*given)
    assert code == 3
    assert f"the {subject} was blocked by the guardrail's" in err
    assert (found["status"], found["exit_code"]) == ("blocked", 3)
    assert found["error"]["type"] == "GuardrailBlocked"
    assert found["guardrail"]["verdict"] == "blocked"
    assert files(place / "outputs") == []


def test_a_blocked_video_ends_a_command(
    run: Any, place: Path, companions: Path, tmp_path: Path
) -> None:
    from tools.random_companions import make_video_filter

    root = copied(companions, tmp_path / "grim")
    folder = root / "nvidia/Cosmos-Guardrail1/video_content_safety_filter"
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        path.unlink()  # a link to the one that others use
    make_video_filter(folder, grim=True)
    (root / MODEL).symlink_to((place / "checkpoints" / MODEL).resolve())
    code, found, err = run("--checkpoint_dir", str(root), "--disable_prompt_upsampler",
                           "--prompt", PROMPT)  # fmt: skip
    assert code == 3
    assert "the video was blocked by the guardrail's video filter: frame 0 of 9" in err
    assert found["guardrail"]["verdict"] == "blocked"
    assert files(place / "outputs") == []


def test_a_broken_guardrail_ends_a_command(
    run: Any, place: Path, companions: Path, tmp_path: Path
) -> None:
    root = copied(companions, tmp_path / "broken")
    (root / "meta-llama/Llama-Guard-3-8B/model-00001-of-00003.safetensors").unlink()
    (root / MODEL).symlink_to((place / "checkpoints" / MODEL).resolve())
    code, found, err = run("--checkpoint_dir", str(root), "--disable_prompt_upsampler",
                           "--prompt", PROMPT)  # fmt: skip
    assert code == 3
    assert "the guardrail's llama guard failed (loading)" in err
    assert found["error"]["type"] == "GuardrailBlocked"
    assert not (place / "outputs").exists()


def test_a_toy_is_checked_where_that_is_asked_for(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "ballworld", "--input_path", "start.png", "--prompt", PROMPT]
    code = main(["video2world", *given, "--require_guardrail", "--checkpoint_dir", "empty"])
    assert code == 3
    assert "the guardrail is not there" in capfd.readouterr().err


def test_worlds_are_checked_too(world: Path) -> None:
    words = Check("words", lambda text: cf.Verdict("rifle" not in text, "a weapon"))
    engine = engine_with(world, words, Check("invert", inverted))
    start = np.zeros((1, 32, 48, 3), dtype=np.uint8)
    with cf.World(engine, 1) as guarded:
        with pytest.raises(cf.GuardrailBlocked, match="a weapon"):
            guarded.reset(start, prompts="a rifle")
        guarded.reset(start, prompts=cf.NO_TEXT, seed=3)
        seen = guarded.step(num_steps=1, guidance=0)
    free = cf.Video2World.from_pretrained(
        world, device="cpu", guardrail=cf.NoGuardrail(reason="a test")
    )
    with cf.World(free, 1) as unguarded:
        unguarded.reset(start, prompts=cf.NO_TEXT, seed=3)
        plain = unguarded.step(num_steps=1, guidance=0)
    assert seen.frames is not None
    assert plain.frames is not None
    assert torch.equal(seen.frames.to("pt"), 255 - plain.frames.to("pt"))
    assert (seen.verdict, plain.verdict) == ("safe", "not checked")
    refusing = engine_with(world, Check("words"), Check("no", lambda _: cf.Verdict(False, "grim")))
    with cf.World(refusing, 1) as blocked:
        blocked.reset(start, prompts=cf.NO_TEXT)
        with pytest.raises(cf.GuardrailBlocked, match="grim"):
            blocked.step(num_steps=1, guidance=0)
