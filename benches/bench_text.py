"""Encoding the prompts of a clip: our T5-11B encoder and transformers' own.

python benches/bench_text.py [--seconds 4] [--save FILE] [--tiny]

Released sizes, random weights, bfloat16: a prompt of 44 tokens and a negative one of 187, from
token ids to rows on the host, as a clip needs them. transformers' encoder reads one prompt after
the other, as the reference runs it. Both are checked against transformers' in float32 (no TF32),
and may be 1.1 times as far off as transformers' in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from contest import ROUNDS, Contender, Contest, Report
from harness import relative_error

from cosmos_fast.config import T5Config
from cosmos_fast.memory.models import T5_11B
from cosmos_fast.model.t5 import T5Encoder
from cosmos_fast.types import TEXT_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LENGTHS = (44, 187)
TINY = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, buckets=32)
ERROR_RATIO = 1.1


def text_flops(config: T5Config, prompts: int) -> float:
    """Of the products and of attention."""
    inner = config.num_heads * config.d_kv
    matrices = 4 * config.d_model * inner + 2 * config.d_model * config.d_ff
    layer = 2 * TEXT_ROWS * matrices + 4 * TEXT_ROWS**2 * inner
    return float(prompts * config.num_layers * layer)


def random_encoders(config: T5Config, device: torch.device) -> tuple[T5Encoder, Any]:
    """Ours and transformers', on the same weights."""
    from transformers import T5Config as TheirConfig
    from transformers import T5EncoderModel

    settings = TheirConfig(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.max_distance,
        layer_norm_epsilon=config.epsilon,
    )
    with torch.device("meta"):
        theirs, ours = T5EncoderModel(settings), T5Encoder(config)
    theirs = theirs.to(torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, weight in theirs.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
        elif "bias" in name or "shared" in name:
            weight.data.normal_()
        else:
            weight.data.normal_(std=weight.shape[1] ** -0.5)
            if ".q." in name:  # T5's scores are not scaled
                weight.data.mul_(config.d_kv**-0.5)
    theirs.encoder.embed_tokens = theirs.shared
    weights = dict(theirs.state_dict())
    weights.pop("encoder.embed_tokens.weight", None)
    ours.load_state_dict(weights, strict=True, assign=True)
    return ours.requires_grad_(False), theirs


def by_transformers(
    theirs: Any, ids_PN: torch.Tensor, lengths: Sequence[int]
) -> list[torch.Tensor]:
    place_N = torch.arange(ids_PN.shape[1], device=ids_PN.device)
    return [
        theirs(ids_N[None], attention_mask=(place_N < length).long()[None]).last_hidden_state[0]
        for ids_N, length in zip(ids_PN, lengths, strict=True)
    ]


def on_host(rows: list[torch.Tensor]) -> torch.Tensor:
    """What is read of each prompt, one after the other."""
    return torch.cat([rows_NC[:n].cpu() for rows_NC, n in zip(rows, LENGTHS, strict=True)])


def contest(name: str, device: torch.device, seconds: float) -> Contest:
    config = TINY if name == "tiny" else T5_11B
    ours, theirs = random_encoders(config, device)
    generator = torch.Generator(device).manual_seed(0)
    ids_PN = torch.randint(
        config.vocab_size, (len(LENGTHS), TEXT_ROWS), device=device, generator=generator
    )
    wide = copy.deepcopy(theirs).float()
    exact = on_host(by_transformers(wide, ids_PN, LENGTHS))
    del wide

    def by_ours() -> torch.Tensor:
        return on_host(ours(ids_PN, LENGTHS))

    def by_them() -> torch.Tensor:
        return on_host(by_transformers(theirs, ids_PN, LENGTHS))

    def error(encode: Callable[[], torch.Tensor]) -> Callable[[], float]:
        return lambda: relative_error(encode(), exact)

    return Contest(
        "text",
        name,
        (
            Contender("ours, prompts together", by_ours, error(by_ours), ours=True),
            Contender("transformers", by_them, error(by_them)),
        ),
        ERROR_RATIO * error(by_them)(),
        flops=text_flops(config, len(LENGTHS)),
        seconds=seconds,
        rounds=2 if name == "tiny" else ROUNDS,
    )


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="each contender")
    parser.add_argument("--save", type=Path, help="also write the JSON object here")
    parser.add_argument("--tiny", action="store_true", help="a few numbers, on any device")
    parser.add_argument("--device", type=torch.device)
    arguments = parser.parse_args()
    device = arguments.device or torch.device("cpu" if arguments.tiny else "cuda")
    name = "tiny" if arguments.tiny else "T5-11B"
    settings = {"dtype": "bfloat16", "lengths": LENGTHS, "seconds": arguments.seconds}
    report = Report("text", device, settings, arguments.save)
    return report.carry_out([partial(contest, name, device, arguments.seconds)])


if __name__ == "__main__":
    sys.exit(main())
