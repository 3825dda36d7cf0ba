"""The action-conditioned network: its forward pass written out in plain torch, and its files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import cosmos_fast as cf
from action_world import ACTIONS, PROFILE, action_engine
from cosmos_fast.config import DiTConfig
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.weights import dit_keys, find_checkpoint, load_dit
from cosmos_fast.weights.action_files import RELEASED_ACTIONS
from cosmos_fast.weights.dit_keys import nvidia_keys
from cosmos_fast.weights.released import ARCHITECTURES, family_of, released_profile
from random_world import make_random_world

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = DiTConfig(
    num_layers=2, num_heads=2, head_dim=24, adaln_rank=8, text_dim=16, action_inputs=84
)
FOLDER = "nvidia/Cosmos-Predict2-2B-Sample-Action-Conditioned"


def restated(weights: dict[str, torch.Tensor], x: Any, t: Any, mask: Any, actions: Any) -> Any:
    """One forward pass with zero text, from NVIDIA's names and the formulas alone, in float32."""
    batch, _, frames, height, width = x.shape
    heads, head, rows, columns = 2, 24, height // 2, width // 2
    dim = heads * head

    def linear(name: str, y: Any) -> Any:
        return F.linear(y, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def rms(y: Any, weight: Any) -> Any:
        return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight

    def mlp(name: str) -> Any:
        h = linear(f"{name}.fc1", actions.reshape(batch, 84))
        tanh = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return linear(f"{name}.fc2", tanh)[:, None]

    def split(y: Any) -> Any:
        return y.reshape(batch, -1, heads, head).transpose(1, 2)

    def per_token(y: Any) -> Any:
        return y.repeat_interleave(rows * columns, dim=1)

    planes = torch.cat([x, mask, torch.zeros_like(mask)], dim=1)
    patches = planes.reshape(batch, 18, frames, rows, 2, columns, 2)
    tokens = linear(
        "x_embedder.proj.1",
        patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames * rows * columns, 72),
    )
    frequency = torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    e = torch.cat([(t[..., None] * frequency).cos(), (t[..., None] * frequency).sin()], dim=-1)
    shared = linear("t_embedder.1.linear_2", F.silu(linear("t_embedder.1.linear_1", e)))
    shared = shared + mlp("action_embedder_B_3D")
    emb = rms(e + mlp("action_embedder_B_D"), weights["t_embedding_norm.weight"])

    spatial = head // 6 * 2
    grid = torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))
    angles = []
    for axis, (size, ratio) in enumerate(((head - 2 * spatial, 1.0), (spatial, 3.0), (spatial, 3))):
        theta = 10000 * ratio ** (size / (size - 2))
        angles.append(grid[:, axis, None] / theta ** (torch.arange(0, size, 2) / size))
    angle = torch.cat(angles, dim=1).repeat(1, 2)

    def turned(y: Any) -> Any:
        half = torch.cat([-y[..., head // 2 :], y[..., : head // 2]], dim=-1)
        return y * angle.cos() + half * angle.sin()

    def attend(q: Any, k: Any, v: Any) -> Any:
        out = (q @ k.mT / math.sqrt(head)).softmax(-1) @ v
        return out.transpose(1, 2).reshape(batch, -1, dim)

    for i in range(2):
        for part in ("self_attn", "cross_attn", "mlp"):
            name = f"blocks.{i}.{part}"
            low = linear(f"blocks.{i}.adaln_modulation_{part}.1", F.silu(emb))
            m = linear(f"blocks.{i}.adaln_modulation_{part}.2", low) + shared
            shift, scale, gate = (per_token(each) for each in m.chunk(3, -1))
            y = F.layer_norm(tokens, (dim,), eps=1e-6) * (1 + scale) + shift
            if part == "mlp":
                out = linear(f"{name}.layer2", F.gelu(linear(f"{name}.layer1", y)))
            else:
                source = y if part == "self_attn" else torch.zeros(batch, 512, 16)
                q, k, v = (
                    split(linear(f"{name}.{each}_proj", y if each == "q" else source))
                    for each in "qkv"
                )
                q = rms(q, weights[f"{name}.q_norm.weight"])
                k = rms(k, weights[f"{name}.k_norm.weight"])
                if part == "self_attn":
                    q, k = turned(q), turned(k)
                out = linear(f"{name}.output_proj", attend(q, k, v))
            tokens = tokens + gate * out
    low = linear("final_layer.adaln_modulation.1", F.silu(emb))
    m = linear("final_layer.adaln_modulation.2", low) + shared[..., : 2 * dim]
    shift, scale = (per_token(each) for each in m.chunk(2, -1))
    y = F.layer_norm(tokens, (dim,), eps=1e-6) * (1 + scale) + shift
    values = linear("final_layer.linear", y).reshape(batch, frames, rows, columns, 2, 2, 16)
    return values.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape)


def random_weights(config: DiTConfig) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(shape) / math.sqrt(shape[-1]) if len(shape) > 1 else torch.rand(shape)
        for name, shape in nvidia_keys(config, "").file_names().items()
    }


def network(weights: dict[str, torch.Tensor]) -> DiT:
    dit = DiT(CONFIG, Ops(), "float32")
    table = nvidia_keys(CONFIG, "")
    dit.load_state_dict(
        {
            ours: torch.cat([weights[piece.name] for piece in pieces])
            for ours, pieces in table.targets.items()
        }
    )
    return dit.eval().requires_grad_(False)


def test_forward_is_the_formula_written_out(parity: Callable[..., None]) -> None:
    weights = random_weights(CONFIG)
    dit = network(weights)
    x, actions = torch.randn(2, 16, 4, 4, 6), torch.randn(2, 12, 7)
    times = torch.tensor([[1e-4, 0.7, 0.7, 0.7], [1e-4, 0.2, 0.2, 0.2]])
    mask = torch.zeros(2, 1, 4, 4, 6)
    mask[:, :, 0] = 1
    text = dit.text_context(torch.zeros(1, 512, 16))
    action = dit.action_context(actions)
    ours = dit(x, times, mask, text, action=action)
    theirs = restated(weights, x, times, mask, actions)
    error = float((ours - theirs).norm() / theirs.norm())
    parity("action-conditioned transformer, float32", "its formulas in plain torch", error, 2e-6)
    tabulated = dit(x, times, mask, text, modulations=dit.modulations(times, action))
    torch.testing.assert_close(tabulated, ours, rtol=1e-6, atol=1e-6)
    other = dit(x, times, mask, text, action=dit.action_context(-actions))
    assert (other - ours).abs().mean() > 0.01, "the actions decide"


def test_actions_are_neither_forgotten_nor_given_to_a_network_without() -> None:
    dit = network(random_weights(CONFIG))
    x, times = torch.randn(1, 16, 4, 4, 6), torch.full((1, 1), 0.5)
    text = dit.text_context(torch.zeros(1, 512, 16))
    with pytest.raises(cf.InputError, match="given none"):
        dit(x, times, x[:, :1], text)
    with pytest.raises(cf.InputError, match="78 numbers of action, where 84"):
        dit.action_context(torch.zeros(1, 13, 6))
    plain = DiT(dataclasses.replace(CONFIG, action_inputs=0), Ops())
    with pytest.raises(cf.InputError, match="24 numbers of action, where 0"):
        plain.action_context(torch.zeros(1, 4, 6))


def test_the_map_covers_every_parameter_in_both_layouts_and_back() -> None:
    weights = random_weights(CONFIG)
    state = network(weights).state_dict()
    for keys in (dit_keys.nvidia_keys(CONFIG, "net."), dit_keys.diffusers_keys(CONFIG)):
        assert set(keys.targets) == set(state)
        written = keys.rename(state)
        assert len(written) == 20 * 2 + 7 + 8
    renamed = dit_keys.nvidia_keys(CONFIG, "").rename(state)
    assert all(torch.equal(renamed[name], weights[name]) for name in weights)


def test_released_shapes() -> None:
    config = dataclasses.replace(ARCHITECTURES["2B"], action_inputs=84)
    names = dit_keys.nvidia_keys(config).file_names()
    assert len(names) == 575
    assert names["net.action_embedder_B_D.fc1.weight"] == (8192, 84)
    assert names["net.action_embedder_B_D.fc2.weight"] == (2048, 8192)
    assert names["net.action_embedder_B_3D.fc2.weight"] == (6144, 8192)
    assert names["net.action_embedder_B_3D.fc2.bias"] == (6144,)


def test_released_layout_implies_the_reference_settings() -> None:
    path = Path(FOLDER) / "model-480p-4fps.pt"
    inferred = dataclasses.replace(ARCHITECTURES["2B"], action_inputs=84)
    profile = released_profile(path, "480p-4fps", inferred, family_of(path))
    assert profile is not None
    assert profile.actions == RELEASED_ACTIONS
    assert (profile.size, profile.num_frames, profile.fps) == ((480, 640), 13, 4.0)
    assert (profile.guidance, profile.conditional_frames) == (0.0, (1,))
    assert profile.negative_prompt is cf.NO_TEXT
    assert profile.num_latent_frames == 4
    with pytest.raises(cf.CheckpointError, match="no action MLPs"):
        released_profile(Path("x.pt"), "480p-4fps", ARCHITECTURES["2B"], None)
    with pytest.raises(cf.CheckpointError, match="its tensors say otherwise"):
        released_profile(path, "480p-4fps", ARCHITECTURES["2B"], family_of(path))


def test_a_file_beside_the_weights_says_what_84_numbers_are() -> None:
    inferred = dataclasses.replace(ARCHITECTURES["2B"], action_inputs=96)
    path = Path(FOLDER) / "model-480p-4fps.pt"
    with pytest.raises(cf.CheckpointError, match="tensors say otherwise"):
        released_profile(path, "480p-4fps", inferred, family_of(path))
    eight = dataclasses.replace(
        RELEASED_ACTIONS, dim=8, names=("q",) * 8, units=("rad",) * 8, scale=(1.0,) * 8
    )
    profile = released_profile(path, "480p-4fps", inferred, family_of(path), eight)
    assert profile is not None
    assert profile.actions == eight


def nvidia_folder(folder: Path, described: bool) -> Path:
    """The random checkpoint as a ``.pt`` with NVIDIA's names, the released file's form."""
    source = find_checkpoint(make_random_world(folder / "source", PROFILE))
    weights = dit_keys.nvidia_keys(PROFILE.dit).rename(load_dit(source, "cpu", torch.bfloat16))
    target = folder / FOLDER.replace("Predict2-2B", "tiny")
    target.mkdir(parents=True)
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, target / "model.pt")
    (target / "tokenizer").mkdir()
    (target / "vae").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (target / "vae" / name).write_bytes((source.vae.parent / name).read_bytes())
    values = json.loads((folder / "source" / "cosmos_fast.json").read_text())
    actions = values.pop("actions")
    (target / "cosmos_fast.json").write_text(json.dumps(values))
    if described:
        (target / "actions.json").write_text(json.dumps(actions))
    return target


