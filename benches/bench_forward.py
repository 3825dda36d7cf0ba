"""One evaluation of the transformer: ours beside diffusers, eager and compiled, at named shapes.

python benches/bench_forward.py [--shape 2b_480p_81 ...] [--seconds 4] [--save FILE] [--tiny]

Random weights of the released sizes, a prompt of 200 tokens. diffusers' network has the same
weights; compiled means each block by torch.compile, with torch's attention (cuDNN's on Hopper),
with the FlashAttention-3 wheel, and with SageAttention. Everyone is checked against float32 on a
clip of some 8192 tokens, for which ours takes the designs that it takes for all of them, and may be
1.1 times as far off as diffusers' eager bfloat16. The first shape is held for 30 seconds.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import rivals
import torch
from contest import ROUNDS, Contender, Contest, Report
from harness import relative_error

from cosmos_fast.config import DiTConfig
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.flops import forward_flops
from cosmos_fast.model.graphs import GraphedDiT
from cosmos_fast.model.linear_table import MANY_ROWS
from cosmos_fast.model.modulations import StepModulations
from cosmos_fast.model.ops import Ops
from cosmos_fast.types import TokenLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cosmos_fast.model.ops import TableAttention

TWO_B = DiTConfig(num_layers=28, num_heads=16)
FOURTEEN_B = DiTConfig(num_layers=36, num_heads=40, rope_scale=(20 / 24, 2.0, 2.0))
TINY = DiTConfig(num_layers=2, num_heads=2, head_dim=64, adaln_rank=16, text_dim=32)
TEXT_LENGTH = 200
FIRST_SECONDS = 30.0
ERROR_RATIO = 1.1


@dataclass(frozen=True)
class Shape:
    """A network and the latents it sees."""

    config: DiTConfig
    latent: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        frames, height, width = self.latent
        return frames * (height // 2) * (width // 2)

    @property
    def checked(self) -> tuple[int, int, int]:
        """Of fewer frames, where as many tokens are left as make the same kernels run: float32
        takes long."""
        frames, height, width = self.latent
        enough = -(-MANY_ROWS * frames // self.tokens)
        return max(2, min(frames, enough)), height, width


SHAPES = {
    "2b_480p_81": Shape(TWO_B, (21, 54, 96)),
    "2b_480p_93": Shape(TWO_B, (24, 54, 96)),
    "2b_720p_93": Shape(TWO_B, (24, 88, 160)),
    "14b_480p_81": Shape(FOURTEEN_B, (21, 54, 96)),
    "2b_action": Shape(TWO_B, (4, 60, 80)),
    "tiny": Shape(TINY, (3, 4, 6)),
}
"""27,216, 31,104, 84,480, 27,216 and 4,800 tokens, and a few for a CPU."""


@dataclass(frozen=True)
class Inputs:
    """What one evaluation is given: half-way down the schedule, the first latent frame known."""

    x: torch.Tensor
    times: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def random(
        cls, config: DiTConfig, latent: tuple[int, int, int], device: torch.device
    ) -> Inputs:
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(1, 16, *latent, device=device, generator=generator)
        rows = torch.randn(1, 512, config.text_dim, device=device, generator=generator)
        rows[:, TEXT_LENGTH:] = 0
        times = torch.full((1, latent[0]), 0.5, device=device)
        times[:, 0] = 1e-4
        mask = torch.zeros(1, 1, *latent, device=device)
        mask[:, :, 0] = 1
        return cls(x, times, mask, rows)


def random_dit(config: DiTConfig, device: torch.device, ops: Ops) -> DiT:
    """Weights that keep activations near one, with channels of q and k far from the others."""
    torch.manual_seed(0)
    with torch.device("meta"):
        dit = DiT(config, ops, "float32")
    dit = dit.to_empty(device=device).to(torch.bfloat16)
    with torch.no_grad():
        for name, weight in dit.named_parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5)
                if "_norm" in name:
                    weight[5] *= 4.0
            else:
                weight.normal_(std=weight.shape[1] ** -0.5)
    return dit.eval().requires_grad_(False)


def prepared(dit: DiT, given: Inputs, *, graphs: bool) -> tuple[Callable[[], torch.Tensor], str]:
    """A call of ours with everything made that a run makes once, and how it is launched."""
    frames, height, width = given.x.shape[2:]
    layout = TokenLayout((frames, height // 2, width // 2))
    graphed = GraphedDiT(dit)
    constant: dict[str, Any] = {
        "rope": dit.rope(layout),
        "modulations": StepModulations(dit, given.times)(0),
    }
    text = dit.text_context(given.rows, TEXT_LENGTH)
    network: Any = graphed if graphs else dit
    replayed = graphs and graphed.replays(layout, given.x.device)
    launches = "cuda graph" if replayed else "launches one by one"
    return lambda: network(given.x, given.times, given.mask, text, layout, **constant), launches


def theirs(call: Callable[..., Any], given: Inputs, dtype: torch.dtype) -> torch.Tensor:
    """diffusers' network on the same inputs."""
    height, width = given.x.shape[3:]
    sample: torch.Tensor = call(
        hidden_states=given.x.to(dtype),
        timestep=given.times[:, None, :, None, None].to(dtype),
        encoder_hidden_states=given.rows.to(dtype),
        fps=24,
        condition_mask=given.mask.to(dtype),
        padding_mask=given.x.new_zeros(1, 1, height * 8, width * 8).to(dtype),
    ).sample
    return sample


