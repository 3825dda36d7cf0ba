"""Tensors on their way from files to memory: every dtype, every route, and abandoned halfway."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cosmos_fast._core import WeightReader
from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights import bring as bringing
from cosmos_fast.weights.bring import Piece, Reading, Ring, bring, send
from cosmos_fast.weights.extents import Extent
from cosmos_fast.weights.tensor_files import open_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL = Reading(threads=2, piece_bytes=64 << 10, ring_slots=2, slot_bytes=128 << 10)
"""So small that every tensor goes round the ring."""


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        "long": torch.randn(300, 1001),
        "short": torch.randn(7),
        "empty": torch.zeros(0, 3),
        "flat": torch.randn(70_001),
    }


def _file(folder: Path, kind: str, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / f"model{kind}"
    if kind == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", [".safetensors", ".pt"])
@pytest.mark.parametrize(("stored", "wanted"), [*itertools.product(DTYPES, DTYPES)], ids=str)
def test_values_arrive_converted(
    stored: torch.dtype,
    wanted: torch.dtype,
    kind: str,
    device: str,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in tensors.items()}
    with open_tensors(_file(tmp_path, kind, tensors)) as file:
        pieces = [
            Piece(name, torch.full(tensor.shape, torch.nan, dtype=wanted, device=device))
            for name, tensor in tensors.items()
        ]
        assert file.extents.keys() >= {"long", "short", "flat"}, "read by the core, not by torch"
        landed = list(bring(file, pieces, SMALL))
    assert sorted(landed) == list(range(len(pieces)))
    assert all(torch.equal(target.cpu(), tensors[name].to(wanted)) for name, target in pieces)


def test_parts_of_a_larger_tensor_are_targets(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with open_tensors(_file(tmp_path, ".safetensors", tensors)) as file:
        stacked = torch.zeros(302, 1001)
        for _ in bring(file, [Piece("long", stacked[1:301])]):
            pass
    assert torch.equal(stacked[1:301], tensors["long"])
    assert not stacked[0].any()
    assert not stacked[301].any()


def test_what_is_not_in_one_piece_is_read_by_torch(tmp_path: Path) -> None:
    whole = torch.randn(40, 30)
    path = tmp_path / "model.pt"
    torch.save({"turned": whole.t(), "part": whole[3:9], "whole": whole}, path)
    with open_tensors(path) as file:
        assert file.extents.keys() == {"part", "whole"}
        pieces = [Piece("turned", torch.empty(30, 40)), Piece("part", torch.empty(6, 30))]
        assert sorted(bring(file, pieces)) == [0, 1]
    assert torch.equal(pieces[0].target, whole.t())
    assert torch.equal(pieces[1].target, whole[3:9])


def test_files_from_before_archives_are_read_by_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"w": torch.arange(6.0)}, path, _use_new_zipfile_serialization=False)
    with open_tensors(path) as file:
        assert not file.extents
        pieces = [Piece("w", torch.empty(6))]
        assert list(bring(file, pieces)) == [0]
    assert torch.equal(pieces[0].target, torch.arange(6.0))


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16], ids=str)
def test_nothing_is_written_after_it_was_abandoned(wanted: torch.dtype, tmp_path: Path) -> None:
    tensors = {f"t{index}": torch.ones(100_000) for index in range(8)}
    with open_tensors(_file(tmp_path, ".safetensors", tensors)) as file:
        pieces = [Piece(name, torch.zeros(100_000, dtype=wanted)) for name in tensors]
        under_way = bring(file, pieces, SMALL)
        next(under_way)
        under_way.close()  # type: ignore[attr-defined]
    after = [piece.target.clone() for piece in pieces]
    assert all(map(torch.equal, after, [piece.target for piece in pieces]))


def test_a_file_that_was_cut_is_an_error_and_not_a_wait(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = _file(tmp_path, ".safetensors", tensors)
    with open_tensors(path) as file:
        with path.open("rb+") as stream:
            stream.truncate(path.stat().st_size - 1000)
        pieces = [Piece(name, torch.empty_like(tensor)) for name, tensor in tensors.items()]
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            list(bring(file, pieces, SMALL))


def test_stretches_of_files_go_through_a_window(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    content = torch.randn(50_000)
    path.write_bytes(content.numpy().tobytes())
    ring = Ring(torch.device("cpu"), 2, 64 << 10)
    plain, rounded = torch.zeros(200_000, dtype=torch.uint8), torch.zeros(80_000, dtype=torch.uint8)
    parts = [
        (Extent(path, 0, 200_000), False, plain),
        (Extent(path, 40_000, 200_000), True, rounded),
    ]
    for _ in range(2):  # the ring is used again
        send(parts, ring)
        assert torch.equal(plain.view(torch.float32), content)
        assert torch.equal(rounded.view(torch.bfloat16), content[10_000:].to(torch.bfloat16))
        plain.zero_()
        rounded.zero_()


@pytest.mark.parametrize(("word", "direct"), [("on", True), ("off", False), ("", False)])
def test_checkpoints_are_read_past_the_page_cache_where_asked(
    word: str,
    direct: bool,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = _file(tmp_path, ".safetensors", tensors)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the temporary folder has no direct reads")
    monkeypatch.setenv("COSMOS_FAST_DIRECT_READS", word)
    with open_tensors(path) as file:
        pieces = [Piece(name, torch.empty_like(tensor)) for name, tensor in tensors.items()]
        under_way = bring(file, pieces)
        flags = [_flags_of_open_files(path) for _ in under_way]
    assert any(one & os.O_DIRECT for seen in flags for one in seen) is direct
    assert all(torch.equal(piece.target, tensors[piece.name]) for piece in pieces)


def _flags_of_open_files(path: Path) -> list[int]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it was that of the listing
            if link.readlink() == path:
                told = (Path("/proc/self/fdinfo") / link.name).read_text()
                found.append(int(told.split("flags:")[1].split()[0], 8))
    return found


@pytest.mark.parametrize(
    ("processors", "files", "threads"),
    [
        (128, {}, 16),
        (16, {}, 16),
        (6, {}, 6),
        (1, {}, 2),
        (128, {"cpu.max": "max 100000\n"}, 16),
        (128, {"cpu.max": "450000 100000\n"}, 4),
        (3, {"cpu.max": "450000 100000\n"}, 3),
        (128, {"cpu.max": "50000 100000\n"}, 2),
        (128, {"cpu.max": "damaged"}, 16),
        (128, {"cpu/cpu.cfs_quota_us": "500000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 5),
        (128, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
    ],
    ids=str,
)
def test_as_many_threads_read_as_have_a_processor(
    processors: int,
    files: dict[str, str],
    threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to 16; two at least, of which one reads while the other waits."""
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(bringing, "_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    assert Reading().usable_threads == threads


def test_a_checkpoint_is_read_by_the_threads_that_are_asked_for(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default too: what is told to the reader is what the settings say."""
    told: list[int] = []

    def watched(*given: object, threads: int, **options: object) -> WeightReader:
        told.append(threads)
        return WeightReader(*given, threads=threads, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bringing, "WeightReader", watched)
    monkeypatch.setattr(bringing, "usable_processors", lambda: 11)
    with open_tensors(_file(tmp_path, ".safetensors", tensors)) as file:
        made = torch.full(tensors["long"].shape, torch.nan)
        assert list(bring(file, [Piece("long", made)])) == [0]
        assert list(bring(file, [Piece("long", made)], SMALL)) == [0]
    assert torch.equal(made, tensors["long"])
    assert told == [11, SMALL.threads]
