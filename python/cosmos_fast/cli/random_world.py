"""A small checkpoint of random weights, made on the spot where no trained world is at hand.

It has every file of a real one, in diffusers' layout, so that it is found and loaded by the code
that loads the 2B. What it shows is noise.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from cosmos_fast.ballworld import FPS, NUM_FRAMES, SIZE
from cosmos_fast.config import DiTConfig, Profile, VAEConfig
from cosmos_fast.files import write_atomically

RANDOM_PROFILE: Final = Profile(
    name="random weights",
    size=SIZE,
    num_frames=NUM_FRAMES,
    fps=FPS,
    dit=DiTConfig(
        num_layers=4, num_heads=2, head_dim=64, adaln_rank=32, text_dim=64, rope_scale=(1, 1, 1)
    ),
    vae=VAEConfig(base_dim=16),
    guidance=1.0,
    toy=True,
)
"""The ball world's shape, with a smaller transformer."""

_T5: Final = {
    "vocab_size": 128,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "relu",
}


def make_random_world(folder: Path, profile: Profile = RANDOM_PROFILE, seed: int = 0) -> Path:
    """Writes the checkpoint into ``folder``; its files are replaced.

    Args:
        profile: what it shall imply; its text width is 64.
        seed: of the weights; the same seed makes the same files.

    Returns:
        ``folder``.
    """
    from cosmos_fast.weights.dit_keys import diffusers_keys as dit_keys
    from cosmos_fast.weights.sidecar import SIDECAR, sidecar_json
    from cosmos_fast.weights.text_keys import TextShape, text_keys
    from cosmos_fast.weights.vae_keys import diffusers_keys as vae_keys

    generator = torch.Generator().manual_seed(seed)
    shape = TextShape.from_json({"model_type": "t5", **_T5}, folder)
    weights = "diffusion_pytorch_model.safetensors"
    _write_weights(folder / "transformer" / weights, dit_keys(profile.dit).file_names(), generator)
    _write_weights(folder / "vae" / weights, vae_keys(profile.vae).file_names(), generator)
    _write_weights(
        folder / "text_encoder" / "model.safetensors", text_keys(shape, ()).file_names(), generator
    )
    _write_text_config(folder / "text_encoder")
    _write_tokenizer(folder / "tokenizer")
    write_atomically(folder / SIDECAR, json.dumps(sidecar_json(profile), indent=2).encode())
    return folder


def _write_weights(
    path: Path, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator
) -> None:
    from safetensors.torch import save

    tensors = {name: _random(name, shape, generator) for name, shape in shapes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors))


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Scales of one, small biases, and matrices that keep the size of what they multiply."""
    if "norm" in name and not name.endswith(".bias") and len(shape) in (1, 3, 4):
        return torch.ones(shape)
    scale = 0.02 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * scale


def _write_text_config(folder: Path) -> None:
    from transformers import T5Config

    config = T5Config(**_T5, is_encoder_decoder=False, use_cache=False)
    config.architectures = ["T5EncoderModel"]
    write_atomically(folder / "config.json", config.to_json_string(use_diff=True).encode())


def _write_tokenizer(folder: Path) -> None:
    """A tokenizer that spells: one token a letter."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_letters + string.digits + string.punctuation + " "
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {letter: index for index, letter in enumerate(letters, start=3)}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = Split("", behavior="isolated")
    raw.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
