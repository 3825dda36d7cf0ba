"""The switches of the environment: what they take, and what kernels switched off do."""

from __future__ import annotations

from pathlib import Path

import pytest

import cosmos_fast as cf
from cosmos_fast.config import Environment
from random_world import make_random_world


@pytest.mark.parametrize(("word", "kernels"), [("", True), ("on", True), ("off", False)])
def test_words(word: str, kernels: bool) -> None:
    assert Environment.read({"COSMOS_FAST_KERNELS": word}).kernels is kernels
    assert Environment.read({"COSMOS_FAST_DIRECT_READS": word}).direct_reads is (word == "on")


@pytest.mark.parametrize("name", ["COSMOS_FAST_KERNELS", "COSMOS_FAST_DIRECT_READS"])
def test_another_word_is_refused(name: str) -> None:
    with pytest.raises(cf.InputError, match=rf"{name} = 'all': \"on\" or \"off\""):
        Environment.read({name: "all"})


def test_off_replays_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_random_world(tmp_path)
    assert cf.Video2World.from_pretrained(folder, device="cpu")._parts.graphs
    monkeypatch.setenv("COSMOS_FAST_KERNELS", "off")
    engine = cf.Video2World.from_pretrained(folder, device="cpu")
    assert not engine._parts.graphs
    assert set(engine._parts.ops.names.values()) == {"torch", "torch sdpa"}


@pytest.mark.gpu
def test_off_is_plain_torch_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_random_world(tmp_path)
    assert "triton" in cf.Video2World.from_pretrained(folder)._parts.ops.names.values()
    monkeypatch.setenv("COSMOS_FAST_KERNELS", "off")
    names = cf.Video2World.from_pretrained(folder)._parts.ops.names
    assert set(names.values()) <= {"torch", "torch sdpa", "cudnn"}
