"""Loading: every tensor accounted for by name, shape, dtype and finiteness, or refused."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attacks.checkpoints.small import MODEL, small_checkpoint
from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights import (
    CheckpointFiles,
    find_checkpoint,
    load_dit,
    load_text_encoder,
    load_vae,
)
from cosmos_fast.weights.tensor_writers import Spec, write_safetensors, write_sharded


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    small_checkpoint(root, shard_bytes=100_000)
    return root


def original(root: Path) -> CheckpointFiles:
    return find_checkpoint(MODEL, checkpoint_root=root)


def with_dit(files: CheckpointFiles, folder: Path, tensors: dict[str, Any]) -> CheckpointFiles:
    path = folder / "model.pt"
    torch.save(tensors, path)
    return dataclasses.replace(files, dit=path)


def stored(files: CheckpointFiles) -> dict[str, Any]:
    return torch.load(files.dit, weights_only=True)


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_both_layouts_give_the_same_parameters_bit_for_bit(made: Path) -> None:
    nvidia, diffusers = original(made), find_checkpoint(made / "diffusers" / MODEL)
    assert (nvidia.layout, diffusers.layout) == ("nvidia", "diffusers")
    assert diffusers.dit.name.endswith(".index.json"), "sharded"
    assert nvidia.profile == diffusers.profile
    for load, dtype in ((load_dit, torch.bfloat16), (load_vae, torch.float32)):
        assert equal(load(nvidia, "cpu", dtype), load(diffusers, "cpu", dtype))
    (_, one), (_, other) = load_text_encoder(nvidia, "cpu"), load_text_encoder(diffusers, "cpu")
    assert equal(one, other)


def test_parameters_are_what_the_file_holds(made: Path) -> None:
    files = original(made)
    content = stored(files)
    ours = load_dit(files, "cpu", torch.bfloat16)
    for i in range(files.profile.dit.num_layers):
        stacked = [content[f"net.blocks.{i}.self_attn.{n}_proj.weight"] for n in "qkv"]
        assert torch.equal(ours[f"blocks.{i}.self_attn.qkv_proj.weight"], torch.cat(stacked))
        stacked = [content[f"net.blocks.{i}.cross_attn.{n}_proj.weight"] for n in "kv"]
        assert torch.equal(ours[f"blocks.{i}.cross_attn.kv_proj.weight"], torch.cat(stacked))
    assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in content.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_the_one_asked_for(made: Path, dtype: torch.dtype) -> None:
    for load in (load_dit, load_vae):
        assert {tensor.dtype for tensor in load(original(made), "cpu", dtype).values()} == {dtype}


def test_text_encoder_keeps_its_stored_dtype(made: Path) -> None:
    config, stored_as = load_text_encoder(original(made), "cpu")
    _, wide = load_text_encoder(original(made), "cpu", torch.float32)
    assert {tensor.dtype for tensor in stored_as.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert "encoder.embed_tokens.weight" not in stored_as, "one tensor has one name"
    assert stored_as["shared.weight"].shape == (config.vocab_size, config.d_model)


def test_parameters_outlive_their_file(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = stored(original(made))
    save_file(content, path)
    files = dataclasses.replace(original(made), dit=path)
    before = load_dit(files, "cpu", torch.bfloat16)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    with path.open("r+b") as file:  # in place: a mapped view would change with it
        size = path.stat().st_size
        file.seek(size // 2)
        file.write(bytes(size // 2))
    assert equal(before, kept)


NAME = "net.blocks.1.mlp.layer2.weight"


def test_missing_tensor_is_named(made: Path, tmp_path: Path) -> None:
    content = stored(original(made))
    del content[NAME]
    files = with_dit(original(made), tmp_path, content)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}.*{re.escape(NAME)} is missing"):
        load_dit(files, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("net.blocks.1.mlp.layer3.weight", "left out silently"),
        ("net.blocks.2.mlp.layer1.weight", "left out silently"),
        ("blocks.0.mlp.layer1.weight", "left out silently"),
        ("net.blocks.0.self_attn.q_proj.lora_A.default.weight", "LoRA"),
        ("net.action_embedder_B_3D.fc2.weight", "action-conditioned"),
        ("net.view_embeddings.weight", "multiview"),
        ("net.crossattn_proj.0.weight", "Reason1"),
        ("net.pos_embedder.seq2", "left out silently"),
        ("net.accum_other", "left out silently"),
        ("_extra_state_of_mine", "left out silently"),
    ],
)
def test_extra_tensor_is_named(made: Path, tmp_path: Path, name: str, word: str) -> None:
    files = with_dit(original(made), tmp_path, {**stored(original(made)), name: torch.zeros(3)})
    with pytest.raises(CheckpointError, match=re.escape(name)) as refusal:
        load_dit(files, "cpu", torch.float32)
    assert word in str(refusal.value)


def test_extra_object_is_named(made: Path, tmp_path: Path) -> None:
    files = with_dit(original(made), tmp_path, {**stored(original(made)), "net.step": 3})
    with pytest.raises(CheckpointError, match=r"net\.step"):
        load_dit(files, "cpu", torch.float32)


def test_names_that_carry_no_weights_are_ignored(made: Path, tmp_path: Path) -> None:
    content = stored(original(made))
    nothing = {
        "net.pos_embedder.seq": torch.arange(128.0),
        "net.pos_embedder.dim_spatial_range": torch.zeros(21),
        "net.pos_embedder.dim_temporal_range": torch.zeros(22),
        "net.blocks.0.self_attn.q_norm._extra_state": io.BytesIO(b"state"),
        "net.blocks.1.self_attn.k_norm._extra_state": torch.zeros(0, dtype=torch.uint8),
        "net.accum_video_sample_counter": torch.zeros(()),
        "net.accum_image_sample_counter": torch.zeros(()),
        "net.accum_iteration": torch.zeros(()),
        "net.accum_train_in_hours": torch.full((), float("nan")),
        "net_ema.final_layer.linear.weight": torch.full((2, 2), float("nan")),
    }
    files = with_dit(original(made), tmp_path, {**nothing, **content})
    expected = load_dit(original(made), "cpu", torch.bfloat16)
    assert equal(load_dit(files, "cpu", torch.bfloat16), expected)


def test_wrong_shape_is_named(made: Path, tmp_path: Path) -> None:
    content = stored(original(made))
    content[NAME] = content[NAME].T.contiguous()
    files = with_dit(original(made), tmp_path, content)
    wrong, right = tuple(content[NAME].shape), tuple(content[NAME].T.shape)
    with pytest.raises(CheckpointError, match=re.escape(NAME)) as refusal:
        load_dit(files, "cpu", torch.float32)
    assert str(wrong) in str(refusal.value)
    assert str(right) in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_wrong_dtype_is_named(made: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    content = stored(original(made))
    content[NAME] = content[NAME].to(dtype)
    files = with_dit(original(made), tmp_path, content)
    with pytest.raises(CheckpointError, match=re.escape(NAME)) as refusal:
        load_dit(files, "cpu", torch.float32)
    assert str(dtype) in str(refusal.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name",
    ["net.x_embedder.proj.1.weight", "net.blocks.1.self_attn.k_proj.weight",
     "net.blocks.0.cross_attn.v_proj.weight", "net.final_layer.linear.weight"],
)  # fmt: skip
def test_value_that_is_not_finite_is_named(
    made: Path, tmp_path: Path, name: str, value: float
) -> None:
    content = stored(original(made))
    content[name][-1, -1] = value
    files = with_dit(original(made), tmp_path, content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} holds 1 values"):
        load_dit(files, "cpu", torch.bfloat16)


def test_value_that_overflows_the_wanted_dtype_is_named(made: Path, tmp_path: Path) -> None:
    content = stored(original(made))
    content[NAME][0, 0] = 1e6
    files = with_dit(original(made), tmp_path, content)
    with pytest.raises(CheckpointError, match=r"overflow torch\.float16"):
        load_dit(files, "cpu", torch.float16)
    load_dit(files, "cpu", torch.bfloat16)


def test_moving_average(made: Path, tmp_path: Path) -> None:
    content = stored(original(made))
    average = {name.replace("net.", "net_ema.", 1): t + 1 for name, t in content.items()}
    files = with_dit(original(made), tmp_path, {**content, **average})
    plain = load_dit(files, "cpu", torch.float32)
    ema = load_dit(dataclasses.replace(files, ema=True), "cpu", torch.float32)
    assert equal(plain, load_dit(original(made), "cpu", torch.float32))
    name = "final_layer.linear.weight"
    assert torch.equal(ema[name], average[f"net_ema.{name}"].float())
    with pytest.raises(CheckpointError, match="net_ema"):
        load_dit(dataclasses.replace(original(made), ema=True), "cpu", torch.float32)


@pytest.mark.parametrize("prefix", ["net.", ""], ids=["net.", "no prefix"])
def test_single_safetensors_file_with_nvidia_names(made: Path, tmp_path: Path, prefix: str) -> None:
    content = {prefix + n.removeprefix("net."): t for n, t in stored(original(made)).items()}
    save_file(content, tmp_path / "repacked.safetensors")
    files = find_checkpoint(
        tmp_path / "repacked.safetensors",
        vae=original(made).vae,
        profile=original(made).profile,
    )
    assert files.layout == "nvidia"
    expected = load_dit(original(made), "cpu", torch.bfloat16)
    assert equal(load_dit(files, "cpu", torch.bfloat16), expected)


@pytest.mark.parametrize("fault", ["moved", "doubled", "dropped", "unlisted"])
def test_shards_that_do_not_fit_their_index(made: Path, tmp_path: Path, fault: str) -> None:
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(6)}
    specs = {name: Spec((10,), torch.float32) for name in tensors}
    index = write_sharded(tmp_path, "model", specs, tensors.__getitem__, shard_bytes=80)
    shards = sorted(tmp_path.glob("*-of-*"))
    assert len(shards) == 3
    content = json.loads(index.read_text())
    if fault == "moved":
        content["weight_map"]["t0"] = shards[2].name
    elif fault == "doubled":
        save_file(load_file(shards[1]) | {"t0": tensors["t0"]}, shards[1])
    elif fault == "dropped":
        save_file({"t0": tensors["t0"]}, shards[0])
    else:
        del content["weight_map"]["t5"]
    index.write_text(json.dumps(content))
    files = dataclasses.replace(original(made), dit=index)
    name = {"moved": "t0", "doubled": "t0", "dropped": "t1", "unlisted": "t5"}[fault]
    with pytest.raises(CheckpointError, match=name):
        load_dit(files, "cpu", torch.float32)


def test_vae_of_another_size_is_refused(made: Path, tmp_path: Path) -> None:
    files = original(made)
    profile = dataclasses.replace(
        files.profile, vae=dataclasses.replace(files.profile.vae, base_dim=16)
    )
    with pytest.raises(CheckpointError, match="has shape"):
        load_vae(dataclasses.replace(files, profile=profile), "cpu", torch.float32)


def t5_folder(made: Path, folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    source = made / "google-t5" / "t5-11b"
    stated = json.loads((source / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(stated))
    (folder / "tokenizer.json").write_text((source / "tokenizer.json").read_text())
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def t5_tensors(made: Path) -> dict[str, torch.Tensor]:
    return load_file(made / "google-t5" / "t5-11b" / "model.safetensors")


@pytest.mark.parametrize("form", ["shared", "embed_tokens", "both", "whole T5"])
def test_t5_embedding_under_either_name(made: Path, tmp_path: Path, form: str) -> None:
    tensors = t5_tensors(made)
    embedding = tensors["shared.weight"]
    if form != "shared":
        tensors["encoder.embed_tokens.weight"] = embedding.clone()
    if form == "embed_tokens":
        del tensors["shared.weight"]
    if form == "whole T5":
        tensors["decoder.embed_tokens.weight"] = embedding.clone()
        tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.zeros(2, 2)
        tensors["lm_head.weight"] = torch.zeros(2, 2)
    files = original(made)
    folder = t5_folder(made, tmp_path, tensors)
    _, ours = load_text_encoder(dataclasses.replace(files, text_encoder=folder), "cpu")
    assert equal(ours, load_text_encoder(files, "cpu")[1])


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("two embeddings", "differ"),
        ("missing", "wo.weight"),
        ("mixed dtypes", "several dtypes"),
        ("NaN", "not finite"),
        ("gated", "v1.1"),
        ("another model", "model_type"),
        ("layers", "encoder.block.1"),
        ("no size", "d_model"),
    ],
)
def test_t5_that_is_not_ours_is_refused(made: Path, tmp_path: Path, fault: str, word: str) -> None:
    tensors = t5_tensors(made)
    config: dict[str, Any] = {}
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    match fault:
        case "two embeddings":
            tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1
        case "missing":
            del tensors[name]
        case "mixed dtypes":
            tensors[name] = tensors[name].float()
        case "NaN":
            tensors[name][0, 0] = float("nan")
        case "gated":
            config = {"feed_forward_proj": "gated-gelu"}
        case "another model":
            config = {"model_type": "bert"}
        case "layers":
            config = {"num_layers": 1}
        case "no size":
            config = {"d_model": "32"}
    folder = t5_folder(made, tmp_path, tensors, **config)
    files = dataclasses.replace(original(made), text_encoder=folder)
    with pytest.raises(CheckpointError, match=re.escape(word)):
        load_text_encoder(files, "cpu")


@pytest.mark.slow
def test_loading_holds_about_one_tensor_beyond_the_weights(tmp_path: Path) -> None:
    """Anonymous memory in a fresh process: the file is mapped, never held a second time."""
    shape = (2048, 2048)
    specs = {f"t{i}": Spec(shape, torch.float32) for i in range(24)}
    path = tmp_path / "big.safetensors"
    write_safetensors(path, specs, lambda _: torch.ones(shape))
    code = f"""
import re, threading, torch
from pathlib import Path
from cosmos_fast.weights.key_map import KeyMap, Piece
from cosmos_fast.weights.load import read_parameters
from cosmos_fast.weights.tensor_files import open_tensors
def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]) * 1024
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
pieces = [Piece(f"t{{i}}", {shape}) for i in range(24)]
key_map = KeyMap("test", {{f"w{{i}}": tuple(pieces[2 * i : 2 * i + 2]) for i in range(12)}})
with open_tensors(Path({str(path)!r})) as file:
    before = anonymous()
    thread = threading.Thread(target=watch); thread.start()
    weights = read_parameters(file, key_map, "cpu", torch.bfloat16)
    done.set(); thread.join()
held = sum(tensor.nbytes for tensor in weights.values())
print((peak - before - held) / weights["w0"].nbytes)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1, "in units of one parameter"
