"""Whatever goes wrong in a guardrail, nothing passes: missing, broken, empty, failing, hanging."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cosmos_fast as cf
from cosmos_fast.parallel import Ranks
from cosmos_fast.prompt.inspection import Gate
from cosmos_fast.report import Clock
from cosmos_fast.types import Frames
from cosmos_fast.weights import find_checkpoint
from cosmos_fast.wording import Desk
from guarded import (
    COSMOS,
    FACES,
    FILTER,
    LLAMA,
    MODEL,
    PROMPT,
    SIGLIP,
    Check,
    copied,
    guarded_world,
    raising,
    rewritten,
    sleeping,
)

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
SHARD = f"{LLAMA}/model-00002-of-00003.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guarded_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def root(companions: Path, tmp_path: Path) -> Path:
    return copied(companions, tmp_path / "checkpoints")


def at_work(world: Path, root: Path) -> Desk:
    """The default guardrail of ``world``, found below ``root`` and loaded, without the model."""
    desk = Desk("default", None, CPU, root, Ranks(None, CPU))
    desk.find(find_checkpoint(world, checkpoint_root=root))
    desk.load(Clock(CPU))
    return desk


def test_the_small_guardrail_passes_what_is_harmless(world: Path, root: Path) -> None:
    inspection = at_work(world, root).inspection()
    inspection.prompt("prompt", PROMPT)
    frames = Frames(torch.zeros(2, 32, 48, 3, dtype=torch.uint8), 16)
    assert torch.equal(inspection.frames(frames).to("pt"), frames.to("pt"))
    record = inspection.record()
    assert (record.requested, record.loaded, record.ran, record.verdict) == (
        "default", True, True, "safe",
    )  # fmt: skip
    assert {(one.check, one.subject, one.verdict) for one in record.checks} == {
        ("blocklist", "prompt", "safe"),
        ("llama guard", "prompt", "safe"),
        ("video filter", "video", "safe"),
        ("face blur", "video", "safe"),
    }


@pytest.mark.parametrize(
    "missing",
    [
        COSMOS,
        LLAMA,
        f"{COSMOS}/blocklist",
        f"{COSMOS}/blocklist/custom",
        f"{COSMOS}/blocklist/exact_match",
        f"{COSMOS}/blocklist/whitelist",
        f"{COSMOS}/blocklist/nltk_data",
        f"{FILTER}/safety_filter.pt",
        SIGLIP,
        f"{SIGLIP}/config.json",
        f"{SIGLIP}/model.safetensors",
        FACES,
        f"{LLAMA}/config.json",
        f"{LLAMA}/model.safetensors.index.json",
    ],
)
def test_a_missing_part_is_told_before_the_model_is_loaded(
    world: Path, root: Path, missing: str
) -> None:
    shutil.rmtree(root / missing) if (root / missing).is_dir() else (root / missing).unlink()
    stages: list[str] = []
    with pytest.raises(cf.GuardrailBlocked, match="is not there") as blocked:
        cf.Video2World.from_pretrained(
            world,
            checkpoint_root=root,
            device="cpu",
            on_stage=lambda name, state, _: stages.append(f"{name} {state}"),
        )
    assert stages == ["find checkpoint start"]
    assert blocked.value.cause == "missing"
    told = str(blocked.value)
    assert "cosmos-fast download --guardrail" in told
    assert "NoGuardrail(reason=" in told
    assert "--disable_guardrail" in told


def _tensors(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the tensors of a safetensors file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def _stored(path: Path, change: Callable[[Any], object]) -> None:
    """Changes what a ``.pt`` file holds."""
    content = torch.load(path, weights_only=True)
    change(content)
    path.unlink()
    torch.save(content, path)


def _cut(path: Path) -> None:
    rewritten(path, path.read_bytes()[:2000])


def _first(value: float) -> Callable[[dict[str, Any]], object]:
    """Sets one number of one tensor of a safetensors file."""
    return lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(value)


def _template(folder: Path, template: str) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    told = json.dumps(settings | {"chat_template": template})
    rewritten(folder / "tokenizer_config.json", told.encode())


class Bomb:
    """What a hostile pickle does when it is read by the wrong reader."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


