"""Which matrix product runs: a shipped table, and a test of each choice when an engine starts.

A product of our own takes along what follows it (GELU, gate and residual), so that a result is
written once where cuBLAS and a pass write it twice. Nothing is timed at run time: the same machine,
packages and shapes give the same bytes. Measured by ``benches/bench_linear.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Epilogue = Literal["none", "gelu", "gated"]
"""What follows a product: nothing, GELU, or gate and residual."""


class Gated(NamedTuple):
    """What is added to a product, by the frame of each token."""

    residual_BND: torch.Tensor
    """The stream that the result continues; it is overwritten."""
    gate_BTD: torch.Tensor
    frame_N: torch.Tensor | None
    """int64 frame of each token; None: N / T consecutive tokens to a frame."""


CAPABILITY: Final = (9, 0)
"""The one that there are designs for."""
LEAST_ROWS: Final = 2048
"""Tokens of a product of ours: below, too few tiles for the 132 multiprocessors of an H200."""
LONG_SUM: Final = 4096
"""Inputs from which on the end of a tile is short beside its sum."""
ERROR_LIMIT: Final = 5e-3
"""Of the self-test, relative to float64: thrice what rounding to bfloat16 gives."""


def design(epilogue: Epilogue, rows: int, inputs: int) -> str | None:
    """The design, by its name in ``linear_hopper.DESIGNS``; None: torch's product, and a pass.

    On an H200 at 27,216 tokens of the 2B, milliseconds of cuBLAS and a pass beside ours: GELU
    1.69, 1.45; gate, residual and norm behind 2048 inputs 0.467, 0.415; gate and residual behind
    8192 inputs 1.42, 1.36; q, k and v 1.08, 0.99.
    """
    if rows < LEAST_ROWS:
        return None
    if epilogue == "gelu":
        return "wide"
    if epilogue == "gated" and inputs >= LONG_SUM:
        return "wide, all pieces"
    return "turns"


DESIGNS: Final[tuple[tuple[Epilogue, str], ...]] = (
    ("none", "turns"),
    ("gelu", "wide"),
    ("gated", "turns"),
    ("gated", "wide, all pieces"),
)
"""Everything that :func:`design` may name."""


def self_test_error(
    product: Callable[[Epilogue, str, torch.Tensor, torch.Tensor, Gated | None], torch.Tensor],
    device: str,
) -> float:
    """Largest relative error of any of ``DESIGNS`` against float64, on hard inputs.

    A feature and a token far from the others; sizes that no tile divides.

    Args:
        product: (epilogue, design, x_BNK, weight_EK, what is added) -> (B, N, E).
        device: where it runs.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, device=device, generator=generator)
        return drawn.to(torch.bfloat16)

    x, weight = normal(1, 300, 320), normal(192, 320) * 320**-0.5
    x[..., 7] *= 50.0
    x[:, 0] += 20.0
    residual, gate = normal(1, 300, 192) * 20.0, normal(1, 3, 192)
    exact = x.double() @ weight.double().T
    expected: dict[Epilogue, torch.Tensor] = {
        "none": exact,
        "gelu": exact * torch.special.erfc(-exact * 0.5**0.5) / 2,
        "gated": residual.double() + gate.double().repeat_interleave(100, dim=1) * exact,
    }
    errors = []
    for epilogue, name in DESIGNS:
        gated = Gated(residual.clone(), gate, None) if epilogue == "gated" else None
        ours, wanted = product(epilogue, name, x, weight, gated).double(), expected[epilogue]
        errors.append((ours - wanted).norm() / wanted.norm())
    return float(torch.stack(errors).max())  # NaN wins
