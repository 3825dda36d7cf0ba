"""Products with epilogues of our own beside cuBLAS and a pass of its own for the epilogue.

python benches/bench_linear.py [--shape 2b_up ...] [--contender turns ...] [--save FILE]

"cublas" in front of a "+" is torch's matrix product in bfloat16, and what follows is the pass that
the engine runs behind it. "cublas alone" leaves the epilogue out: what is computed is less, so that
it shows the rate to hold and no rival. Ours are "fused": one kernel, several designs. Inputs are
larger than the last-level cache wherever tokens are many. Time saved is "+" less "fused".
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from contest import ROUNDS, Contender, Contest, Report

from cosmos_fast_kernels import linear_hopper, reference
from cosmos_fast_kernels.gated_layernorm_modulate import gated_layernorm_modulate, gated_residual
from cosmos_fast_kernels.layernorm_modulate import layernorm_modulate
from cosmos_fast_kernels.qk_norm_rope import head_norm, qk_norm_rope

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosmos_fast_kernels.linear_hopper_pipeline import LinearConfig

DTYPE = torch.bfloat16
FEATURES = 128
"""Of a head."""
EPS = 1e-6
ERROR_LIMIT = 3.5e-3
"""Relative: one rounding to bfloat16 is 1.7e-3, two 2.4e-3, one wrong row of 27,216 6e-3."""
ROWS_AT_ONCE = 4096
"""Of the exact result, in float64."""


@dataclass(frozen=True)
class Shape:
    """One product of a network, and what follows it."""

    tokens: int
    frames: int
    inputs: int
    outputs: int
    epilogue: Literal["none", "gelu", "gated", "norm", "rope"]
    norm_follows: bool = False
    """Whether the next sub-layer's norm and modulation count, which a pass does on its way."""


def of_network(
    name: str,
    tokens: int,
    frames: int,
    width: int,
    hidden: int,
    *,
    qkv: bool = False,
    heads: bool = False,
) -> dict[str, Shape]:
    """The products of a block, by importance; those into heads, bare or with norms, on demand."""
    shapes = {
        f"{name}_up": Shape(tokens, frames, width, hidden, "gelu"),
        f"{name}_down": Shape(tokens, frames, hidden, width, "gated"),
        f"{name}_out": Shape(tokens, frames, width, width, "gated", norm_follows=True),
    }
    if qkv:
        shapes[f"{name}_qkv"] = Shape(tokens, frames, width, 3 * width, "none")
    if heads:
        shapes[f"{name}_qkv_rope"] = Shape(tokens, frames, width, 3 * width, "rope")
        shapes[f"{name}_q_norm"] = Shape(tokens, frames, width, width, "norm")
    return shapes


SHAPES = {
    **of_network("2b", 27_216, 21, 2048, 8192, qkv=True, heads=True),
    **of_network("2b_31k", 31_104, 24, 2048, 8192, heads=True),
    **of_network("2b_720p", 84_480, 24, 2048, 8192),
    **of_network("2b_action", 4_800, 4, 2048, 8192),
    **of_network("14b", 27_216, 21, 5120, 20_480, qkv=True, heads=True),
    "63_rows": Shape(63, 1, 2048, 8192, "gelu"),
    "one_row": Shape(1, 1, 2048, 8192, "gelu"),
}
"""By importance: the first is held longest."""
TINY = {
    "tiny_up": Shape(66, 3, 64, 192, "gelu"),
    "tiny_down": Shape(66, 3, 192, 64, "gated"),
    "tiny_qkv": Shape(66, 3, 64, 192, "none"),
    "tiny_qkv_rope": Shape(66, 3, 64, 768, "rope"),
    "tiny_q_norm": Shape(66, 3, 64, 256, "norm"),
}


def designs() -> dict[str, LinearConfig]:
    """Ours, by name."""
    shipped = dict(linear_hopper.DESIGNS)
    bands = {
        "wide, bands of 8": replace(linear_hopper.WIDE, group=8),
        "wide, bands of 32": replace(linear_hopper.WIDE, group=32),
        "turns, bands of 8": replace(linear_hopper.TURNS, group=8),
        "turns, bands of 32": replace(linear_hopper.TURNS, group=32),
    }
    return {f"fused, {name}": config for name, config in (shipped | bands).items()}