BROKEN: dict[str, Callable[[Path], object]] = {
    "custom list empty": lambda r: rewritten(r / COSMOS / "blocklist/custom/list.txt", b"\n \n"),
    "custom folder empty": lambda r: (r / COSMOS / "blocklist/custom/list.txt").unlink(),
    "exact list empty": lambda r: rewritten(r / COSMOS / "blocklist/exact_match/list.txt", b""),
    "custom list invisible": lambda r: rewritten(
        r / COSMOS / "blocklist/custom/list.txt", "\u200b\n\ufeff\n".encode()
    ),
    "exact list of marks": lambda r: rewritten(
        r / COSMOS / "blocklist/exact_match/list.txt", "---\n\u2013\n".encode()
    ),
    "every custom word allowed": lambda r: rewritten(
        r / COSMOS / "blocklist/whitelist/list.txt",
        (r / COSMOS / "blocklist/custom/list.txt").read_bytes(),
    ),
    "list is a pipe": lambda r: os.mkfifo(r / COSMOS / "blocklist/custom/more.txt"),
    "list of another coding": lambda r: rewritten(
        r / COSMOS / "blocklist/custom/list.txt", "kaboomium\n".encode("utf-16-le")
    ),
    "list linked into nowhere": lambda r: (r / COSMOS / "blocklist/custom/more.txt").symlink_to(
        "gone.txt"
    ),
    "list not text": lambda r: rewritten(r / COSMOS / "blocklist/custom/list.txt", b"\xff\xfe\x00"),
    "wordnet gone": lambda r: (
        r / COSMOS / "blocklist/nltk_data/corpora/wordnet/noun.exc"
    ).unlink(),
    "wordnet empty": lambda r: rewritten(
        r / COSMOS / "blocklist/nltk_data/corpora/wordnet/index.noun", b"  1 licence only\n"
    ),
    "llama tokenizer gone": lambda r: (r / LLAMA / "tokenizer.json").unlink(),
    "llama tokenizer garbage": lambda r: rewritten(r / LLAMA / "tokenizer.json", b"{}"),
    "llama template gone": lambda r: rewritten(r / LLAMA / "tokenizer_config.json", b"{}"),
    "llama template without the prompt": lambda r: _template(r / LLAMA, "is it safe?"),
    "llama template fails": lambda r: _template(r / LLAMA, "{{ 1 / 0 }} A kettle boils."),
    "llama config garbage": lambda r: rewritten(r / LLAMA / "config.json", b"{"),
    "llama of another kind": lambda r: rewritten(
        r / LLAMA / "config.json", b'{"model_type": "t5"}'
    ),
    "llama settings gone": lambda r: (r / LLAMA / "generation_config.json").unlink(),
    "llama settings without an end": lambda r: rewritten(
        r / LLAMA / "generation_config.json", b'{"do_sample": true}'
    ),
    "llama shard gone": lambda r: (r / SHARD).unlink(),
    "llama shard cut": lambda r: _cut(r / SHARD),
    "llama weight not finite": lambda r: _tensors(r / SHARD, _first(float("nan"))),
    "llama weight missing": lambda r: _stored_index(r / LLAMA),
    "siglip cut": lambda r: _cut(r / SIGLIP / "model.safetensors"),
    "siglip config garbage": lambda r: rewritten(r / SIGLIP / "config.json", b"[]"),
    "siglip weight infinite": lambda r: _tensors(
        r / SIGLIP / "model.safetensors",
        lambda t: t["vision_model.head.probe"].fill_(float("inf")),
    ),
    "siglip weight missing": lambda r: _tensors(
        r / SIGLIP / "model.safetensors", lambda t: t.pop("vision_model.post_layernorm.bias")
    ),
    "siglip without a vision tower": lambda r: _tensors(
        r / SIGLIP / "model.safetensors",
        lambda t: [t.pop(name) for name in list(t) if name.startswith("vision_model.")],
    ),
    "classifier empty": lambda r: rewritten(r / FILTER / "safety_filter.pt", b""),
    "classifier garbage": lambda r: rewritten(r / FILTER / "safety_filter.pt", b"x" * 4096),
    "classifier asks for code": lambda r: _stored(
        r / FILTER / "safety_filter.pt", lambda c: c["model"].update(bomb=Bomb())
    ),
    "classifier without its key": lambda r: _stored(
        r / FILTER / "safety_filter.pt", lambda c: c.update(net=c.pop("model"))
    ),
    "classifier of two classes": lambda r: _stored(
        r / FILTER / "safety_filter.pt",
        lambda c: c["model"].update({"network.layers.6.bias": torch.zeros(2)}),
    ),
    "classifier not finite": lambda r: _stored(
        r / FILTER / "safety_filter.pt",
        lambda c: c["model"]["network.layers.0.bias"].fill_(float("nan")),
    ),
    "faces cut": lambda r: _cut(r / FACES),
    "faces weight missing": lambda r: _stored(
        r / FACES, lambda c: c.pop("module.ClassHead.1.conv1x1.bias")
    ),
}


