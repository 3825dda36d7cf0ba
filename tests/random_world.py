"""A small checkpoint of random weights with every file of a real one, in diffusers' layout.

It is found and loaded by the code that loads the 2B. What it shows is noise.
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
    vae=VAEConfig(base_dim=8),
    num_steps=12,
    guidance=1.0,
    toy=True,
)
"""The ball world's shape, with smaller networks."""

_T5: Final = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 128,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "relu",
    "is_encoder_decoder": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def make_random_world(folder: Path, profile: Profile = RANDOM_PROFILE, seed: int = 0) -> Path:
    """Writes the checkpoint into ``folder``; its files are replaced.

    Args:
        profile: what it shall imply; its text width is 64.
        seed: of the weights; the same seed makes the same files.

    Returns:
        ``folder``.
    """
    from cosmos_fast.weights.diffusers_folder import write_descriptions
    from cosmos_fast.weights.dit_keys import diffusers_keys as dit_keys
    from cosmos_fast.weights.text_keys import read_config, text_keys
    from cosmos_fast.weights.vae_keys import diffusers_keys as vae_keys

    generator = torch.Generator().manual_seed(seed)
    text = text_keys(read_config(_T5, folder), ())
    for name, shapes in (
        ("transformer/diffusion_pytorch_model", dit_keys(profile.dit).file_names()),
        ("vae/diffusion_pytorch_model", vae_keys(profile.vae).file_names()),
        ("text_encoder/model", text.file_names()),
    ):
        _write(folder / f"{name}.safetensors", _random_weights(shapes, generator))
    _write(folder / "text_encoder" / "config.json", json.dumps(_T5, indent=2).encode())
    _write(folder / "tokenizer" / "tokenizer.json", _tokenizer_json().encode())
    write_descriptions(folder, profile)
    return folder


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def _random_weights(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> bytes:
    from safetensors.torch import save

    return save({name: _random(name, shape, generator) for name, shape in shapes.items()})


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Scales of one, small biases, and matrices that keep the size of what they multiply."""
    if "norm" in name and not name.endswith(".bias") and len(shape) in (1, 3, 4):
        return torch.ones(shape)
    scale = 0.02 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * scale


def _tokenizer_json() -> str:
    """A tokenizer that spells: one token a character."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing

    characters = string.ascii_letters + string.digits + string.punctuation + " "
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {character: index for index, character in enumerate(characters, start=3)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer.to_str()
