"""The trained ball world that ships: whole, readable by others, exported strictly."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cosmos_fast as cf
from cosmos_fast.ballworld import FPS, NUM_FRAMES, SIZE, describe, render, sample
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.text import TextEncoder
from cosmos_fast.model.tokens import load_tokenizer
from cosmos_fast.types import TEXT_ROWS
from cosmos_fast.weights import (
    find_checkpoint,
    load_dit,
    load_text_encoder,
    load_vae,
    packaged_worlds,
)

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "python" / "cosmos_fast" / "assets" / "ballworld"


@pytest.fixture(autouse=True)
def _tools_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_manifest_names_every_file_and_its_digest() -> None:
    listed = json.loads((SHIPPED / "manifest.json").read_text())["files"]
    there = {path.relative_to(SHIPPED).as_posix(): path for path in SHIPPED.rglob("*")
             if path.is_file() and path.name != "manifest.json"}  # fmt: skip
    assert listed.keys() == there.keys()
    for name, path in there.items():
        data = path.read_bytes()
        assert listed[name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert sum(entry["bytes"] for entry in listed.values()) < 18e6


def test_the_model_card_says_what_it_is() -> None:
    card = (SHIPPED / "README.md").read_text()
    for said in ("license: apache-2.0", "toy model", "## Data", "## Training", "## Limits"):
        assert said in card
    assert "{" not in card.replace("{slowly|\nquickly}", "").replace(
        "{to the left|to the right|upwards|downwards}", ""
    )


def test_the_profile_is_that_of_the_page() -> None:
    assert "ballworld" in packaged_worlds()
    profile = find_checkpoint("ballworld").profile
    assert (profile.size, profile.num_frames, profile.fps) == (SIZE, NUM_FRAMES, FPS)
    assert profile.toy
    assert profile.negative_prompt is cf.NO_TEXT
    assert profile.guidance > 0
    assert (profile.dit.num_layers, profile.dit.width, profile.dit.text_dim) == (8, 192, 64)
    assert profile.dit.rope_scale == (1, 1, 1)
    assert len(set(profile.vae.latents_std)) == 16, "its own statistics"


def test_everything_is_stored_in_bfloat16() -> None:
    for path in SHIPPED.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}


def test_it_loads_by_name_and_makes_a_video() -> None:
    engine = cf.Video2World.from_pretrained("ballworld", device="cpu")
    scenes = sample(1, 3, "held-out")
    clip = engine.generate(render(scenes, 1)[0], describe(scenes)[0], num_frames=9, num_steps=2)
    assert clip.frames.shape == (9, *SIZE, 3)
    assert clip.report.model["toy"] is True
    assert clip.report.guardrail["verdict"] == "not applicable"
    assert clip.report.arguments["negative_prompt"] == "<no text>"
    picture = np.asarray(clip.frames)[0].astype(float)
    assert np.abs(picture - render(scenes, 1)[0, 0]).mean() < 2, "the given frame comes back"


def test_diffusers_and_transformers_load_it_strictly() -> None:
    from tools.ballworld.export import load_elsewhere

    modules = load_elsewhere(SHIPPED)
    ours = load_dit(find_checkpoint("ballworld"), "cpu", torch.float32)
    assert sum(p.numel() for p in modules["transformer"].parameters()) == sum(
        tensor.numel() for tensor in ours.values()
    )


def test_diffusers_transformer_agrees_on_trained_weights() -> None:
    from diffusers import CosmosTransformer3DModel

    theirs = CosmosTransformer3DModel.from_pretrained(SHIPPED / "transformer").float().eval()
    files = find_checkpoint("ballworld")
    dit = DiT(files.profile.dit, Ops(), rope_table="float32").requires_grad_(False)
    dit.load_state_dict(load_dit(files, "cpu", torch.float32))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, 16, 3, 4, 6), generator=generator)
    rows = torch.randn((1, TEXT_ROWS, 64), generator=generator)
    mask = torch.zeros((1, 1, 3, 4, 6))
    mask[:, :, :1] = 1
    times = torch.tensor([[1e-4, 0.6, 0.6]])
    with torch.no_grad():
        expected = theirs(
            hidden_states=x,
            timestep=times[:, None, :, None, None],
            encoder_hidden_states=rows,
            condition_mask=mask,
            padding_mask=torch.zeros((1, 1, 32, 48)),
            fps=24,  # the rate at which diffusers leaves the temporal angles alone
            return_dict=False,
        )[0]
        got = dit(x, times, mask, dit.text_context(rows))
    assert (got - expected).norm() / expected.norm() < 1e-5


def run_folder(folder: Path, **changes: Any) -> Path:
    """What a training run leaves, made from the shipped weights."""
    files = find_checkpoint("ballworld")
    folder.mkdir()
    dit = load_dit(files, "cpu", torch.bfloat16)
    text = load_text_encoder(files, "cpu")[1]
    named = {f"dit.{name}": tensor for name, tensor in dit.items()}
    named |= {f"text.{name}": tensor for name, tensor in text.items()}
    for name, tensor in changes.items():
        if tensor is None:
            del named[name]
        else:
            named[name] = tensor
    save_file(named, folder / "dit_average.safetensors")
    vae = load_vae(files, "cpu", torch.bfloat16)
    about = {
        "latents_mean": json.dumps(files.profile.vae.latents_mean),
        "latents_std": json.dumps(files.profile.vae.latents_std),
    }
    both = {f"{which}.{name}": tensor.clone() for which in ("average", "master")
            for name, tensor in vae.items()}  # fmt: skip
    save_file(both, folder / "vae.safetensors", about)
    tracking: dict[str, Any] = {
        group: {f"frame_{n}": 0.5 for n in (8, 16, 32)}
        for group in ("all", "one_ball", "two_balls")
    }
    settings = {"num_steps": files.profile.num_steps, "guidance": files.profile.guidance}
    held_out = {"settings": settings, "vae_psnr": 46.0, "tracking": {**tracking, "direction": 1.0}}
    (folder / "report.json").write_text(json.dumps({"held_out": held_out}))
    return folder


def test_export_writes_what_ships(tmp_path: Path) -> None:
    from tools.ballworld.export import export

    export(run_folder(tmp_path / "run"), tmp_path / "made")
    for path in SHIPPED.rglob("*"):
        name = path.relative_to(SHIPPED)
        if path.is_file() and path.name not in ("README.md", "manifest.json"):
            assert (tmp_path / "made" / name).read_bytes() == path.read_bytes(), name


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dit.final_layer.linear.weight": None}, "missing or not known"),
        ({"dit.blocks.0.extra.weight": torch.zeros(2, dtype=torch.bfloat16)}, "not known"),
        ({"dit.patch_embed.weight": torch.zeros((192, 68), dtype=torch.bfloat16)}, "shape"),
        ({"text.encoder.final_layer_norm.weight": torch.full((64,), torch.nan)}, "finite"),
    ],
    ids=["missing", "extra", "misshapen", "not-finite"],
)
def test_a_run_that_is_not_whole_is_refused(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    from tools.ballworld.export import export

    kept = tmp_path / "made"
    shutil.copytree(SHIPPED / "scheduler", kept)
    with pytest.raises(cf.CheckpointError, match=complaint):
        export(run_folder(tmp_path / "run", **changes), kept)
    assert [path.name for path in kept.iterdir()] == ["scheduler_config.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "made"}


def test_training_reads_text_as_the_engine_does() -> None:
    from tools.ballworld.text import TextTwin
    from tools.ballworld.words import token_table

    files = find_checkpoint("ballworld")
    config, parameters = load_text_encoder(files, "cpu", torch.float32)
    encoder, tokenizer = files.require_text()
    assert encoder.name == "text_encoder"
    engine = TextEncoder.from_parameters(config, parameters, load_tokenizer(tokenizer))
    weights: Any = parameters
    scenes = sample(6, 0, "validation")
    ids, lengths = (torch.from_numpy(each) for each in token_table(scenes))
    with torch.no_grad():
        rows = TextTwin(weights, torch.device("cpu")).rows(ids, lengths)
    for n, prompt in enumerate(describe(scenes)):
        (expected,) = engine.embed([prompt])
        assert expected.length == lengths[n]
        # The engine's rows are rounded to bfloat16.
        theirs = expected.rows[: rows.shape[1]].float()
        torch.testing.assert_close(rows[n], theirs, rtol=1e-2, atol=1e-2)


def test_training_folds_the_padding_of_the_text_exactly() -> None:
    from tools.ballworld.networks import DIT, training_dit
    from tools.ballworld.words import ROWS

    folded = training_dit(torch.device("cpu")).requires_grad_(False)
    weights = load_dit(find_checkpoint("ballworld"), "cpu", torch.float32)
    folded.load_state_dict(weights)
    plain = DiT(DIT, Ops()).requires_grad_(False)
    plain.load_state_dict(weights)
    rows = torch.zeros((1, TEXT_ROWS, 64))
    rows[:, : ROWS - 5] = torch.randn((1, ROWS - 5, 64))
    x, mask = torch.randn((1, 16, 2, 4, 4)), torch.zeros((1, 1, 2, 4, 4))
    times = torch.full((1, 2), 0.5)
    expected = plain(x, times, mask, plain.text_context(rows))
    got = folded(x, times, mask, folded.text_context(rows[:, :ROWS]))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_training_computes_the_vae_as_the_engine_does() -> None:
    from tools.ballworld.whole_vae import WholeVAE

    from cosmos_fast.model.vae import VAE

    files = find_checkpoint("ballworld")
    vae = VAE(files.profile.vae).requires_grad_(False)
    vae.load_state_dict(load_vae(files, "cpu", torch.float32))
    video = torch.rand((1, 3, 9, 32, 32)) * 2 - 1
    whole = WholeVAE(vae)
    mean = whole.moments(video)[..., :16].permute(0, 4, 1, 2, 3)
    centre, scale = (
        torch.tensor(values)[None, :, None, None, None]
        for values in (files.profile.vae.latents_mean, files.profile.vae.latents_std)
    )
    latents = vae.encode(video)
    torch.testing.assert_close((mean - centre) / scale, latents, rtol=1e-3, atol=1e-3)
    decoded = whole.decoded((latents * scale + centre).permute(0, 2, 3, 4, 1))
    torch.testing.assert_close(decoded, vae.decode(latents), rtol=1e-3, atol=1e-3)