def _stored_index(folder: Path) -> None:
    """Takes a tensor out of a shard and out of the index."""
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    name = "model.norm.weight"
    _tensors(folder / document["weight_map"].pop(name), lambda tensors: tensors.pop(name))
    rewritten(index, json.dumps(document).encode())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_part_blocks_everything(
    world: Path, root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    BROKEN[name](root)
    with pytest.raises(cf.GuardrailBlocked) as blocked:
        at_work(world, root)
    assert blocked.value.cause == "error"
    assert blocked.value.check in ("blocklist", "llama guard", "video filter", "face blur")
    assert "nothing passes" in str(blocked.value)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def engine_with(world: Path) -> Callable[..., cf.Video2World]:
    loaded = cf.Video2World.from_pretrained(
        world, device="cpu", guardrail=cf.NoGuardrail(reason="a test")
    )

    def make(guardrail: Any) -> cf.Video2World:
        """An engine around the same networks, behind a guardrail of its own."""
        with loaded.lend() as parts:
            desk = Desk(guardrail, None, CPU, None, Ranks(None, CPU))
            desk.find(parts.files)
            desk.load(Clock(CPU))
            return cf.Video2World(parts, desk)

    return make


def run_to(engine: cf.Video2World, path: Path, prompt: Any = PROMPT) -> cf.Clip:
    return engine.generate_to(
        path, PICTURE, prompt, num_steps=1, num_frames=5, size=(32, 32), guidance=0
    )


ANSWERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "says no": (lambda _: cf.Verdict(False, "a bad word"), "verdict"),
    "raises": (raising(KeyError("x")), "error"),
    "ends the process": (raising(SystemExit(0)), "error"),
    "is interrupted": (raising(KeyboardInterrupt()), "error"),
    "is out of memory": (raising(torch.OutOfMemoryError("no room")), "error"),
    "has lost its file": (raising(FileNotFoundError(2, "gone", "a.bin")), "error"),
    "says nothing": (lambda _: None, "error"),
    "says True": (lambda _: True, "error"),
    "says (True, '')": (lambda _: (True, ""), "error"),
    "gives no details": (lambda _: cf.Verdict(True, details=None), "error"),  # type: ignore[arg-type]
    "gives words as details": (lambda _: cf.Verdict(True, details={"a": "b"}), "error"),  # type: ignore[dict-item]
    "gives a detail that is no number": (
        lambda _: cf.Verdict(True, details={"score": float("nan")}),
        "error",
    ),
    "gives no reason but None": (lambda _: cf.Verdict(True, None), "error"),  # type: ignore[arg-type]
    "is safe by truth": (lambda _: cf.Verdict("yes"), "verdict"),  # type: ignore[arg-type]
    "is safe by number": (lambda _: cf.Verdict(1), "verdict"),  # type: ignore[arg-type]
    "hangs": (sleeping, "timeout"),
}


@pytest.mark.parametrize("subject", ["prompt", "video"])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_check_that_does_not_say_safe_blocks(
    engine_with: Callable[..., cf.Video2World], subject: str, name: str, tmp_path: Path
) -> None:
    answer, cause = ANSWERS[name]
    bad, good = Check("mine", answer), Check("other")
    of_prompts, of_frames = ([bad], [good]) if subject == "prompt" else ([good], [bad])
    engine = engine_with(cf.Guardrail(of_prompts, of_frames, timeout_s=0.5))
    prompt = PROMPT if subject == "prompt" else cf.NO_TEXT  # which costs no text encoder
    with pytest.raises(cf.GuardrailBlocked) as blocked:
        run_to(engine, tmp_path / "a.mp4", prompt)
    assert (blocked.value.cause, blocked.value.check) == (cause, "mine")
    assert blocked.value.subject == subject
    assert not list(tmp_path.iterdir())
    record = blocked.value.record
    assert record["verdict"] == "blocked"
    [mine] = [one for one in record["checks"] if one["check"] == "mine"]
    assert (mine["loaded"], mine["verdict"]) == (True, "blocked")
    assert mine["ran"] == (cause == "verdict")
    assert good.seen == []


