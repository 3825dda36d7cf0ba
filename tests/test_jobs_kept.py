"""Long videos that go on where they were broken off: a small random model, real files."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cosmos_fast as cf
from cosmos_fast.config import VAEConfig
from cosmos_fast.jobs.kept import KeptClips
from cosmos_fast.types import Frames
from guarded import Check
from random_world import RANDOM_PROFILE, make_random_world

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
GIVEN = np.broadcast_to(PICTURE, (5, *PICTURE.shape)).copy()
SMALL: dict[str, Any] = {
    "size": (32, 48), "num_frames": 9, "num_steps": 1, "num_conditional_frames": 5,
    "num_chunks": 4, "seed": 4,
}  # fmt: skip
PROFILE = replace(
    RANDOM_PROFILE,
    dit=replace(RANDOM_PROFILE.dit, num_layers=1, num_heads=1),
    vae=VAEConfig(base_dim=4),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_world(tmp_path_factory.mktemp("world"), PROFILE)


@pytest.fixture(scope="module")
def engine(world: Path) -> cf.Video2World:
    return cf.Video2World.from_pretrained(world, device="cpu")


@pytest.fixture(scope="module")
def whole(engine: cf.Video2World) -> cf.Rollout:
    """In one go, nothing kept."""
    return cf.rollout(engine, GIVEN, "A heron.", **SMALL)


class Made(list[int]):
    """Numbers of the clips that were made, of which the last is the last."""

    def __init__(self, last: int = 99) -> None:
        self.last = last

    def __call__(self, row: cf.jobs.ChunkDrift, total: int) -> None:
        self.append(row.chunk)
        if row.chunk == self.last:
            raise KeyboardInterrupt


def broken_off(
    engine: cf.Video2World, keep: Path, last: int = 1, prompts: Any = "A heron.", **more: Any
) -> None:
    """As Ctrl-C does it after clip ``last``."""
    with pytest.raises(KeyboardInterrupt):
        cf.rollout(engine, GIVEN, prompts, keep=keep, on_chunk=Made(last), **{**SMALL, **more})


def plain(report: cf.Report) -> dict[str, Any]:
    """What two runs of the same work have in common."""
    known = report.as_dict()
    for name in ("stages", "step_seconds", "seconds", "teraflops", "notes", "peak_host_bytes"):
        del known[name]
    return known


def assert_same(one: cf.Rollout, other: cf.Rollout) -> None:
    np.testing.assert_array_equal(np.asarray(one.frames), np.asarray(other.frames))
    assert one.drift == other.drift
    assert one.prompts == other.prompts
    assert plain(one.report) == plain(other.report)


def test_it_goes_on_behind_the_last_clip(
    engine: cf.Video2World, whole: cf.Rollout, tmp_path: Path
) -> None:
    """Twice, and from a whole one: the digest of all latents, frames and measures are those of a
    video made in one go."""
    keep = tmp_path / "deep" / "kept"
    broken_off(engine, keep)
    broken_off(engine, keep, 2)
    made = Made()
    long = cf.rollout(engine, GIVEN, "A heron.", keep=keep, on_chunk=made, **SMALL)
    assert made == [3]
    assert_same(long, whole)
    assert long.report.notes == ("3 of 4 clips were kept from before", *whole.report.notes)
    made = Made()
    again = cf.rollout(engine, GIVEN, "A heron.", keep=keep, on_chunk=made, **SMALL)
    assert made == []
    assert_same(again, whole)
    assert len(again.report.step_seconds) == len(whole.report.step_seconds)
    fewer = cf.rollout(engine, GIVEN, "A heron.", keep=keep, **{**SMALL, "num_chunks": 2})
    np.testing.assert_array_equal(np.asarray(fewer.frames), np.asarray(whole.frames)[:13])
    more = cf.rollout(engine, GIVEN, "A heron.", keep=keep, **{**SMALL, "num_chunks": 5})
    np.testing.assert_array_equal(np.asarray(more.frames)[:-4], np.asarray(whole.frames))
    assert len(list(keep.iterdir())) == 6


def test_what_a_lossy_file_handed_over_is_kept(engine: cf.Video2World, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "num_chunks": 3, "handover": "file"}
    whole = cf.rollout(engine, GIVEN, "A heron.", **options)
    broken_off(engine, tmp_path, handover="file")
    made = Made()
    long = cf.rollout(engine, GIVEN, "A heron.", keep=tmp_path, on_chunk=made, **options)
    assert made == [2]
    assert_same(long, whole)


def test_nobody_is_asked_twice_for_a_prompt(world: Path, tmp_path: Path) -> None:
    """Neither a function, nor an upsampler; what a guardrail found of every clip is told."""
    asked: list[str] = []

    def rewritten(prompt: str, frames: Frames, *, seed: int) -> str:
        asked.append(f"{prompt} by {seed}")
        return f"{prompt} It rests in the reeds, {len(asked)}."

    engine = cf.Video2World.from_pretrained(
        world,
        device="cpu",
        upsampler=rewritten,
        guardrail=cf.Guardrail([Check("words")], [Check("video")]),
    )

    def prompts(chunk: int, tail: Frames | None) -> str:
        asked.append(f"clip {chunk}")
        if tail is not None:
            assert len(tail) == 5
        return f"Bird {chunk}."

    broken_off(engine, tmp_path, prompts=prompts)
    told = ["clip 0", "Bird 0. by 4", "clip 1", "Bird 1. by 5"]
    assert asked == told
    long = cf.rollout(engine, GIVEN, prompts, keep=tmp_path, **{**SMALL, "num_chunks": 3})
    assert asked == [*told, "clip 2", "Bird 2. by 6"]
    assert long.prompts == ("Bird 0.", "Bird 1.", "Bird 2.")
    assert long.report.upsampler["chunk_prompts"] == [
        f"Bird {chunk}. It rests in the reeds, {chunk * 2 + 2}." for chunk in range(3)
    ]
    checked = {(one["chunk"], one["subject"]) for one in long.report.guardrail["checks"]}
    subjects = ("prompt", "upsampled prompt", "video")
    assert checked == {(chunk, subject) for chunk in range(3) for subject in subjects}
    unguarded = cf.Video2World.from_pretrained(world, device="cpu", upsampler=rewritten)
    with pytest.raises(cf.InputError, match="guardrail was 'own: words; video' and is 'none'"):
        cf.rollout(unguarded, GIVEN, prompts, keep=tmp_path, **SMALL)
    with pytest.raises(cf.InputError, match=r"prompt of clip 2 was 'Bird 1\.' and is 'Bird 9\.'"):
        cf.rollout(engine, GIVEN, ["Bird 0.", *["Bird 9."] * 3], keep=tmp_path, **SMALL)


@pytest.fixture(scope="module")
def half(engine: cf.Video2World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of four clips, to be copied."""
    folder = tmp_path_factory.mktemp("half")
    broken_off(engine, folder, 2)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, "seed was 4 and is 5"),
        ({"prompts": "A stork."}, "prompt of clip 1 was 'A heron.' and is 'A stork.'"),
        ({"prompts": cf.NO_TEXT}, "prompt of clip 1 was 'A heron.' and is none"),
        ({"negative_prompt": "Fog."}, "negative_prompt was none and is 'Fog.'"),
        ({"num_steps": 2, "size": (48, 48)}, "height was 32 and is 48, num_steps was 1 and is 2"),
        ({"num_frames": 13}, "num_frames was 9 and is 13"),
        ({"fps": 7}, "fps was .* and is 7"),
        ({"handover": "file"}, "handover was 'memory' and is 'file'"),
        ({"source": GIVEN[:, ::-1]}, "pixels of the source was"),
        ({"upsample": False}, "upsample was True and is False"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_video_s_clips_are_refused(
    engine: cf.Video2World, half: Path, change: dict[str, Any], words: str
) -> None:
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    call = {"source": GIVEN, "prompts": "A heron.", **SMALL, **change}
    with pytest.raises(cf.InputError, match=words) as raised:
        cf.rollout(engine, keep=half, **call)
    assert "or remove the folder to begin again" in str(raised.value)
    assert {path.name: path.read_bytes() for path in half.iterdir()} == before


def test_another_model_s_clips_are_refused(half: Path, tmp_path: Path) -> None:
    """Of the same shape and name: its weights differ."""
    other = cf.Video2World.from_pretrained(
        make_random_world(tmp_path, PROFILE, seed=1), device="cpu"
    )
    with pytest.raises(
        cf.InputError,
        match=r"weights of dit/.* was .*, weights of vae/.* was .*, weights of text_encoder was",
    ):
        cf.rollout(other, GIVEN, "A heron.", keep=half, **SMALL)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "damage", [flipped, cut, Path.unlink, Path.touch], ids=lambda f: f.__name__
)
def test_a_damaged_clip_and_what_follows_are_made_again(
    engine: cf.Video2World, whole: cf.Rollout, half: Path, tmp_path: Path, damage: Any
) -> None:
    keep = shutil.copytree(half, tmp_path / "kept")
    (keep / ".cosmos-fast-half.safetensors").write_bytes(b"of a writer that was killed")
    made, hurt = Made(), keep / "clip-00001.safetensors"
    if damage is Path.touch:  # no damage, but clip 2 of a video that is not this one
        shutil.copy(keep / "clip-00000.safetensors", hurt)
    damage(hurt)
    long = cf.rollout(engine, GIVEN, "A heron.", keep=keep, on_chunk=made, **SMALL)
    assert made == [1, 2, 3]
    assert_same(long, whole)
    told = "kept clip 2 was damaged: it and what follows were made again"
    assert (told in long.report.notes) == (damage is not Path.unlink)
    assert len(list(keep.iterdir())) == 5


