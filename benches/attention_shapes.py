"""The attentions of the model, and small ones to check: shapes, inputs, error of a result."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shape:
    """One attention of the model."""

    queries: int
    keys: int
    heads: int
    zero_keys: int = 0

    @property
    def name(self) -> str:
        folded = f"+{self.zero_keys} folded" if self.zero_keys else ""
        return f"{self.queries} x {self.keys}{folded}, {self.heads} heads"

    @property
    def flops(self) -> float:
        """Of the two products; folded keys count as the work they stand for."""
        return 4.0 * self.queries * (self.keys + self.zero_keys) * self.heads * 128

    @property
    def small(self) -> bool:
        """Whether a call is shorter than a host may take to launch it: such calls are timed out of
        a graph, as engines replay them or hide their launches behind longer kernels."""
        return self.flops < SMALL_FLOPS


SMALL_FLOPS = 3e11
"""Half a millisecond at 600 TFLOP/s."""

SHAPES = (
    Shape(27216, 27216, 16),
    Shape(27216, 128, 16, zero_keys=384),
    Shape(27216, 512, 16),
    Shape(84480, 84480, 16),
    Shape(31104, 31104, 16),
    Shape(27216, 27216, 40),
    Shape(31104, 31104, 40),
    Shape(84480, 84480, 40),
    Shape(4800, 4800, 16),
)
"""By importance: what the budget has no room for is listed as not run. Folding is exact: with
``zero_keys`` ours read the keys of the prompt, the others those and the zeros."""

DRY_SHAPES = (Shape(200, 300, 2), Shape(100, 64, 2, zero_keys=8))

CHECKS = (
    Shape(1, 1, 1),
    Shape(63, 1000, 3),
    Shape(300, 257, 2),
    Shape(1000, 129, 2),
    Shape(4800, 4800, 16),
    Shape(2000, 200, 16, zero_keys=312),
)


def inputs(shape: Shape, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v as a projection leaves them, with what breaks kernels: channels of k far from zero,
    a few heavy tokens that all queries look at, and a row of large values."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(length: int) -> torch.Tensor:
        wide = torch.randn(1, length, 3 * shape.heads * 128, device=device, generator=generator)
        return wide.to(torch.bfloat16).view(1, length, 3, shape.heads, 128)

    q = normal(shape.queries)[:, :, 0]
    k, v = normal(shape.keys)[:, :, 1:].unbind(2)
    channels = torch.arange(0, 128, 16, device=device)
    k[..., channels] += torch.linspace(10, 50, len(channels), device=device, dtype=k.dtype)
    q[..., 5] += 1.0
    k[:, :4, :, 5] += 30.0
    v[:, -1] *= 8
    return q, k, v


def error(
    out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, zero_keys: int
) -> float:
    """Relative error against float32 on 96 rows of four heads, the first and the last among them.

    What it needs beside its inputs is bounded: at 84,480 keys 32 MB of scores and 86 MB of one
    head's keys and values.
    """
    queries = q.shape[1]
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(queries, (min(queries, 96),), generator=generator)
    rows[0], rows[-1] = 0, queries - 1
    rows = rows.to(q.device)
    if out.shape != q.shape or not bool(torch.isfinite(out).all()):
        return math.inf
    wrong, right = 0.0, 0.0
    heads = {round(head) for head in torch.linspace(0, q.shape[2] - 1, 4).tolist()}
    for head in sorted(heads):
        scores = q[0, rows, head].float() @ k[0, :, head].float().T * q.shape[-1] ** -0.5
        scores = torch.nn.functional.pad(scores, (0, zero_keys))
        expected = scores.softmax(-1)[:, : k.shape[1]] @ v[0, :, head].float()
        wrong += float((out[0, rows, head].float() - expected).norm() ** 2)
        right += float(expected.norm() ** 2)
    return math.sqrt(wrong / right)
