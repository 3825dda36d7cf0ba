"""Weight files: hostile ones refused in bounded time and memory, good ones read to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from attacks.safetensors import generate as corpus
from cosmos_fast._core import WeightReader, archive_directory, safetensors_header
from cosmos_fast.errors import Cancelled, CheckpointError, InputError

MIB = 1 << 20


@pytest.mark.parametrize("name", corpus.SAFETENSORS)
def test_hostile_safetensors_are_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    corpus.SAFETENSORS[name](file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        safetensors_header(file)


@pytest.mark.parametrize("name", corpus.ARCHIVES)
def test_hostile_archives_are_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    corpus.ARCHIVES[name](file)
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        archive_directory(file)


def test_the_corpus_is_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, corpus.__file__, tmp_path], capture_output=True, check=True
    )
    assert not run.stderr
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(corpus.SAFETENSORS) + len(corpus.ARCHIVES) >= 60
    judge = """
import json, resource, sys, time
from cosmos_fast._core import archive_directory, safetensors_header
from cosmos_fast.errors import CheckpointError
worst = {}
for path in sys.argv[1:]:
    read = archive_directory if "archive" in path else safetensors_header
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        read(path)
    except CheckpointError:
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        worst[path] = (time.process_time() - start, more / 1024)
print(json.dumps(worst))
"""
    refused: dict[str, tuple[float, float]] = json.loads(
        subprocess.run(
            [sys.executable, "-c", judge, *files], capture_output=True, check=True
        ).stdout
    )
    assert set(refused) == set(map(str, files))
    assert max(seconds for seconds, _ in refused.values()) < 5
    # Two files have a header as long as the limit, which has to be looked at.
    assert max(mib for _, mib in refused.values()) < 200


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing", "device"])
def test_what_is_no_regular_file_is_refused_without_waiting(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    for read in (safetensors_header, archive_directory):
        with pytest.raises(CheckpointError, match=path.name):
            read(path)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "blocks.0.weight": torch.randn(300, 1000, generator=generator),
        "blocks.1.weight": torch.randn(77, 13, generator=generator).to(torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(3, dtype=torch.int64),
    }


def test_safetensors_are_described_as_they_were_written(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    found, metadata = safetensors_header(file)
    assert metadata == {"format": "pt"}
    assert {name: tuple(shape) for name, _, shape, _, _ in found} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    content = file.read_bytes()
    for name, _, _, start, end in found:
        assert (
            content[start:end]
            == tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )


def test_storages_of_a_pt_file_are_found(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(tensors, file)
    entries = {name.partition("/")[2]: (start, end) for name, start, end in archive_directory(file)}
    content = file.read_bytes()
    for key, tensor in enumerate(tensors.values()):
        start, end = entries[f"data/{key}"]
        assert (
            content[start:end] == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("rounded", [False, True], ids=["as stored", "to bfloat16"])
def test_tensors_land_where_they_belong(direct: bool, rounded: bool, tmp_path: Path) -> None:
    values = torch.randn(1_500_001)
    values[:3] = torch.tensor([float("nan"), float("inf"), -0.0])
    save_file({"odd": torch.ones(3, dtype=torch.uint8), "values": values}, tmp_path / "w")
    (_, _, _, start, end) = next(
        one for one in safetensors_header(tmp_path / "w")[0] if one[0] == "values"
    )
    target = torch.empty(len(values), dtype=torch.bfloat16 if rounded else torch.float32)
    half = 4 * 700_000
    step = half // 2 if rounded else half
    transfers = [
        (start, half, target.data_ptr(), rounded, 0),
        (start + half, end - start - half, target.data_ptr() + step, rounded, 0),
    ]
    reader = WeightReader(
        tmp_path / "w", transfers, target, threads=3, piece_bytes=256 << 10, direct=direct
    )
    reader.wait(1)
    reader.wait(0)
    torch.testing.assert_close(target, values.to(target.dtype), rtol=0, atol=0, equal_nan=True)


def test_waiting_leaves_the_interpreter_to_others(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(2 * MIB))
    memory = torch.empty(MIB, dtype=torch.uint8)
    transfers = [(0, MIB, memory.data_ptr(), False, 0), (MIB, MIB, memory.data_ptr(), False, 1)]
    reader = WeightReader(tmp_path / "w", transfers, memory, threads=2, piece_bytes=MIB)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            reader.wait(1)
        except Cancelled as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    for _ in range(5):  # would not come round if the lock were held
        time.sleep(0.01)
    assert waiting.is_alive()
    reader.stop()
    waiting.join(5)
    assert len(errors) == 1


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "w"
    file.write_bytes(bytes(2 * MIB))
    memory = torch.empty(MIB, dtype=torch.uint8)
    transfers = [(0, MIB, memory.data_ptr(), False, 0), (MIB, MIB, memory.data_ptr(), False, 1)]
    reader = WeightReader(file, transfers, memory, threads=1, piece_bytes=MIB)
    reader.wait(0)
    os.truncate(file, MIB + 5)
    reader.release(1)
    with pytest.raises(CheckpointError, match="cut"):
        reader.wait(1)


@pytest.mark.parametrize(
    ("changes", "options", "error"),
    [
        pytest.param({"bytes": MIB + 1}, {}, CheckpointError, id="beyond the file"),
        pytest.param({"address": 0}, {}, InputError, id="null"),
        pytest.param({"gate": 1}, {}, InputError, id="waits for itself"),
        pytest.param({"rounded": True, "bytes": 7}, {}, InputError, id="part of a value"),
        pytest.param({}, {"threads": 0}, InputError, id="no thread"),
        pytest.param({}, {"piece_bytes": 1000}, InputError, id="small pieces"),
    ],
)
def test_unreasonable_transfers_are_refused(
    changes: dict[str, Any], options: dict[str, int], error: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "w").write_bytes(bytes(MIB))
    memory = torch.empty(MIB, dtype=torch.uint8)
    good = {"offset": 0, "bytes": MIB, "address": memory.data_ptr(), "rounded": False, "gate": 0}
    transfer = tuple((good | changes).values())
    with pytest.raises(error):
        _reader(tmp_path / "w", transfer, memory, **options)


def _reader(
    file: Path, transfer: Any, memory: object, threads: int = 2, piece_bytes: int = MIB
) -> WeightReader:
    return WeightReader(file, [transfer], memory, threads=threads, piece_bytes=piece_bytes)
