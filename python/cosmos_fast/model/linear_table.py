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

Epilogue = Literal["none", "gelu", "gated", "norm"]
"""What follows a product: nothing, GELU, gate and residual, or the norm of each head."""


class Gated(NamedTuple):
    """What is added to a product, by the frame of each token."""

    residual_BND: torch.Tensor
    """The stream that the result continues; it is overwritten."""
    gate_BTD: torch.Tensor
    frame_N: torch.Tensor | None
    """int64 frame of each token; None: N / T consecutive tokens to a frame."""


class Normed(NamedTuple):
    """The norm of each head of a product."""

    weight_D: torch.Tensor
    eps: float


Following = Gated | Normed | None
"""What an epilogue needs to know."""

CAPABILITY: Final = (9, 0)
"""The one that there are designs for."""
LEAST_ROWS: Final = 2048
"""Tokens of a product of ours: below, too few tiles for the 132 multiprocessors of an H200."""
MANY_ROWS: Final = 8192
"""Tokens from which on tiles of 128 x 256 come in enough waves."""
LONG_SUM: Final = 8192
"""Inputs from which on the end of a tile is short beside its sum."""
MOST_HEAD_INPUTS: Final = 4096
"""Inputs up to which products that make heads are ours; longer ones, those of the 14B, have not
been measured."""
ERROR_LIMIT: Final = 5e-3
"""Of the self-test, relative to float64: thrice what rounding to bfloat16 gives."""


def design(epilogue: Epilogue, rows: int, inputs: int) -> str | None:
    """The design, by its name in ``linear_hopper.DESIGNS``; None: torch's product, and a pass.

    On one H200, milliseconds of cuBLAS and a pass beside ours, 27,216 tokens of the 2B (of the
    14B; 4,800 tokens of the 2B): GELU 1.69, 1.45 (9.24, 8.35; 0.324, 0.248); gate and residual
    behind the MLP 1.42, 1.36 (8.47, 8.33; 0.266, 0.245), behind attention with the norm that
    follows 0.467, 0.415 (2.37, 2.28); norm of heads 0.406, 0.342; q, k and v alone 1.08, 0.99.
    Norm and rotation of q and k stay a pass: taken along they cost 1.13, and q, k and v alone and
    a pass about 1.06.
    """
    if rows < LEAST_ROWS:
        return None
    if epilogue in ("none", "norm") and inputs > MOST_HEAD_INPUTS:
        return None
    if rows < MANY_ROWS:
        return "turns"
    if epilogue == "gelu":
        return "wide"
    if epilogue == "gated" and inputs >= LONG_SUM:
        return "wide, all pieces"
    return "turns"


DESIGNS: Final[tuple[tuple[Epilogue, str], ...]] = (
    ("none", "turns"),
    ("gelu", "turns"),
    ("gelu", "wide"),
    ("gated", "turns"),
    ("gated", "wide, all pieces"),
    ("norm", "turns"),
)
"""Everything that :func:`design` may name."""


def self_test_error(
    product: Callable[[Epilogue, str, torch.Tensor, torch.Tensor, Following], torch.Tensor],
    head_dim: int,
    device: str,
) -> float:
    """Largest relative error of any of ``DESIGNS`` against float64, on hard inputs.

    A feature and a token far from the others; sizes that no tile divides.

    Args:
        product: (epilogue, design, x_BNK, weight_EK, what follows) -> (B, N, E).
        head_dim: features of a head.
        device: where it runs.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, device=device, generator=generator)
        return drawn.to(torch.bfloat16)

    outputs = 3 * head_dim
    x, weight = normal(1, 300, 320), normal(outputs, 320) * 320**-0.5
    x[..., 7] *= 50.0
    x[:, 0] += 20.0
    gated = Gated(normal(1, 300, outputs) * 20.0, normal(1, 3, outputs), None)
    norm = 1 + normal(head_dim) / 4
    exact = x.double() @ weight.double().T
    expected: dict[Epilogue, tuple[Following, torch.Tensor]] = {
        "none": (None, exact),
        "gelu": (None, exact * torch.special.erfc(-exact * 0.5**0.5) / 2),
        "gated": (gated, _gated(gated, exact)),
        "norm": (Normed(norm, 1e-6), _normed(exact, norm)),
    }
    errors = []
    for epilogue, name in DESIGNS:
        following, wanted = expected[epilogue]
        if isinstance(following, Gated):
            following = following._replace(residual_BND=following.residual_BND.clone())
        ours = product(epilogue, name, x, weight, following).double()
        errors.append((ours - wanted).norm() / wanted.norm())
    return float(torch.stack(errors).max())  # NaN wins


def _gated(gated: Gated, product: torch.Tensor) -> torch.Tensor:
    gate_BND = gated.gate_BTD.double().repeat_interleave(product.shape[1] // 3, dim=1)
    return gated.residual_BND.double() + gate_BND * product


def _normed(product: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    heads: torch.Tensor = product.unflatten(-1, (-1, weight_D.shape[0]))
    size = heads.square().mean(-1, keepdim=True) + 1e-6
    normed: torch.Tensor = heads * size.rsqrt() * weight_D.double()
    return normed.flatten(-2)
