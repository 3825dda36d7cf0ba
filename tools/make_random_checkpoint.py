"""Makes a Video2World checkpoint of random weights, as large as a released one or tiny.

    python tools/make_random_checkpoint.py --size 2B --out checkpoints --device cuda

writes the folders that the original tool reads

    checkpoints/Cosmos-Predict2-2B-Video2World/model.pt
    checkpoints/Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth
    checkpoints/google-t5/t5-11b/

and the same weights, bit for bit, as a diffusers folder

    checkpoints/diffusers/Cosmos-Predict2-2B-Video2World/

with T5 linked, not written twice, nor where it is there already. Several sizes may be named. Such a
checkpoint runs every stage at full size and full cost, and makes noise: it is for measuring and
testing. The weights are scaled so that activations stay near one through all layers, latents near
unit variance and pixels in range.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from cosmos_fast.config import DiTConfig, Profile, T5Config, VAEConfig
from cosmos_fast.types import NO_TEXT, Size
from cosmos_fast.weights import dit_keys, text_keys, vae_keys
from cosmos_fast.weights.action_files import RELEASED_ACTIONS
from cosmos_fast.weights.diffusers_folder import write_descriptions, write_json
from cosmos_fast.weights.key_map import translation
from cosmos_fast.weights.layout import DIFFUSERS_WEIGHTS
from cosmos_fast.weights.released import ARCHITECTURES, ORIGINAL_VARIANT, Family, released_profile
from cosmos_fast.weights.sidecar import SIDECAR, sidecar_json
from cosmos_fast.weights.tensor_files import open_tensors
from cosmos_fast.weights.tensor_writers import Spec, write_pt, write_safetensors, write_sharded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cosmos_fast.weights.key_map import KeyMap

T5_11B = T5Config(32128, 1024, 128, 65536, 24, 128, 32)
TINY_T5 = T5Config(512, 32, 8, 64, 2, 4, 32)
TINY = Profile(
    name="random/tiny",
    size=Size(96, 160),
    num_frames=9,
    fps=16.0,
    dit=DiTConfig(num_layers=2, num_heads=2, head_dim=32, adaln_rank=16, text_dim=32),
    vae=VAEConfig(base_dim=8),
    num_steps=4,
    guidance=1.0,
    toy=True,
)

DIT_STEM = DIFFUSERS_WEIGHTS.removesuffix(".safetensors")

_WORDS = (
    "the a an of and to in on at is are with from by for it its this that as into over under "
    "moves moving slowly quickly left right up down forward back camera scene view light lights "
    "night day city street bus train car robot arm hand table box ball red green blue yellow white "
    "black small large first then while video shows person people water sky building road gravity"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=[*ARCHITECTURES, "tiny"], default=["2B"])
    parser.add_argument("--out", type=Path, required=True, help="the checkpoints folder to make")
    parser.add_argument("--layout", choices=["nvidia", "diffusers", "both"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-text-encoder", action="store_true", help="leave T5 out")
    parser.add_argument("--actions", action="store_true", help="of 12 actions of 7 values")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest diffusers shard")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    began = time.perf_counter()
    for size in options.size:
        make_checkpoint(
            options.out,
            size,
            layout=options.layout,
            seed=options.seed,
            device=options.device,
            text_encoder=not options.no_text_encoder,
            actions=options.actions,
            shard_bytes=int(options.shard_gb * 1e9),
            threads=options.threads,
            say=lambda line: print(
                f"{time.perf_counter() - began:6.1f} s  {line}", file=sys.stderr
            ),
        )


def make_checkpoint(
    out: Path,
    size: str,
    *,
    layout: str = "both",
    seed: int = 0,
    device: str = "cpu",
    text_encoder: bool = True,
    actions: bool = False,
    shard_bytes: int = 5_000_000_000,
    threads: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Writes a random checkpoint below ``out``.

    Args:
        threads: that make and write tensors at a time; what they make does not depend on it.

    Returns:
        The model's folder: the original layout's, or the diffusers one where only that is made.
    """
    name = f"Cosmos-Predict2-{'2B' if size == 'tiny' else size}-Video2World"
    profile = TINY if size == "tiny" else _released(out, size)
    if actions:
        profile = _with_actions(profile, size)
    original, pipeline = out / name, out / "diffusers" / name
    for folder in (original, pipeline):
        if folder.exists():
            raise SystemExit(f"{folder} exists: remove it, or choose another --out")
    make = Generator(seed, device)
    writing = Writing(shard_bytes, threads)
    if layout == "both":
        _write_diffusers(pipeline, profile, make, writing, say)
        _write_nvidia(original, out, profile, _from_files(pipeline, profile), say)
    elif layout == "diffusers":
        _write_diffusers(pipeline, profile, make, writing, say)
    else:
        _write_nvidia(original, out, profile, make, say)
    if layout != "diffusers":
        # Says "random": without it the folder's name would pass for the released model's.
        write_json(original / SIDECAR, sidecar_json(profile))
    if text_encoder:
        shape = TINY_T5 if size == "tiny" else T5_11B
        _write_text(out / "google-t5" / "t5-11b", shape, make, threads, say)
        if layout != "nvidia":
            _link(out / "google-t5" / "t5-11b", pipeline)
    return pipeline if layout == "diffusers" else original