def test_what_follows_a_damaged_clip_is_never_taken_later(
    engine: cf.Video2World, half: Path, tmp_path: Path
) -> None:
    """A function need not give the prompt again that the clips behind it continued."""
    keep = shutil.copytree(half, tmp_path / "kept")
    flipped(keep / "clip-00001.safetensors")
    broken_off(engine, keep, 1, lambda chunk, tail: "A stork.")
    assert [path.name[:10] for path in sorted(keep.glob("clip-*"))] == ["clip-00000", "clip-00001"]


def test_a_damaged_record_costs_all_clips(
    engine: cf.Video2World, whole: cf.Rollout, half: Path, tmp_path: Path
) -> None:
    keep = shutil.copytree(half, tmp_path / "kept")
    (keep / "rollout.json").write_bytes(b"{")
    long = cf.rollout(engine, GIVEN, "A heron.", keep=keep, **SMALL)
    assert_same(long, whole)
    assert "rollout.json was damaged: all clips were made again" in long.report.notes


def test_a_folder_that_cannot_keep_clips_is_refused_before_the_first(
    engine: cf.Video2World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made()
    call: dict[str, Any] = {**SMALL, "on_chunk": made}
    (tmp_path / "mine.txt").write_text("of somebody")
    with pytest.raises(cf.InputError, match="no folder of a long video; name one that is new"):
        cf.rollout(engine, GIVEN, "A heron.", keep=tmp_path, **call)
    for place in (tmp_path / "mine.txt", Path("/proc/kept")):
        with pytest.raises(cf.MediaError, match=r"cannot be used .*write to another folder"):
            cf.rollout(engine, GIVEN, "A heron.", keep=place, **call)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(cf.MediaError, match=r"keeping 4 clips .* GiB are free; free some"):
        cf.rollout(engine, GIVEN, "A heron.", keep=tmp_path / "new", **call)
    assert made == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_is_one_process_s_at_a_time(engine: cf.Video2World, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    with KeptClips(keep), pytest.raises(cf.InputError, match="another process is making this"):
        cf.rollout(engine, GIVEN, "A heron.", keep=keep, **SMALL)
    assert not keep.exists()


def test_a_full_disk_leaves_the_clips_before(
    engine: cf.Video2World, whole: cf.Rollout, tmp_path: Path
) -> None:
    """Found out while a clip is written: the kernel lets no file grow."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(row: cf.jobs.ChunkDrift, total: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    try:
        with pytest.raises(cf.MediaError, match=r"could not keep clip 2 \(File too large\)"):
            cf.rollout(engine, GIVEN, "A heron.", keep=tmp_path, on_chunk=fill, **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    made = Made()
    assert_same(cf.rollout(engine, GIVEN, "A heron.", keep=tmp_path, on_chunk=made, **SMALL), whole)
    assert made == [1, 2, 3]


def test_what_ends_before_the_first_clip_leaves_nothing(
    engine: cf.Video2World, tmp_path: Path
) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(cf.Cancelled):
        cf.rollout(engine, GIVEN, "A heron.", keep=tmp_path / "kept", cancel=cancel, **SMALL)
    assert not list(tmp_path.iterdir())
