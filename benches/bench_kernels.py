"""The fused kernels beside plain torch and torch.compile, at the shapes of the released networks.

python benches/bench_kernels.py [--shape 2b_480p ...] [--seconds 0.5] [--save FILE]

"torch" is the operation as diffusers writes it, every step rounded; "torch.compile" is our
reference function through Inductor; "triton" is the kernel that the engine runs. Inputs are several
times the last-level cache at every shape but tiny. The first row is held for 30 seconds.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from contest import ROUNDS, Contender, Contest, Report
from harness import relative_error

from cosmos_fast_kernels import reference
from cosmos_fast_kernels.gated_layernorm_modulate import gated_layernorm_modulate, gated_residual
from cosmos_fast_kernels.layernorm_modulate import layernorm_modulate
from cosmos_fast_kernels.qk_norm_rope import head_norm, qk_norm_rope
from cosmos_fast_kernels.rms_silu import rms_silu
from cosmos_fast_kernels.upsample import upsample

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


Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Operation:
    """One operation at one shape: who runs it, what is exact, how many bytes have to move."""

    name: str
    contenders: dict[str, Callable[[], Tensors]]
    exact: Tensors
    moved_bytes: int

    def contest(self, shape: str, seconds: float) -> Contest:
        return Contest(
            self.name,
            shape,
            tuple(self._contender(name, call) for name, call in self.contenders.items()),
            ERROR_BOUND,
            moved_bytes=self.moved_bytes,
            seconds=seconds,
            rounds=2 if shape == "tiny" else ROUNDS,
        )

    def _contender(self, name: str, call: Callable[[], Tensors]) -> Contender:
        def error() -> float:
            errors = list(map(relative_error, call(), self.exact))
            return float(torch.tensor(errors).max())  # Python's max may pass over a NaN

        return Contender(name, call, error, ours=name == "triton")


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Through Inductor; on a CPU, where nothing is measured, the function itself."""
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function


def qk_norm_rope_operation(shape: Shape, device: torch.device) -> Operation:
    qkv = torch.randn(1, shape.tokens, 3, shape.heads, shape.features, device=device).to(DTYPE)
    q, k, _ = qkv.unbind(2)
    q_weight, k_weight = torch.rand(2, shape.features, device=device).to(DTYPE).unbind()
    angles = torch.rand(shape.tokens, shape.features // 2, device=device) * 80
    cos, sin = angles.cos(), angles.sin()
    arguments = (q_weight, k_weight, cos, sin, EPS)
    out = torch.empty(2, *q.shape, dtype=DTYPE, device=device)
    through_inductor = compiled(reference.qk_norm_rope, device)
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
        "torch.compile": lambda: through_inductor(q, k, *arguments),
        "torch": lambda: (one_by_one(q, q_weight), one_by_one(k, k_weight)),
    }
    exact = reference.qk_norm_rope(q.float(), k.float(), *arguments)
    moved = 4 * q.numel() * q.element_size() + 2 * cos.numel() * cos.element_size()
    return Operation("qk_norm_rope", contenders, exact, moved)


def head_norm_operation(shape: Shape, device: torch.device) -> Operation:
    x = torch.randn(1, shape.tokens, shape.heads, shape.features, device=device).to(DTYPE)
    weight = torch.rand(shape.features, device=device).to(DTYPE)
    through_inductor = compiled(reference.head_norm, device)
    contenders: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "triton": lambda: (head_norm(x, weight, EPS),),
        "torch.compile": lambda: (through_inductor(x, weight, EPS),),
        "torch": lambda: (F.rms_norm(x, (shape.features,), weight, EPS),),
    }
    exact = (reference.head_norm(x.float(), weight, EPS),)
    return Operation("head_norm", contenders, exact, 2 * x.numel() * x.element_size())