def without_fa3(ops: Ops) -> Ops:
    """The same, with our own attention where the wheel would be taken."""
    table = cast("TableAttention", ops.attention)
    own = table.without("fa3")
    return replace(
        ops,
        attention=own,
        folds_padding=own.folds_padding,
        names={**ops.names, "attention": own.description},
    )


def shared(dit: DiT, ops: Ops) -> DiT:
    """The same weights with other operations."""
    with torch.device("meta"):
        other = DiT(dit.config, ops)
    other.load_state_dict(dit.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def contest(
    name: str, device: torch.device, seconds: float, rounds: int, left_out: Sequence[str]
) -> Contest:
    shape = SHAPES[name]
    ops = Ops.select(device, torch.bfloat16, head_dim=shape.config.head_dim)
    dit = random_dit(shape.config, device, ops)
    given = Inputs.random(shape.config, shape.latent, device)
    small = Inputs.random(shape.config, shape.checked, device)
    exact = _exact(dit, small)
    call, launches = prepared(dit, given, graphs=True)
    few, _ = prepared(dit, small, graphs=True)
    contenders = [
        Contender(
            "ours",
            call,
            lambda: relative_error(few(), exact),
            ours=True,
            note=f"attention: {ops.names['attention']}; {launches}",
        )
    ]
    if "fa3" in ops.names["attention"]:
        own = without_fa3(ops)
        other = shared(dit, own)
        slower, _ = prepared(other, given, graphs=True)
        slower_few, _ = prepared(other, small, graphs=True)
        contenders.append(
            Contender(
                "ours, own attention",
                slower,
                lambda: relative_error(slower_few(), exact),
                ours=True,
                note=f"attention: {own.names['attention']}; {launches}",
            )
        )
    eager = rivals.diffusers_dit(dit)
    limit = relative_error(theirs(eager, small, torch.bfloat16), exact)
    calls: dict[str, Callable[[], Callable[..., Any]]] = {
        "diffusers eager": lambda: eager,
        "diffusers compiled": lambda: rivals.compile_blocks(rivals.diffusers_dit(dit)),
        "diffusers compiled, FA3 wheel": lambda: rivals.with_attention(
            rivals.compile_blocks(rivals.diffusers_dit(dit)), rivals.fa3()
        ),
        "diffusers compiled, SageAttention": lambda: rivals.with_attention(
            rivals.compile_blocks(rivals.diffusers_dit(dit)), rivals.sage()
        ),
    }
    contenders += [
        _rival(rival, make, given, small, exact)
        for rival, make in calls.items()
        if rival not in left_out
    ]
    flops = forward_flops(shape.config, shape.latent).total
    label = f"{name} ({shape.tokens} tokens)"
    return Contest(
        "forward",
        label,
        tuple(contenders),
        ERROR_RATIO * limit,
        flops=flops,
        seconds=seconds,
        rounds=2 if name == "tiny" else rounds,
    )


def _rival(
    name: str,
    make: Callable[[], Callable[..., Any]],
    given: Inputs,
    small: Inputs,
    exact: torch.Tensor,
) -> Contender:
    """Made when it is checked: a wheel that is missing shows then."""
    made: list[Callable[..., Any]] = []

    def error() -> float:
        made.append(make())
        return relative_error(theirs(made[0], small, torch.bfloat16), exact)

    return Contender(name, lambda: theirs(made[0], given, torch.bfloat16), error)


def _exact(dit: DiT, given: Inputs) -> torch.Tensor:
    """In float32 and plain torch, from the same bfloat16 weights and inputs."""
    with torch.device("meta"):
        wide = DiT(dit.config, Ops(), "float32")
    wide = wide.to_empty(device=dit.patch_embed.weight.device)
    wide.load_state_dict({name: one.float() for name, one in dit.state_dict().items()})
    frames, height, width = given.x.shape[2:]
    layout = TokenLayout((frames, height // 2, width // 2))
    text = wide.text_context(given.rows.bfloat16().float())
    x, times = (one.bfloat16().float() for one in (given.x, given.times))
    exact: torch.Tensor = wide(x, times, given.mask, text, layout)
    return exact


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all but tiny")
    parser.add_argument("--seconds", type=float, default=4.0, help="each contender, each shape")
    parser.add_argument("--long", type=float, default=FIRST_SECONDS, help="the same, first shape")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each contender")
    parser.add_argument("--without", nargs="+", default=[], help="rivals that stay out")
    parser.add_argument("--save", type=Path, help="also write the JSON object here")
    parser.add_argument("--tiny", action="store_true", help="a few tokens, on any device")
    parser.add_argument("--device", type=torch.device)
    arguments = parser.parse_args()
    device = arguments.device or torch.device("cpu" if arguments.tiny else "cuda")
    names = arguments.shape or [name for name in SHAPES if (name == "tiny") == arguments.tiny]
    lengths = [arguments.long if index == 0 else arguments.seconds for index in range(len(names))]
    settings = {"dtype": "bfloat16", "shapes": names, "seconds": lengths, "text": TEXT_LENGTH}
    report = Report("forward", device, settings, arguments.save)
    return report.carry_out(
        [
            partial(contest, name, device, seconds, arguments.rounds, arguments.without)
            for name, seconds in zip(names, lengths, strict=True)
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