@dataclass(frozen=True)
class Inputs:
    """Tensors of one shape; magnitudes as in a network, as power depends on them."""

    shape: Shape
    x: torch.Tensor
    weight: torch.Tensor
    residual: torch.Tensor
    modulation: tuple[torch.Tensor, ...]
    """Shift, scale and gate, (F, N) each."""
    norms: tuple[torch.Tensor, torch.Tensor]
    """Of q and k."""
    angles: tuple[torch.Tensor, torch.Tensor]
    """Cosines and sines."""

    @property
    def gate(self) -> torch.Tensor:
        return self.modulation[2]

    @classmethod
    def drawn(cls, shape: Shape, device: torch.device) -> Inputs:
        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, device=device, dtype=DTYPE)

        modulation = normal(shape.frames, 3 * shape.outputs)
        angles = torch.rand(shape.tokens, FEATURES // 2, device=device) * 100
        return cls(
            shape,
            normal(shape.tokens, shape.inputs),
            normal(shape.outputs, shape.inputs) * shape.inputs**-0.5,
            normal(shape.tokens, shape.outputs),
            modulation.chunk(3, dim=1),
            (1 + normal(FEATURES) / 4, 1 + normal(FEATURES) / 4),
            (angles.cos(), angles.sin()),
        )

    def exact(self, rows: slice, *, epilogue: bool) -> torch.Tensor:
        """Some rows of the result in float64."""
        product = self.x[rows].double() @ self.weight.double().T
        if not epilogue or self.shape.epilogue == "none":
            return product
        if self.shape.epilogue == "gelu":
            return product * torch.special.erfc(-product * 0.5**0.5) / 2
        if self.shape.epilogue in ("norm", "rope"):
            return self.exact_heads(product, rows)
        each = self.shape.tokens // self.shape.frames
        frame = torch.arange(self.shape.tokens, device=self.x.device)[rows] // each
        return self.residual[rows].double() + self.gate.double()[frame] * product

    def exact_heads(self, product: torch.Tensor, rows: slice) -> torch.Tensor:
        """Some rows of the product, its heads normed and turned."""
        norms = [norm.double() for norm in self.norms]

        def normed(x_MHD: torch.Tensor, norm_D: torch.Tensor) -> torch.Tensor:
            return x_MHD * (x_MHD.square().mean(-1, keepdim=True) + EPS).rsqrt() * norm_D

        if self.shape.epilogue == "norm":
            return normed(product.unflatten(1, (-1, FEATURES)), norms[0]).flatten(1)
        q, k, v = product.unflatten(1, (3, -1, FEATURES)).unbind(1)
        cos, sin = (table[rows, None].double() for table in self.angles)
        turned = [
            torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
            for first, second in (
                normed(one, norm).chunk(2, dim=-1) for one, norm in zip((q, k), norms, strict=True)
            )
        ]
        return torch.stack((*turned, v), dim=1).flatten(1)

    def error(self, call: Callable[[], torch.Tensor], *, epilogue: bool = True) -> float:
        """Relative to the exact result, all rows."""
        result = call()
        off = size = 0.0
        for start in range(0, self.shape.tokens, ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            exact = self.exact(rows, epilogue=epilogue)
            off += float((result[rows].double() - exact).square().sum())
            size += float(exact.square().sum())
        return float((off / size) ** 0.5)

    def fused(self, config: LinearConfig | None) -> torch.Tensor:
        if self.shape.epilogue == "none":
            return linear_hopper.linear(self.x, self.weight, config=config)
        if self.shape.epilogue == "gelu":
            return linear_hopper.linear_gelu(self.x, self.weight, config=config)
        if self.shape.epilogue == "norm":
            return linear_hopper.linear_head_norm(
                self.x, self.weight, self.norms[0], EPS, config=config
            )
        if self.shape.epilogue == "rope":
            return linear_hopper.linear_qk_norm_rope(
                self.x, self.weight, *self.norms, *self.angles, EPS, config=config
            )
        total = linear_hopper.linear_gated_residual(
            self.x, self.weight, self.residual, self.gate, None, config=config
        )
        if self.shape.norm_follows:
            shift, scale, _ = (one[None] for one in self.modulation)
            layernorm_modulate(total[None], shift, scale, None, EPS)
        return total

    def product(self) -> torch.Tensor:
        return F.linear(self.x, self.weight)

    def in_two_passes(self) -> torch.Tensor:
        """The product, and then what the engine runs behind it."""
        product = self.product()
        if self.shape.epilogue == "gelu":
            return F.gelu(product)
        if self.shape.epilogue in ("norm", "rope"):
            return self.with_heads_in_place(product)
        if self.x.device.type == "cpu":  # nothing is measured there
            frames = (self.shape.frames, -1)
            gated = self.gate[:, None] * product.unflatten(0, frames)
            return (self.residual.unflatten(0, frames) + gated).flatten(0, 1)
        shift, scale, gate = (one[None] for one in self.modulation)
        given = (self.residual[None], gate, product[None])
        if self.shape.norm_follows:
            return gated_layernorm_modulate(*given, shift, scale, None, EPS)[0][0]
        return gated_residual(*given, None)[0]

    def with_heads_in_place(self, product: torch.Tensor) -> torch.Tensor:
        """Norms and rotation over the product, as the engine runs them; on a CPU plain torch."""
        on_cpu = product.device.type == "cpu"  # nothing is measured there
        if self.shape.epilogue == "norm":
            heads = product[None].unflatten(-1, (-1, FEATURES))
            if on_cpu:
                heads.copy_(reference.head_norm(heads, self.norms[0], EPS))
            else:
                head_norm(heads, self.norms[0], EPS, out=heads)
            return product
        q, k, _ = product[None].unflatten(-1, (3, -1, FEATURES)).unbind(2)
        given = (q, k, *self.norms, *self.angles, EPS)
        if on_cpu:
            for one, result in zip((q, k), reference.qk_norm_rope(*given), strict=True):
                one.copy_(result)
        else:
            qk_norm_rope(*given, out=(q, k))
        return product


def contest(
    name: str, shape: Shape, device: torch.device, wanted: list[str], seconds: float
) -> Contest:
    """One shape: cuBLAS alone, cuBLAS and a pass, and each of our designs that is ``wanted``."""
    inputs = Inputs.drawn(shape, device)
    alone = partial(inputs.error, inputs.product, epilogue=False)
    contenders = [Contender("cublas alone", inputs.product, alone)]
    behind = {
        "gelu": "torch gelu",
        "gated": "our gate, residual",
        "norm": "our head norm",
        "rope": "our norm, rope",
    }
    if shape.epilogue != "none":
        call = inputs.in_two_passes
        name_of_both = f"cublas + {behind[shape.epilogue]}" + ", norm" * shape.norm_follows
        contenders.append(Contender(name_of_both, call, partial(inputs.error, call)))
    for title, config in designs().items() if device.type == "cuda" else ():
        if not wanted or title in wanted:
            fused = partial(inputs.fused, config)
            error = partial(inputs.error, fused)
            title += " + our norm" * shape.norm_follows
            contenders.append(Contender(title, fused, error, ours=True))
    ends = shape.tokens * (shape.inputs + shape.outputs * (2 if shape.epilogue == "gated" else 1))
    return Contest(
        f"linear_{shape.epilogue}",
        name,
        tuple(contenders),
        ERROR_LIMIT,
        flops=2.0 * shape.tokens * shape.inputs * shape.outputs,
        moved_bytes=2.0 * (ends + shape.inputs * shape.outputs),
        seconds=seconds,
        rounds=2 if name in TINY else ROUNDS,
    )


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all")
    parser.add_argument(
        "--contender", action="append", choices=designs(), help="ours to take part; default: all"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="each contender, each shape")
    parser.add_argument("--long", type=float, default=5.0, help="the same, first shape")
    parser.add_argument("--save", type=Path, help="also write the JSON object here")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any device")
    parser.add_argument("--device", type=torch.device)
    arguments = parser.parse_args()
    device = arguments.device or torch.device("cpu" if arguments.tiny else "cuda")
    shapes = TINY if arguments.tiny else SHAPES
    names = arguments.shape or list(shapes)
    settings = {"dtype": str(DTYPE), "shapes": names, "seconds": arguments.seconds}
    report = Report("linear", device, settings, arguments.save)
    times = [arguments.long] + [arguments.seconds] * (len(names) - 1)
    wanted = arguments.contender or []
    return report.carry_out(
        [
            partial(contest, name, shapes[name], device, wanted, seconds)
            for name, seconds in zip(names, times, strict=True)
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