def test_pt_with_nvidia_names_loads_and_its_actions_file_is_needed(tmp_path: Path) -> None:
    folder = nvidia_folder(tmp_path / "with", described=True)
    files = find_checkpoint(folder, vae=folder / "vae")
    assert files.layout == "nvidia"
    assert files.profile.actions == ACTIONS
    ours = load_dit(files, "cpu", torch.float32)
    theirs = load_dit(find_checkpoint(tmp_path / "with" / "source"), "cpu", torch.bfloat16)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].bfloat16(), theirs[name]) for name in ours)
    folder = nvidia_folder(tmp_path / "without", described=False)
    with pytest.raises(cf.CheckpointError, match=r"16 numbers of action enter .* ActionSpec"):
        find_checkpoint(folder, vae=folder / "vae")


def test_half_a_network_of_actions_is_refused(tmp_path: Path) -> None:
    folder = make_random_world(tmp_path, PROFILE)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["action_embedder_B_3D.fc2.bias"]
    save_file(tensors, path)
    with pytest.raises(cf.CheckpointError, match=r"action_embedder_B_3D\.fc2\.bias is missing"):
        load_dit(find_checkpoint(folder), "cpu", torch.float32)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dim": 3}, "names = .*3 are needed"),
        ({"chunk": 6}, "multiple of 4"),
        ({"chunk": 4}, "4 actions of 2 values are 8 numbers; 16 enter"),
        ({"scale": [1.0, 0.0]}, r"scale\[1\] \(y\) = 0\.0: a finite number above 0"),
        ({"mean": [math.nan, 0], "std": [1, 1]}, r"mean\[0\] \(x\) = nan: a finite number"),
        ({"fps": 10**400}, "fps = 1000.*above 0"),
        ({"mean": [0.0, 0.0]}, "together"),
        ({"units": "m"}, "units = 'm'; a list of texts"),
        ({"fps": None}, "fps = None; a number"),
        ({"speed": 1}, "unknown speed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_descriptions_of_actions_are_checked(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    folder = make_random_world(tmp_path, PROFILE)
    described = json.loads((folder / "cosmos_fast.json").read_text())
    described["actions"] |= change
    (folder / "cosmos_fast.json").write_text(json.dumps(described))
    with pytest.raises(cf.CheckpointError, match=word):
        find_checkpoint(folder)


def test_generate_points_to_the_world(tmp_path: Path) -> None:
    engine = action_engine(tmp_path)
    assert engine.profile.actions == ACTIONS
    with pytest.raises(cf.InputError, match=r"cosmos_fast\.World"):
        engine.generate(torch.zeros(32, 48, 3, dtype=torch.uint8), cf.NO_TEXT)
