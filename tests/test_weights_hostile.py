"""Hostile and damaged checkpoint files: one typed error each, and no code of theirs runs."""

from __future__ import annotations

import io
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from attacks.checkpoints.hostile import CANARY, DAMAGED, PICKLES, Builder
from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights.tensor_files import open_tensors


@pytest.mark.parametrize("build", PICKLES.values(), ids=PICKLES.keys())
def test_code_in_a_checkpoint_does_not_run(build: Builder, tmp_path: Path) -> None:
    path = build(tmp_path)
    with pytest.raises(CheckpointError, match=r"weights-only reader refuses"):
        open_tensors(path)
    assert not (tmp_path / CANARY).exists()
    assert not hasattr(torch.Tensor, "broken")


def test_the_canary_would_be_seen(tmp_path: Path) -> None:
    # The same file does harm where a careless reader opens it, or the tests above prove nothing.
    path = PICKLES["system beside a tensor"](tmp_path)
    torch.load(path, weights_only=False)
    assert (tmp_path / CANARY).exists()


@pytest.mark.parametrize("build", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_refused_by_name(build: Builder, tmp_path: Path) -> None:
    path = build(tmp_path)
    with pytest.raises(CheckpointError) as refusal:
        read_all(path)
    assert path.name[:40] in str(refusal.value) or "other" in str(refusal.value)


def read_all(path: Path) -> None:
    with open_tensors(path) as file:
        for name in file.entries:
            file.read(name)


def test_pickled_buffers_are_dropped_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    state = io.BytesIO(b"\x80\x02cos\nsystem\nq\x00" * 1000)
    state.seek(17)
    torch.save({"net.w": torch.ones(2), "net.w._extra_state": state}, path)
    with open_tensors(path) as file:
        assert file.others == {"net.w._extra_state": "_Discarded"}
        assert torch.equal(file.read("net.w"), torch.ones(2))


def test_the_allow_list_of_the_process_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"net.w": torch.ones(2), "net.s": io.BytesIO(b"x")}, path)
    with torch.serialization.safe_globals([io.StringIO]):
        before = set(torch.serialization.get_safe_globals())
        threads = [threading.Thread(target=open_tensors, args=(path,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(CheckpointError):
            open_tensors(PICKLES["eval"](tmp_path))
        assert set(torch.serialization.get_safe_globals()) == before


def test_a_compressed_archive_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.pt", tmp_path / "model.pt"
    torch.save({"net.w": torch.zeros(1 << 20)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.namelist():
            target.writestr(entry.replace("plain", "model"), source.read(entry))
    assert packed.stat().st_size < plain.stat().st_size / 100
    with pytest.raises(CheckpointError, match="compressed"):
        open_tensors(packed)


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_file_cut_anywhere_is_refused(cut: int, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"net.w": torch.arange(100.0), "net.v": torch.ones(7)}, whole)
    content = whole.read_bytes()
    path = tmp_path / "model.pt"
    path.write_bytes(content[: len(content) * cut // 20])
    with pytest.raises(CheckpointError):
        open_tensors(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_mutated_files_never_harm(suffix: str, tmp_path: Path) -> None:
    """A changed byte gives the same error type or readable tensors, never another failure."""
    from safetensors.torch import save

    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save({"net.w": torch.arange(6.0), "net.v": torch.ones(3)}, path)
        content = path.read_bytes()
    else:
        content = save({"net.w": torch.arange(6.0), "net.v": torch.ones(3)})
    generator = torch.Generator().manual_seed(1)
    refused = 0
    for _ in range(400):
        place = int(torch.randint(len(content), (), generator=generator))
        value = int(torch.randint(256, (), generator=generator))
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        try:
            read_all(path)
        except CheckpointError:
            refused += 1
    assert refused > 20
