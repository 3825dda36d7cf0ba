"""Our writers against the official readers; a failure leaves nothing under any name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from cosmos_fast.weights.tensor_files import open_tensors
from cosmos_fast.weights.tensor_writers import Spec, write_pt, write_safetensors, write_sharded

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
SPECS = st.dictionaries(
    NAMES,
    st.builds(
        Spec,
        st.lists(st.integers(1, 5), max_size=4).map(tuple),
        st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    ),
    min_size=1,
    max_size=6,
)


def tensors_of(specs: dict[str, Spec]) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(spec.shape, dtype=torch.float32).to(spec.dtype)
        for name, spec in specs.items()
    }


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype
        for name in ours
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(specs=SPECS)
def test_safetensors_are_read_by_the_official_reader(
    specs: dict[str, Spec], tmp_path: Path
) -> None:
    tensors = tensors_of(specs)
    path = tmp_path / "out.safetensors"
    write_safetensors(path, specs, tensors.__getitem__, durable=False)
    assert equal(load_file(path), tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(specs=SPECS)
def test_several_threads_write_the_same_file(specs: dict[str, Spec], tmp_path: Path) -> None:
    tensors = tensors_of(specs)
    one, several = tmp_path / "one.safetensors", tmp_path / "several.safetensors"
    write_safetensors(one, specs, tensors.__getitem__, durable=False)
    write_safetensors(several, specs, tensors.__getitem__, durable=False, threads=5)
    assert one.read_bytes() == several.read_bytes()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(specs=SPECS)
def test_pt_is_read_weights_only(specs: dict[str, Spec], tmp_path: Path) -> None:
    tensors = tensors_of(specs)
    path = tmp_path / "out.pt"
    write_pt(path, specs, tensors.__getitem__, durable=False)
    assert equal(torch.load(path, weights_only=True), tensors)


def test_pt_holds_no_more_than_its_tensors(tmp_path: Path) -> None:
    whole = torch.randn(1000, 64)
    path = tmp_path / "out.pt"
    write_pt(path, {"rows": Spec((10, 64), torch.float32)}, lambda _: whole[5:15])
    assert path.stat().st_size < 10 * 64 * 4 + 4096
    assert torch.equal(torch.load(path, weights_only=True)["rows"], whole[5:15])


@pytest.mark.parametrize("limit", [1, 100, 250, 10_000])
def test_shards_hold_at_most_the_limit(tmp_path: Path, limit: int) -> None:
    specs = {f"t{i}": Spec((i + 1, 3), torch.float32) for i in range(8)}
    tensors = tensors_of(specs)
    path = write_sharded(tmp_path, "model", specs, tensors.__getitem__, shard_bytes=limit)
    total = sum(spec.nbytes for spec in specs.values())
    assert path.name == ("model.safetensors" if limit >= total else "model.safetensors.index.json")
    for shard in tmp_path.glob("*-of-*.safetensors"):
        held = load_file(shard)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= limit
    with open_tensors(path) as file:
        assert equal({name: file.read(name) for name in file.entries}, tensors)


@pytest.mark.parametrize("kind", ["safetensors", "threads", "shard", "pt"])
def test_a_failure_half_way_leaves_nothing(tmp_path: Path, kind: str) -> None:
    specs = {f"t{i}": Spec((100,), torch.float32) for i in range(4)}

    def read(name: str) -> torch.Tensor:
        if name == "t2":
            raise OSError("the source is gone")
        return torch.zeros(100)

    write = {
        "safetensors": lambda: write_safetensors(tmp_path / "x.safetensors", specs, read),
        "threads": lambda: write_safetensors(tmp_path / "x.safetensors", specs, read, threads=3),
        "shard": lambda: write_sharded(tmp_path, "x", specs, read, shard_bytes=1200),
        "pt": lambda: write_pt(tmp_path / "x.pt", specs, read),
    }[kind]
    with pytest.raises(OSError, match="gone"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_replaced_keeps_its_readers(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    specs = {"t": Spec((1000,), torch.float32)}
    write_safetensors(path, specs, lambda _: torch.ones(1000))
    with open_tensors(path) as file:
        write_safetensors(path, specs, lambda _: torch.zeros(1000))
        assert file.read("t").all()
    with open_tensors(path) as file:
        assert not file.read("t").any()