def layernorm_modulate_operation(shape: Shape, device: torch.device) -> Operation:
    x = torch.randn(1, shape.tokens, shape.width, device=device).to(DTYPE)
    modulation = torch.randn(1, shape.frames, 3 * shape.width, device=device).to(DTYPE)
    shift, scale, _ = modulation.chunk(3, -1)
    through_inductor = compiled(reference.layernorm_modulate, device)

    def one_by_one() -> torch.Tensor:
        frames = F.layer_norm(x, (shape.width,), eps=EPS).unflatten(1, (shape.frames, -1))
        return (frames * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2)

    contenders: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "triton": lambda: (layernorm_modulate(x, shift, scale, None, EPS),),
        "torch.compile": lambda: (through_inductor(x, shift, scale, None, EPS),),
        "torch": lambda: (one_by_one(),),
    }
    exact = (reference.layernorm_modulate(x.float(), shift, scale, None, EPS),)
    return Operation("layernorm_modulate", contenders, exact, 2 * x.numel() * x.element_size())


def gated_operation(shape: Shape, device: torch.device, *, norm: bool) -> Operation:
    x, y = torch.randn(2, 1, shape.tokens, shape.width, device=device).to(DTYPE).unbind()
    modulation = torch.randn(1, shape.frames, 3 * shape.width, device=device).to(DTYPE)
    gate, shift, scale = modulation.chunk(3, -1)
    vectors = (shift, scale, None, EPS)
    function: Callable[..., Any] = (
        reference.gated_layernorm_modulate if norm else reference.gated_residual
    )
    through_inductor = compiled(function, device)
    given = (x, gate, y, *vectors) if norm else (x, gate, y, None)

    def one_by_one() -> Tensors:
        frames = (shape.frames, -1)
        total = x.unflatten(1, frames) + gate[:, :, None] * y.unflatten(1, frames)
        if not norm:
            return (total.flatten(1, 2),)
        normed = F.layer_norm(total, (shape.width,), eps=EPS)
        normed = normed * (1 + scale[:, :, None]) + shift[:, :, None]
        return total.flatten(1, 2), normed.flatten(1, 2)

    kernel: Callable[..., Any] = gated_layernorm_modulate if norm else gated_residual
    contenders: dict[str, Callable[[], Tensors]] = {
        "triton": lambda: _several(kernel(*given)),
        "torch.compile": lambda: _several(through_inductor(*given)),
        "torch": one_by_one,
    }
    wide = tuple(one.float() if isinstance(one, torch.Tensor) else one for one in given)
    exact = _several(function(*wide))
    name = "gated_layernorm_modulate" if norm else "gated_residual"
    return Operation(name, contenders, exact, (4 if norm else 3) * x.numel() * x.element_size())


def gelu_operation(shape: Shape, device: torch.device) -> Operation:
    """Plain torch is what the engine runs: shown beside the ceiling, with no kernel of our own."""
    x = torch.randn(1, shape.tokens, 4 * shape.width, device=device).to(DTYPE)
    contenders: dict[str, Callable[[], Tensors]] = {"torch": lambda: (F.gelu(x),)}
    return Operation("gelu", contenders, (F.gelu(x.float()),), 2 * x.numel() * x.element_size())


VAE_LEVELS = {"2b_480p": (432, 768), "2b_720p": (704, 1280), "tiny": (6, 10)}
"""Pictures of the last level, 96 channels, four frames."""


