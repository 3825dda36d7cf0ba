"""Converting between layouts: every value arrives, and a failure leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attacks.checkpoints.small import MODEL, small_checkpoint
from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.weights import (
    CheckpointFiles,
    find_checkpoint,
    load_dit,
    load_text_encoder,
    load_vae,
)
from cosmos_fast.weights.convert import convert, to_diffusers, to_nvidia


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    small_checkpoint(root)
    return root


def everything(files: CheckpointFiles) -> dict[str, torch.Tensor]:
    parts = {
        "dit": load_dit(files, "cpu", torch.bfloat16),
        "vae": load_vae(files, "cpu", torch.float32),
        "text": load_text_encoder(files, "cpu")[1],
    }
    return {f"{part}.{name}": tensor for part in parts for name, tensor in parts[part].items()}


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_nvidia_to_diffusers_and_back(made: Path, tmp_path: Path) -> None:
    start = find_checkpoint(made / MODEL)
    told: list[str] = []
    middle = convert(
        start, tmp_path / "pipeline", "diffusers", shard_bytes=100_000, on_file=told.append
    )
    there = find_checkpoint(middle)
    end = find_checkpoint(convert(there, tmp_path / "back", "nvidia"))
    assert told == ["transformer", "vae", "text_encoder"]
    assert there.layout == "diffusers"
    assert there.dit.name.endswith(".index.json")
    assert end.layout == "nvidia"
    assert end.dit.name == "model.pt"
    assert start.profile == there.profile == end.profile
    assert equal(everything(start), everything(there))
    assert equal(everything(start), everything(end))


@pytest.mark.parametrize("prefix", ["net.", ""], ids=["net.", "no prefix"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("source", [MODEL, f"diffusers/{MODEL}"])
def test_to_one_file(made: Path, tmp_path: Path, source: str, suffix: str, prefix: Any) -> None:
    start = find_checkpoint(made / source)
    path = tmp_path / "out" / f"transformer{suffix}"
    convert(start, path, "file", prefix=prefix)
    found = find_checkpoint(path, vae=start.vae)
    assert found.profile == start.profile
    assert equal(load_dit(found, "cpu", torch.float32), load_dit(start, "cpu", torch.float32))
    if suffix == ".safetensors":
        assert all(name.startswith(prefix or "blocks") or not prefix for name in load_file(path))
        assert f"{prefix}x_embedder.proj.1.weight" in load_file(path)


def test_files_are_readable_by_diffusers_and_transformers(made: Path, tmp_path: Path) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    transformers: Any = pytest.importorskip("transformers")
    start = find_checkpoint(made / MODEL)
    folder = convert(start, tmp_path / "pipeline", "diffusers", shard_bytes=100_000)
    transformer = diffusers.CosmosTransformer3DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.bfloat16
    )
    ours = to_diffusers(load_dit(start, "cpu", torch.bfloat16), start.profile.dit)
    assert equal(dict(transformer.state_dict()), ours)
    vae = diffusers.AutoencoderKLWan.from_pretrained(folder / "vae")
    assert equal(dict(vae.state_dict()), load_vae(start, "cpu", torch.float32))
    text = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder")
    theirs = dict(text.state_dict())
    assert theirs.pop("encoder.embed_tokens.weight") is not None  # the same tensor once more
    assert equal(theirs, load_text_encoder(start, "cpu")[1])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    assert scheduler.config.use_karras_sigmas
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "Cosmos2VideoToWorldPipeline"
    for part, named in index.items():
        if not part.startswith("_") and named != [None, None]:
            assert (folder / part).is_dir()
            assert hasattr(
                {"diffusers": diffusers, "transformers": transformers}[named[0]], named[1]
            )


def test_renaming_functions_are_each_others_source(made: Path) -> None:
    files = find_checkpoint(made / MODEL)
    ours = load_dit(files, "cpu", torch.bfloat16)
    stored = torch.load(files.dit, weights_only=True)
    assert equal(to_nvidia(ours, files.profile.dit), stored)
    theirs = load_file(
        made / "diffusers" / MODEL / "transformer" / "diffusion_pytorch_model.safetensors"
    )
    assert equal(to_diffusers(ours, files.profile.dit), theirs)
    del ours["final_layer.linear.weight"]
    with pytest.raises(CheckpointError, match=r"final_layer\.linear\.weight"):
        to_nvidia(ours, files.profile.dit)


def test_text_encoder_is_linked_where_it_can_be(made: Path, tmp_path: Path) -> None:
    start = find_checkpoint(made / MODEL)
    folder = convert(start, tmp_path / "pipeline", "diffusers")
    source = made / "google-t5/t5-11b/model.safetensors"
    assert (folder / "text_encoder/model.safetensors").samefile(source)
    plain = convert(start, tmp_path / "without", "diffusers", text_encoder=False)
    assert not (plain / "text_encoder").exists()


def test_a_whole_pickled_t5_becomes_its_encoder_in_safetensors(made: Path, tmp_path: Path) -> None:
    source = made / "google-t5" / "t5-11b"
    tensors = {n: t.float() for n, t in load_file(source / "model.safetensors").items()}
    tensors["decoder.final_layer_norm.weight"] = torch.ones(3)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    whole = tmp_path / "t5"
    whole.mkdir()
    torch.save(tensors, whole / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json"):
        (whole / name).write_bytes((source / name).read_bytes())
    start = find_checkpoint(made / MODEL, text_encoder=whole)
    folder = convert(start, tmp_path / "pipeline", "diffusers", text_dtype=torch.bfloat16)
    found = load_file(folder / "text_encoder" / "model.safetensors")
    assert equal(found, load_file(source / "model.safetensors"))
    assert json.loads((folder / "text_encoder/config.json").read_text())["dtype"] == "bfloat16"


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("to", ["diffusers", "nvidia", "file"])
def test_a_value_that_is_not_finite_leaves_nothing(made: Path, tmp_path: Path, to: Any) -> None:
    start = find_checkpoint(made / MODEL)
    content = torch.load(start.dit, weights_only=True)
    content["net.blocks.1.mlp.layer2.weight"][0, 0] = float("nan")
    (tmp_path / "broken").mkdir()
    torch.save(content, tmp_path / "broken" / "model.pt")
    broken = find_checkpoint(tmp_path / "broken" / "model.pt", vae=start.vae, profile=start.profile)
    name = "x.safetensors" if to == "file" else "out"
    (tmp_path / "target").mkdir()
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.layer2"):
        convert(broken, tmp_path / "target" / name, to)
    assert leftovers(tmp_path / "target") == []


def test_an_existing_destination_is_refused(made: Path, tmp_path: Path) -> None:
    start = find_checkpoint(made / MODEL)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists"):
        convert(start, tmp_path / "there", "diffusers")
    with pytest.raises(InputError, match="safetensors"):
        convert(start, tmp_path / "weights", "file")


def test_a_description_of_another_model_is_not_overwritten(made: Path, tmp_path: Path) -> None:
    start = find_checkpoint(made / MODEL)
    convert(start, tmp_path / "one.safetensors", "file")
    convert(start, tmp_path / "two.safetensors", "file")
    described = tmp_path / "cosmos_fast.json"
    content = json.loads(described.read_text()) | {"fps": 3}
    described.write_text(json.dumps(content))
    with pytest.raises(InputError, match="another model"):
        convert(start, tmp_path / "three.safetensors", "file")
    assert leftovers(tmp_path) == ["cosmos_fast.json", "one.safetensors", "two.safetensors"]


def test_too_small_a_disk_is_told_before_anything_is_written(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=1 << 20))
    with pytest.raises(CheckpointError, match=r"GB are needed"):
        convert(find_checkpoint(made / MODEL), tmp_path / "out", "diffusers")
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(made: Path, tmp_path: Path) -> None:
    """A real limit: files of this process may not grow beyond 200 kB."""
    code = f"""