@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_a_check_that_cannot_be_loaded_blocks_the_engine(
    engine_with: Callable[..., cf.Video2World], fault: str
) -> None:
    work = raising(OSError("no such network")) if fault == "raises" else sleeping
    bad = Check("mine", on_load=work)  # type: ignore[arg-type]
    with pytest.raises(cf.GuardrailBlocked, match="mine") as blocked:
        engine_with(cf.Guardrail([Check()], [bad], timeout_s=0.5))
    assert blocked.value.cause == ("error" if fault == "raises" else "timeout")


def test_a_check_that_hung_once_is_not_asked_again(
    engine_with: Callable[..., cf.Video2World], tmp_path: Path
) -> None:
    slow = Check("slow", sleeping)
    engine = engine_with(cf.Guardrail([slow], [Check()], timeout_s=0.3))
    for _ in range(2):
        with pytest.raises(cf.GuardrailBlocked, match="did not answer within") as blocked:
            run_to(engine, tmp_path / "a.mp4")
        assert blocked.value.cause == "timeout"
    assert len(slow.seen) == 1


def test_one_thread_answers_for_as_long_as_it_answers_in_time(
    engine_with: Callable[..., cf.Video2World], tmp_path: Path
) -> None:
    """torch makes plans of convolutions anew for every thread, and keeps them."""
    asked = set()

    def answered(_: object) -> cf.Verdict:
        asked.add(threading.get_ident())
        return cf.Verdict(True)

    engine = engine_with(cf.Guardrail([Check("text", answered)], [Check("frames", answered)]))
    for number in range(2):
        run_to(engine, tmp_path / f"{number}.mp4")
    assert len(asked) == 1
    assert threading.get_ident() not in asked


def test_whoever_asks_at_the_same_time_does_not_wait_for_the_other() -> None:
    gate = Gate(cf.Guardrail([Check()], [Check()], timeout_s=20), "own")
    both = threading.Barrier(2, timeout=15)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(gate.answer, "mine", None, "checking", both.wait) for _ in range(2)]
    assert sorted(one.result() for one in found) == [0, 1]


def test_frames_of_another_shape_block(
    engine_with: Callable[..., cf.Video2World], tmp_path: Path
) -> None:
    def shorter(frames: Frames) -> cf.Verdict:
        return cf.Verdict(True, frames=frames[1:])

    engine = engine_with(cf.Guardrail([Check()], [Check("mine", shorter)]))
    with pytest.raises(cf.GuardrailBlocked, match="it gives back"):
        run_to(engine, tmp_path / "a.mp4", cf.NO_TEXT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lists", [([], [Check()]), ([Check()], [])], ids=["prompts", "frames"])
def test_a_guardrail_without_checks_cannot_be_made(lists: tuple[list[Check], list[Check]]) -> None:
    with pytest.raises(cf.InputError, match="no check would pass everything"):
        cf.Guardrail(*lists)


def test_an_embedding_that_no_check_can_read_blocks(
    engine_with: Callable[..., cf.Video2World], tmp_path: Path
) -> None:
    embedding = cf.TextEmbedding.zeros(64, CPU)
    engine = engine_with(cf.Guardrail([Check()], [Check()]))
    with pytest.raises(cf.GuardrailBlocked, match="an embedding cannot be read"):
        run_to(engine, tmp_path / "a.mp4", embedding)
    free = engine_with(cf.NoGuardrail(reason="a test"))
    assert run_to(free, tmp_path / "a.mp4", embedding).report.guardrail["verdict"] == "not checked"


def test_more_than_thirty_injections_are_tried() -> None:
    assert len(BROKEN) >= 30


def test_the_model_s_folder_name_is_that_of_a_released_one(world: Path) -> None:
    assert world.name == MODEL
    assert not find_checkpoint(world).profile.toy
