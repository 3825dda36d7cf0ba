"""The engine as its users meet it: results, threads, cancelling, streams, files, refusals."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import cosmos_fast as cf
from cosmos_fast.parts import Later
from cosmos_fast.sampling import noise, reference_noise

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


MAKER = Path(__file__).parent.parent / "tools" / "make_random_checkpoint.py"
NAME = "Cosmos-Predict2-2B-Video2World"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Random weights in NVIDIA's layout and, the same ones, in diffusers'."""
    root = tmp_path_factory.mktemp("checkpoints")
    command = [sys.executable, str(MAKER), "--size", "tiny", "--out", str(root)]
    subprocess.run(command, check=True, capture_output=True)
    return root


@pytest.fixture(scope="module")
def tiny_checkpoint(checkpoints):
    return checkpoints / "diffusers" / NAME


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return cf.Video2World.from_pretrained(
        tiny_checkpoint, device="cpu", guardrail=cf.NoGuardrail(reason="a test")
    )


def run(engine, **options):
    defaults = {"prompt": cf.NO_TEXT, "num_steps": 2, "num_frames": 9, "size": (32, 48)}
    return engine.generate(PICTURE, **(defaults | options))


def test_same_arguments_give_the_same_bytes_and_another_seed_others(engine):
    one, two, other = run(engine), run(engine), run(engine, seed=1)
    assert one.report.latents_sha256 == two.report.latents_sha256
    assert torch.equal(one.frames.to("pt"), two.frames.to("pt"))
    assert one.report.latents_sha256 != other.report.latents_sha256


def test_both_layouts_give_the_same_bytes(engine, checkpoints, parity):
    other = cf.Video2World.from_pretrained(NAME, checkpoint_root=checkpoints, device="cpu")
    assert other.profile == engine.profile
    ours, theirs = (run(one, prompt="a cat sits") for one in (other, engine))
    different = ours.report.latents_sha256 != theirs.report.latents_sha256
    parity("latents from NVIDIA's layout", "those from diffusers'", float(different), 0)
    assert torch.equal(ours.frames.to("pt"), theirs.frames.to("pt"))


def test_nothing_in_the_process_changes(engine, unchanged_globals):
    with unchanged_globals():
        clip = run(engine)
    assert len(clip.frames) == 9


def test_results_may_be_used_in_autograd(engine):
    weight = torch.ones((), requires_grad=True)
    (run(engine).latents.tensor * weight).sum().backward()
    assert weight.grad is not None


def test_the_given_frame_is_the_first_one(engine):
    """The conditioning latents come out as they went in."""
    one = run(engine, seed=1).latents.tensor[:, :, 0]
    two = run(engine, seed=2).latents.tensor[:, :, 0]
    assert torch.equal(one, two)


def test_a_picture_that_was_turned_is_told(engine, tmp_path):
    path = tmp_path / "turned.jpg"
    orientation = PIL.Image.Exif()
    orientation[0x0112] = 6
    PIL.Image.fromarray(PICTURE).save(path, exif=orientation)
    clip = engine.generate(path, cf.NO_TEXT, num_steps=1, num_frames=5, size=(32, 48))
    (note,) = [note for note in clip.report.notes if "turned" in note]
    assert note.startswith("turned.jpg: turned by 90 degrees")


def test_prompt_and_negative_prompt_matter_and_an_empty_one_skips_guidance(engine):
    plain = run(engine, prompt="a cat sits", negative_prompt="grey", guidance=0)
    skipped = run(engine, prompt="a cat sits", negative_prompt="", guidance=3)
    guided = run(engine, prompt="a cat sits", negative_prompt="grey", guidance=3)
    none = run(engine, prompt="a cat sits", negative_prompt=cf.NO_TEXT, guidance=3)
    assert skipped.report.latents_sha256 == plain.report.latents_sha256
    assert len({clip.report.latents_sha256 for clip in (plain, guided, none)}) == 3
    assert "skipped" in " ".join(skipped.report.notes)
    assert guided.report.forwards_per_step == 2
    assert skipped.report.forwards_per_step == 1


def test_a_stream_gives_the_same_frames(engine):
    whole = run(engine).frames.to("np")
    parts = [
        np.asarray(frames)
        for frames in engine.stream(PICTURE, cf.NO_TEXT, num_steps=2, num_frames=9, size=(32, 48))
    ]
    assert [len(part) for part in parts] == [1, 4, 4]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_abandoned_stream_frees_the_engine(engine):
    frames = engine.stream(PICTURE, cf.NO_TEXT, num_steps=1, num_frames=9, size=(32, 48))
    next(frames)
    assert torch.is_grad_enabled()
    frames.close()
    run(engine)


def test_steps_and_stages_are_told(engine):
    steps, stages = [], []
    run(
        engine,
        on_step=lambda step, total, x0: steps.append((step, total, tuple(x0.shape))),
        on_stage=lambda name, state, seconds: stages.append((name, state)),
    )
    assert steps == [(n, 3, (1, 16, 3, 4, 6)) for n in (1, 2, 3)]
    assert [name for name, state in stages if state == "end"] == [
        "read",
        "text",
        "encode",
        "noise",
        "denoise",
        "decode",
    ]


def test_cancelling_raises_and_the_next_call_works(engine):
    stop = threading.Event()

    def on_step(step, total, x0):
        stop.set()

    with pytest.raises(cf.Cancelled):
        run(engine, on_step=on_step, cancel=stop)
    run(engine)