import resource, signal
from pathlib import Path
from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights import find_checkpoint
from cosmos_fast.weights.convert import convert
files = find_checkpoint(Path({str(made / MODEL)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for to, name in (("diffusers", "a"), ("nvidia", "b"), ("file", "c.safetensors"), ("file", "d.pt")):
    try:
        convert(files, Path({str(tmp_path / "out")!r}) / name, to)
    except CheckpointError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.count("cannot be written") >= 4, run.stdout + run.stderr
    assert leftovers(tmp_path / "out") == []


def test_a_copy_that_differs_is_not_kept(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that returns other bytes than it was given, at one tensor."""
    from cosmos_fast.weights import convert as module

    real = module.write_safetensors

    def faulty(path: Path, *arguments: Any, **options: Any) -> None:
        real(path, *arguments, **options)
        tensors = load_file(path)
        name = sorted(tensors)[3]
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] += 1
        save_file(tensors, path)

    monkeypatch.setattr(module, "write_safetensors", faulty)
    with pytest.raises(CheckpointError, match="differs"):
        convert(find_checkpoint(made / MODEL), tmp_path / "out" / "x.safetensors", "file")
    assert leftovers(tmp_path / "out") == []


def test_files_have_ordinary_permissions(made: Path, tmp_path: Path) -> None:
    folder = convert(find_checkpoint(made / MODEL), tmp_path / "out", "diffusers")
    assert folder.stat().st_mode & 0o777 == 0o755
    for path in folder.rglob("*"):
        assert os.access(path, os.R_OK)
        if path.is_file():
            assert path.stat().st_mode & 0o777 == 0o644