def rms_silu_operation(size: tuple[int, int], device: torch.device) -> Operation:
    shape = (1, 4, *size, 96)
    x, residual = (torch.randn(shape, device=device).to(DTYPE) for _ in range(2))
    earlier = torch.randn(1, 2, *size, 96, device=device).to(DTYPE)
    gamma, bias = torch.rand(2, 96, device=device).to(DTYPE).unbind()
    given = (x, gamma, bias, residual, None, earlier, 2)
    through_inductor = compiled(partial(reference.rms_silu, keep_total=True), device)

    def one_by_one() -> Tensors:
        total = x + bias + residual
        normed = F.normalize(total, dim=-1) * 96**0.5 * gamma
        padded = torch.cat((earlier, F.silu(normed)), dim=1)
        return total, padded, padded[:, -2:].clone()

    contenders: dict[str, Callable[[], Tensors]] = {
        "triton": lambda: _several(rms_silu(*given, keep_total=True)),
        "torch.compile": lambda: _several(through_inductor(*given)),
        "torch": one_by_one,
    }
    wide = (x.float(), gamma, bias, residual.float(), None, earlier.float(), 2)
    exact = _several(reference.rms_silu(*wide, keep_total=True))
    frames = 4 + 4 + 2 + 4 + 6 + 2  # x, shortcut, history; sum, input, what is kept
    return Operation("rms_silu", contenders, exact, frames * x[:, 0].numel() * x.element_size())


def upsample_operation(size: tuple[int, int], device: torch.device) -> Operation:
    x = torch.randn(1, 4, size[0] // 2, size[1] // 2, 192, device=device).to(DTYPE)

    def one_by_one() -> Tensors:
        pictures = x.flatten(0, 1).permute(0, 3, 1, 2)
        doubled = F.interpolate(pictures, scale_factor=2.0, mode="nearest-exact")
        return (doubled.permute(0, 2, 3, 1)[None],)

    contenders: dict[str, Callable[[], Tensors]] = {
        "triton": lambda: (upsample(x, None, in_time=False),),
        "torch": one_by_one,
    }
    exact = (reference.upsample(x, None, in_time=False),)
    return Operation("upsample", contenders, exact, 5 * x.numel() * x.element_size())


def _several(result: object) -> Tensors:
    """The tensors of a result."""
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(one for one in parts if isinstance(one, torch.Tensor))


OF_TOKENS: tuple[Callable[[Shape, torch.device], Operation], ...] = (
    qk_norm_rope_operation,
    head_norm_operation,
    layernorm_modulate_operation,
    partial(gated_operation, norm=True),
    partial(gated_operation, norm=False),
    gelu_operation,
)
OF_PICTURES: tuple[Callable[[tuple[int, int], torch.device], Operation], ...] = (
    rms_silu_operation,
    upsample_operation,
)


def contests(
    names: list[str], device: torch.device, seconds: float, longest: float
) -> list[Callable[[], Contest]]:
    """Every operation at every shape, made when its turn comes; the first is held longest."""
    made: list[Callable[[], Operation]] = []
    shapes: list[str] = []
    for name in names:
        of_shape = [partial(make, SHAPES[name], device) for make in OF_TOKENS]
        if name in VAE_LEVELS:
            of_shape += [partial(make, VAE_LEVELS[name], device) for make in OF_PICTURES]
        made += of_shape
        shapes += [name] * len(of_shape)

    def contest(index: int) -> Contest:
        return made[index]().contest(shapes[index], longest if index == 0 else seconds)

    return [partial(contest, index) for index in range(len(made))]


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all but tiny")
    parser.add_argument("--seconds", type=float, default=0.5, help="each contender, each shape")
    parser.add_argument("--long", type=float, default=30.0, help="the same, first row")
    parser.add_argument("--save", type=Path, help="also write the JSON object here")
    parser.add_argument("--tiny", action="store_true", help="the smallest shape, on any device")
    parser.add_argument("--device", type=torch.device)
    arguments = parser.parse_args()
    device = arguments.device or torch.device("cpu" if arguments.tiny else "cuda")
    names = arguments.shape or [name for name in SHAPES if (name == "tiny") == arguments.tiny]
    settings = {"dtype": str(DTYPE), "shapes": names, "seconds": arguments.seconds}
    report = Report("kernels", device, settings, arguments.save)
    return report.carry_out(contests(names, device, arguments.seconds, arguments.long))


if __name__ == "__main__":
    sys.exit(main())