def test_noise_is_drawn_beside_what_comes_before_it(engine, monkeypatch):
    """Its thread is kept from drawing until the picture is encoded: nothing waits for it before."""
    alone, encoded, ends = run(engine).report.latents_sha256, threading.Event(), []

    def draw(shape, seed):
        assert encoded.wait(60), "the picture is encoded only once the noise is there"
        return reference_noise(shape, seed)

    def on_stage(name, state, seconds):
        if state == "end":
            ends.append(name)
        if ends[-1:] == ["encode"]:
            encoded.set()

    monkeypatch.setattr(noise, "reference_noise", draw)
    assert run(engine, on_stage=on_stage).report.latents_sha256 == alone
    assert ends[:4] == ["read", "text", "encode", "noise"]


@pytest.mark.parametrize("stage", ["read", "text", "encode", "noise", "denoise"])
def test_an_error_leaves_no_thread_that_draws(engine, stage):
    def on_stage(name, state, seconds):
        if name == stage:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(engine, on_stage=on_stage)
    assert not [one for one in threading.enumerate() if one.name.startswith("cosmos-fast noise")]


def test_a_clip_is_begun_before_the_checkpoint_has_been_hashed(engine, tmp_path, monkeypatch):
    known, decoded = engine._parts.digests.get(), threading.Event()

    def hashed():
        assert decoded.wait(60), "the clip waits for digests of files that it does not need yet"
        return known

    digests = Later(hashed)
    monkeypatch.setattr(engine, "_parts", replace(engine._parts, digests=digests))
    monkeypatch.setattr(engine, "_studio", replace(engine._studio, parts=engine._parts))
    clip = engine.generate_to(
        tmp_path / "clip.mp4", PICTURE, cf.NO_TEXT, num_steps=1, num_frames=5, size=(32, 48),
        on_stage=lambda name, state, seconds: decoded.set() if name == "decode" else None,
    )  # fmt: skip
    assert clip.report.model["sha256"] == known
    manifest = json.loads((tmp_path / "clip.json").read_text())
    assert manifest["model"]["sha256"] == known


def test_threads_queue_and_get_what_they_would_alone(engine):
    alone = [run(engine, seed=seed).report.latents_sha256 for seed in range(4)]
    found = {}

    def work(seed):
        found[seed] = run(engine, seed=seed).report.latents_sha256

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(4)] == alone


def test_an_embedding_of_another_width_is_refused(engine):
    with pytest.raises(cf.InputError, match="width 8"):
        run(engine, prompt=cf.TextEmbedding.zeros(8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "cpu"),
        ({"device": "cuda:99"}, "CUDA"),
        ({"precision": "fp8"}, "precision"),
        ({"memory": "lots"}, "12GiB"),
        ({"offload": ["the dog"]}, "components"),
        ({"guardrail": "off"}, "NoGuardrail"),
        ({"rope_table": "exact"}, "rope_table"),
    ],
    ids=str,
)
def test_settings_that_do_not_exist_are_refused(tiny_checkpoint, options, words):
    with pytest.raises(cf.InputError, match=words):
        cf.Video2World.from_pretrained(tiny_checkpoint, **({"device": "cpu"} | options))


def test_a_reason_is_needed_to_go_without_a_guardrail():
    with pytest.raises(cf.InputError, match="reason"):
        cf.NoGuardrail(reason=" ")


@pytest.mark.parametrize("way", ["save", "generate_to"])
def test_the_three_files_appear_together(engine, tmp_path, way):
    path = tmp_path / "new" / "folder" / "clip.mp4"
    if way == "save":
        clip = run(engine, prompt="a cat sits", negative_prompt="grey")
        clip.save(path, crf=20)
    else:
        clip = engine.generate_to(
            path, PICTURE, "a cat sits", "grey", num_steps=2, num_frames=9, size=(32, 48), crf=20
        )
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "clip.json",
        "clip.mp4",
        "clip.txt",
    ]
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["generated"] is True
    assert manifest["video"]["frames"] == 9
    assert manifest["arguments"]["seed"] == 0
    assert manifest["arguments"]["prompt"] == "a cat sits"
    assert manifest["guardrail"]["verdict"] == "not checked"
    assert manifest["latents_sha256"] == clip.report.latents_sha256
    assert all(len(digest) == 64 for digest in manifest["model"]["sha256"].values())
    text = path.with_suffix(".txt").read_text()
    assert text == "[Prompt]\na cat sits\n\n[Negative Prompt]\ngrey\n"


def test_the_original_sidecar_is_the_prompt_alone(engine, tmp_path):
    clip = run(engine, prompt="ein Bus, größer als zwölf Äpfel")
    clip.save(tmp_path / "clip.mp4", sidecar="original")
    assert (tmp_path / "clip.txt").read_text("utf-8") == "ein Bus, größer als zwölf Äpfel"
    clip.save(tmp_path / "bare.mp4", sidecar=None)
    assert not (tmp_path / "bare.txt").exists()


def test_a_failed_run_leaves_no_file(engine, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(cf.Cancelled):
        engine.generate_to(
            tmp_path / "clip.mp4", PICTURE, cf.NO_TEXT, num_frames=9, size=(32, 48), cancel=stop
        )
    assert list(tmp_path.iterdir()) == []
