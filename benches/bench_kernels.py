"""The fused kernels beside plain torch and torch.compile, at the shapes of the released networks.

python benches/bench_kernels.py [--shape 2b_480p ...] [--repeats 50] [--save FILE]

"torch" is the operation as diffusers' transformer writes it, every step rounded; "torch.compile"
is our reference function through Inductor; "triton" is the kernel that the engine runs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from harness import (
    Figure,
    WrongResult,
    check,
    copy_bandwidth,
    measure,
    relative_error,
    report,
)

from cosmos_fast_kernels import reference
from cosmos_fast_kernels.layernorm_modulate import layernorm_modulate
from cosmos_fast_kernels.qk_norm_rope import head_norm, qk_norm_rope

if TYPE_CHECKING:
    from collections.abc import Callable

EPS = 1e-6
DTYPE = torch.bfloat16
ERROR_BOUND = 1e-2
"""Of bfloat16 arithmetic, relative; a wrong rotation or frame is off by about 1."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one token sequence."""

    frames: int
    tokens_of_frame: int
    heads: int
    features: int

    @property
    def tokens(self) -> int:
        return self.frames * self.tokens_of_frame

    @property
    def width(self) -> int:
        return self.heads * self.features


SHAPES = {
    "2b_480p": Shape(24, 27 * 48, 16, 128),
    "2b_720p": Shape(24, 44 * 80, 16, 128),
    "14b_480p": Shape(24, 27 * 48, 40, 128),
    "14b_720p": Shape(24, 44 * 80, 40, 128),
    "2b_action": Shape(4, 30 * 40, 16, 128),
    "tiny": Shape(3, 5, 3, 64),
}


@dataclass(frozen=True)
class Contest:
    """One operation at one shape: who runs it, what is exact, how many bytes have to move."""

    operation: str
    contenders: dict[str, Callable[[], tuple[torch.Tensor, ...]]]
    exact: tuple[torch.Tensor, ...]
    moved_bytes: int


def qk_norm_rope_contest(shape: Shape, device: torch.device) -> Contest:
    qkv = torch.randn(1, shape.tokens, 3, shape.heads, shape.features, device=device).to(DTYPE)
    q, k, _ = qkv.unbind(2)
    q_weight, k_weight = torch.rand(2, shape.features, device=device).to(DTYPE).unbind()
    angles = torch.rand(shape.tokens, shape.features // 2, device=device) * 80
    cos, sin = angles.cos(), angles.sin()
    arguments = (q_weight, k_weight, cos, sin, EPS)
    out = torch.empty(2, *q.shape, dtype=DTYPE, device=device)
    compiled = torch.compile(reference.qk_norm_rope, dynamic=False)
    cos_both, sin_both = (torch.cat((one, one), -1)[:, None] for one in (cos, sin))

    def one_by_one(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        x = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(DTYPE) * weight
        first, second = x.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
        return (x.float() * cos_both + turned.float() * sin_both).to(DTYPE)

    # Into buffers of its own: over its input, a second run would start from the first one's result.
    contenders: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "triton": lambda: qk_norm_rope(q, k, *arguments, out=(out[0], out[1])),
        "torch.compile": lambda: compiled(q, k, *arguments),
        "torch": lambda: (one_by_one(q, q_weight), one_by_one(k, k_weight)),
    }
    exact = reference.qk_norm_rope(q.float(), k.float(), *arguments)
    moved = 4 * q.numel() * q.element_size() + 2 * cos.numel() * cos.element_size()
    return Contest("qk_norm_rope", contenders, exact, moved)


def head_norm_contest(shape: Shape, device: torch.device) -> Contest:
    x = torch.randn(1, shape.tokens, shape.heads, shape.features, device=device).to(DTYPE)
    weight = torch.rand(shape.features, device=device).to(DTYPE)
    compiled = torch.compile(reference.head_norm, dynamic=False)
    contenders: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "triton": lambda: (head_norm(x, weight, EPS),),
        "torch.compile": lambda: (compiled(x, weight, EPS),),
        "torch": lambda: (F.rms_norm(x, (shape.features,), weight, EPS),),
    }
    exact = (reference.head_norm(x.float(), weight, EPS),)
    return Contest("head_norm", contenders, exact, 2 * x.numel() * x.element_size())


def layernorm_modulate_contest(shape: Shape, device: torch.device) -> Contest:
    x = torch.randn(1, shape.tokens, shape.width, device=device).to(DTYPE)
    modulation = torch.randn(1, shape.frames, 3 * shape.width, device=device).to(DTYPE)
    shift, scale, _ = modulation.chunk(3, -1)
    compiled = torch.compile(reference.layernorm_modulate, dynamic=False)

    def one_by_one() -> torch.Tensor:
        frames = F.layer_norm(x, (shape.width,), eps=EPS).unflatten(1, (shape.frames, -1))
        return (frames * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2)

    contenders: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "triton": lambda: (layernorm_modulate(x, shift, scale, None, EPS),),
        "torch.compile": lambda: (compiled(x, shift, scale, None, EPS),),
        "torch": lambda: (one_by_one(),),
    }
    exact = (reference.layernorm_modulate(x.float(), shift, scale, None, EPS),)
    return Contest("layernorm_modulate", contenders, exact, 2 * x.numel() * x.element_size())


CONTESTS = (qk_norm_rope_contest, head_norm_contest, layernorm_modulate_contest)


@torch.inference_mode()
def run(names: list[str], repeats: int, device: torch.device) -> list[Figure]:
    """Figures of every operation at every shape, each contender checked before it is timed.

    Raises:
        WrongResult: a contender is wrong.
    """
    ceiling = copy_bandwidth(device)
    figures = []
    for name in names:
        for make in CONTESTS:
            contest = make(SHAPES[name], device)
            for contender, call in contest.contenders.items():
                error = max(map(relative_error, call(), contest.exact))
                check(f"{contest.operation} by {contender} at {name}", error, ERROR_BOUND)
                timing = measure(call, device, repeats=repeats)
                rate = contest.moved_bytes / timing.median_ms / 1e6
                figures.append(
                    Figure(contest.operation, name, contender, timing, error, rate, rate / ceiling)
                )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all but tiny")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--save", type=Path, help="also write the JSON object here")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    arguments = parser.parse_args()
    names = arguments.shape or [name for name in SHAPES if name != "tiny"]
    try:
        figures = run(names, arguments.repeats, arguments.device)
    except WrongResult as error:
        print(f"bench_kernels: {error}", file=sys.stderr)
        return 1
    settings = {"dtype": str(DTYPE), "repeats": arguments.repeats, "shapes": names}
    report("kernels", figures, device=arguments.device, settings=settings, save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
