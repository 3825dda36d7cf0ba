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


SHAPES = (
    Shape(27216, 27216, 16),
    Shape(84480, 84480, 16),
    Shape(31104, 31104, 16),
    Shape(27216, 512, 16),
    Shape(4800, 4800, 16),
    Shape(27216, 27216, 40),
    Shape(27216, 128, 16, zero_keys=384),
)
"""By importance: what does not fit the budget is dropped from the end."""

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
    """Relative error against float32 on some rows, the first and the last among them."""
    queries = q.shape[1]
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(queries, (min(queries, 96),), generator=generator)
    rows[0], rows[-1] = 0, queries - 1
    rows = rows.to(q.device)
    if out.shape != q.shape or not bool(torch.isfinite(out).all()):
        return math.inf
    wrong, right = 0.0, 0.0
    for head in range(0, q.shape[2], max(1, q.shape[2] // 4)):
        scores = q[0, rows, head].float() @ k[0, :, head].float().T * q.shape[-1] ** -0.5
        scores = torch.nn.functional.pad(scores, (0, zero_keys))
        expected = scores.softmax(-1)[:, : k.shape[1]] @ v[0, :, head].float()
        wrong += float((out[0, rows, head].float() - expected).norm() ** 2)
        right += float(expected.norm() ** 2)
    return math.sqrt(wrong / right)