class Writing(NamedTuple):
    """How the diffusers layout is written."""

    shard_bytes: int
    threads: int


class Generator:
    """The random tensor of a name: the same for the same seed, name, shape and kind of device."""

    def __init__(self, seed: int, device: str) -> None:
        self._seed = seed
        self._device = torch.device(device)

    def __call__(self, name: str, spec: Spec, fan_gain: float) -> torch.Tensor:
        """Normal values of deviation ``fan_gain`` / sqrt(inputs); near one for a vector's gain."""
        key = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        generator = torch.Generator(self._device)
        generator.manual_seed(int.from_bytes(key[:8], "little") >> 1)
        values = torch.empty(spec.shape, dtype=spec.dtype, device=self._device)
        if name.endswith("bias"):
            return values.normal_(0, 0.01, generator=generator)
        if values.ndim == 1 or name.endswith("gamma"):
            return values.normal_(1, 0.05, generator=generator)
        fan_in = math.prod(spec.shape[1:])
        return values.normal_(0, fan_gain / math.sqrt(fan_in), generator=generator)


def dit_gain(name: str) -> float:
    """Modulations are kept small, so that gates do not let 84 sub-layers pile up."""
    if ".linear_2." in name or name.startswith("time_embed.t_embedder"):
        return 0.3
    return 0.5 if name.startswith("proj_out") else 1.0


def vae_gain(name: str) -> float:
    """Residual branches add little; the last layer leaves pixels within [-1, 1]."""
    if name == "decoder.conv_out.weight":
        return 0.5
    return 0.5 if ".conv2." in name or ".proj." in name else 1.4


def text_gain(shape: T5Config) -> Callable[[str], float]:
    """As T5 is initialised: attention is not scaled by 1 / sqrt(d), so queries are."""

    def gain(name: str) -> float:
        if name == text_keys.EMBEDDING:
            return math.sqrt(shape.d_model)
        if name.endswith("SelfAttention.q.weight"):
            return 1 / math.sqrt(shape.d_kv)
        return 1.0

    return gain


def _released(out: Path, size: str) -> Profile:
    dit = ARCHITECTURES[size]
    family = Family(f"Cosmos-Predict2-{size}-Video2World", size, "Video2World")
    profile = released_profile(out, ORIGINAL_VARIANT, dit, family)
    assert profile is not None
    return dataclasses.replace(profile, name=f"random/{size}")


def _with_actions(profile: Profile, size: str) -> Profile:
    """The same network with the released sample's actions, size and length."""
    return dataclasses.replace(
        profile,
        name=f"{profile.name}-actions",
        size=profile.size if size == "tiny" else Size(480, 640),
        num_frames=RELEASED_ACTIONS.num_frames,
        fps=RELEASED_ACTIONS.fps,
        guidance=0.0,
        negative_prompt=NO_TEXT,
        conditional_frames=(1,),
        dit=dataclasses.replace(profile.dit, action_inputs=RELEASED_ACTIONS.inputs),
        actions=RELEASED_ACTIONS,
    )


def _specs(key_map: KeyMap, dtype: torch.dtype) -> dict[str, Spec]:
    return {name: Spec(shape, dtype) for name, shape in key_map.file_names().items()}


def _write_diffusers(
    folder: Path,
    profile: Profile,
    make: Generator,
    writing: Writing,
    say: Callable[[str], None],
) -> None:
    write_descriptions(folder, profile)
    dit = _specs(dit_keys.diffusers_keys(profile.dit), torch.bfloat16)
    write_sharded(
        folder / "transformer",
        DIT_STEM,
        dit,
        lambda name: make(name, dit[name], dit_gain(name)),
        shard_bytes=writing.shard_bytes,
        durable=False,
        threads=writing.threads,
    )
    say(f"{folder / 'transformer'}: {_gigabytes(dit)}")
    vae = _specs(vae_keys.diffusers_keys(profile.vae), torch.float32)
    write_safetensors(
        folder / "vae" / DIFFUSERS_WEIGHTS,
        vae,
        lambda name: make(name, vae[name], vae_gain(name)),
        durable=False,
    )
    say(f"{folder / 'vae'}: {_gigabytes(vae)}")


def _write_nvidia(
    folder: Path,
    root: Path,
    profile: Profile,
    make: Callable[[str, Spec, float], torch.Tensor],
    say: Callable[[str], None],
) -> None:
    dit = dit_keys.nvidia_keys(profile.dit)
    names = translation(dit, dit_keys.diffusers_keys(profile.dit))
    specs = _specs(dit, torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    write_pt(
        folder / "model.pt",
        specs,
        lambda name: make(names[name], specs[name], dit_gain(names[name])),
        durable=False,
    )
    say(f"{folder / 'model.pt'}: {_gigabytes(specs)}")
    vae = vae_keys.wan_keys(profile.vae)
    vae_names = translation(vae, vae_keys.diffusers_keys(profile.vae))
    vae_specs = _specs(vae, torch.float32)
    path = root / "Wan-AI" / "Wan2.1-T2V-1.3B" / "Wan2.1_VAE.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pt(
        path,
        vae_specs,
        lambda name: make(vae_names[name], vae_specs[name], vae_gain(vae_names[name])),
        durable=False,
    )
    say(f"{path}: {_gigabytes(vae_specs)}")


def _from_files(pipeline: Path, profile: Profile) -> Callable[[str, Spec, float], torch.Tensor]:
    """Reads what was written for diffusers: mapped views, so nothing is held twice."""
    transformer = pipeline / "transformer"
    index = transformer / f"{DIFFUSERS_WEIGHTS}.index.json"
    files = [
        open_tensors(index if index.exists() else transformer / DIFFUSERS_WEIGHTS),
        open_tensors(pipeline / "vae" / DIFFUSERS_WEIGHTS),
    ]
    homes = {name: file for file in files for name in file.entries}
    return lambda name, _spec, _gain: homes[name].read(name)


def _write_text(
    folder: Path,
    shape: T5Config,
    make: Generator,
    threads: int,
    say: Callable[[str], None],
) -> None:
    path = folder / "model.safetensors"
    if path.exists():  # of another size's checkpoint: they share it
        say(f"{folder}: kept as it is")
        return
    folder.mkdir(parents=True, exist_ok=True)
    specs = _specs(text_keys.text_keys(shape, ()), torch.bfloat16)
    gain = text_gain(shape)
    write_safetensors(
        path,
        specs,
        lambda name: make(name, specs[name], gain(name)),
        durable=False,
        threads=threads,
    )
    write_json(folder / "config.json", _text_json(shape))
    for name, content in tokenizer_files().items():
        (folder / name).write_text(content, "utf-8")
    say(f"{folder}: {_gigabytes(specs)}")


def _text_json(shape: T5Config) -> dict[str, object]:
    sizes = dataclasses.asdict(shape)
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": sizes.pop("epsilon"),
        "relative_attention_num_buckets": sizes.pop("buckets"),
        "relative_attention_max_distance": sizes.pop("max_distance"),
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "is_encoder_decoder": False,
        "use_cache": False,
        "dtype": "bfloat16",
        **sizes,
    }


def tokenizer_files() -> dict[str, str]:
    """A small Unigram tokenizer of T5's form: its special tokens, letters and some words."""
    letters = [chr(code) for code in range(0x21, 0x7F)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -6.0) for letter in letters]
    vocabulary += [(f"▁{word}", -4.0) for word in _WORDS.split()]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "always", split=True)]
    )
    tokenizer.decoder = decoders.Metaspace("▁", "always", split=True)
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": 512,
        "extra_ids": 0,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    return {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(settings, indent=2),
    }


def _link(t5: Path, pipeline: Path) -> None:
    """T5 in the diffusers folder: the same bytes on the disk, or copies where links cannot be."""
    encoder, tokenizer = pipeline / "text_encoder", pipeline / "tokenizer"
    for source in sorted(t5.iterdir()):
        target = (tokenizer if source.name.startswith("tokenizer") else encoder) / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def _gigabytes(specs: Mapping[str, Spec]) -> str:
    return f"{sum(spec.nbytes for spec in specs.values()) / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
