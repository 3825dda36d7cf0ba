"""Products with epilogues: refusals and the arithmetic of GELU anywhere, the rest on Hopper."""

from __future__ import annotations

import math
import types
from typing import Any

import numpy as np
import pytest
import torch

from cosmos_fast_kernels import linear_hopper_epilogue, reference
from cosmos_fast_kernels.linear_hopper import (
    DESIGNS,
    linear,
    linear_gated_residual,
    linear_gelu,
)
from cosmos_fast_kernels.linear_hopper_pipeline import LinearConfig

EPILOGUES = ("none", "gelu", "gated", "indexed")
SHAPES = {
    "one_row": (1, 64, 64),
    "63_rows": (63, 128, 320),
    "ragged_tiles": (300, 192, 192),
    "many_tiles": (4800, 320, 2048),
    "2b_output": (1297, 2048, 2048),
}
"""Rows, inputs, outputs."""
SUMMATION = 2.0**-18
"""Of sums in float32 on tensor cores, relative to the sum of absolute terms."""
FRAMES = 3


def given(
    shape: tuple[int, int, int], device: str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """Inputs with a few features and rows far from the others."""
    rows, inputs, outputs = shape
    x = torch.randn(rows, inputs, device=device)
    x[:, inputs // 3] *= 100
    x[0] += 50
    weight = torch.randn(outputs, inputs, device=device) * inputs**-0.5
    weight[outputs // 5] *= 30
    residual = torch.randn(rows, outputs, device=device) * 20
    modulation = torch.randn(FRAMES, 3 * outputs, device=device)
    one = {"x": x, "weight": weight, "residual": residual}
    one = {name: tensor.to(dtype) for name, tensor in one.items()}
    frame = torch.randint(FRAMES, (rows,), device=device)
    return one | {"gate": modulation.to(dtype).chunk(3, dim=1)[1], "frame": frame}


def fused(one: dict[str, torch.Tensor], epilogue: str, **options: Any) -> torch.Tensor:
    if epilogue == "none":
        return linear(one["x"], one["weight"], **options)
    if epilogue == "gelu":
        return linear_gelu(one["x"], one["weight"], **options)
    frame = one["frame"] if epilogue == "indexed" else None
    gate = one["gate"] if epilogue == "indexed" else one["gate"][: frames_of(one)]
    return linear_gated_residual(one["x"], one["weight"], one["residual"], gate, frame, **options)


def frames_of(one: dict[str, torch.Tensor]) -> int:
    return FRAMES if len(one["x"]) % FRAMES == 0 else 1


def exact_gelu(x: torch.Tensor) -> torch.Tensor:
    """In float64, without the cancellation of 1 + erf."""
    return x * torch.special.erfc(-x * 0.5**0.5) / 2


def after(one: dict[str, torch.Tensor], epilogue: str, product: torch.Tensor) -> torch.Tensor:
    """The epilogue in float64."""
    if epilogue == "none":
        return product
    if epilogue == "gelu":
        return exact_gelu(product)
    return one["residual"].double() + gates(one, epilogue) * product


def gates(one: dict[str, torch.Tensor], epilogue: str) -> torch.Tensor:
    if epilogue == "indexed":
        return one["gate"].double()[one["frame"]]
    frames = frames_of(one)
    return one["gate"][:frames].double().repeat_interleave(len(one["x"]) // frames, dim=0)


def assert_exact(ours: torch.Tensor, one: dict[str, torch.Tensor], epilogue: str) -> None:
    """``ours`` is within half a step of bfloat16, and what float32 sums may be off, of float64."""
    x, weight = one["x"].double(), one["weight"].double()
    exact = after(one, epilogue, x @ weight.T)
    sums = x.abs() @ weight.abs().T * SUMMATION
    if epilogue == "gelu":
        sums *= 1.13  # its steepest slope
    if epilogue in ("gated", "indexed"):
        sums = sums * gates(one, epilogue).abs() + one["residual"].double().abs() * 2.0**-23
    allowed = exact.abs() * 2.0**-8 + sums + 1e-9
    excess = (ours.double() - exact).abs() - allowed
    worst = excess.argmax()
    assert excess.flatten()[worst] <= 0, (  # NaN fails too
        f"element {int(worst)}: {ours.flatten()[worst]} where {exact.flatten()[worst]} is exact"
    )


def guarded(rows: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(a tensor to write, all NaN; the larger one that it lies in)."""
    room = torch.full((rows + 2, outputs + 64), float("nan"), device="cuda", dtype=torch.bfloat16)
    return room[1:-1, :outputs], room


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_element_and_nothing_else(
    shape: tuple[int, int, int], epilogue: str, design: str
) -> None:
    one = given(shape, "cuda")
    untouched = {name: tensor.clone() for name, tensor in one.items()}
    out, room = guarded(shape[0], shape[2])
    assert fused(one, epilogue, out=out, config=DESIGNS[design]) is out
    assert_exact(out, one, epilogue)
    out.fill_(float("nan"))
    assert room.isnan().all(), "written beyond its end"
    for name, tensor in one.items():
        assert torch.equal(tensor, untouched[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
def test_rows_apart(design: str) -> None:
    one = given((321, 256, 384), "cuda")
    for name in ("x", "weight", "residual"):
        one[name] = torch.cat((one[name], one[name] * 7), dim=1)[:, : one[name].shape[1]]
    for epilogue in EPILOGUES:
        assert_exact(fused(one, epilogue, config=DESIGNS[design]), one, epilogue)


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
def test_over_its_own_residual(design: str) -> None:
    one = given((2000, 256, 1024), "cuda")
    expected = fused(one, "indexed", config=DESIGNS[design])
    out = fused(one, "indexed", out=one["residual"], config=DESIGNS[design])
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_runs_agree(epilogue: str, design: str) -> None:
    """Hundreds of tiles a program, again and again: a race would differ."""
    one = given((27_216, 2048, 2048), "cuda")
    first = fused(one, epilogue, config=DESIGNS[design])
    for _ in range(20):
        assert torch.equal(fused(one, epilogue, config=DESIGNS[design]), first)


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", ["gelu", "gated", "indexed"])
def test_rounded_first_as_two_kernels(epilogue: str) -> None:
    """The epilogue of the rounded product, whatever that is."""
    one = given((4800, 2048, 1024), "cuda")
    ours = fused(one, epilogue, round_first=True)
    exact = after(one, epilogue, fused(one, "none").double())
    # GELU's own arithmetic is what 2e-4 is for: far out, where its values are below 1e-6.
    allowed = exact.abs() * (2.0**-8 + 2e-4) + 1e-9
    assert ((ours.double() - exact).abs() <= allowed).all()


@pytest.mark.gpu
def test_not_a_number_stays_one() -> None:
    one = given((200, 64, 128), "cuda")
    one["x"][130, 5] = float("nan")
    for epilogue in EPILOGUES:
        bad = fused(one, epilogue).isnan()
        assert bad[130].all()
        assert bad.sum() == 128


def tail(x: float) -> float:
    return x * math.erfc(-x * 0.5**0.5) / 2


def in_float32(x: np.ndarray) -> np.ndarray:
    """The kernel's own GELU, run as Python with NumPy under it."""
    world = vars(linear_hopper_epilogue) | {
        "gl": types.SimpleNamespace(
            abs=np.abs,
            exp2=np.exp2,
            minimum=lambda a, b, propagate_nan: np.minimum(a, np.float32(b)),
            maximum=lambda a, b, propagate_nan: np.maximum(a, np.float32(b)),
        )
    }
    code = linear_hopper_epilogue.gelu.fn.__code__
    result: np.ndarray = types.FunctionType(code, world)(x)
    assert result.dtype == np.float32
    return result


def every_bfloat16() -> torch.Tensor:
    """All finite ones, from small to large."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    return values[values.isfinite()].sort().values


def test_gelu_is_exact_at_every_bfloat16() -> None:
    values = every_bfloat16()
    ours = in_float32(values.float().numpy()).astype(np.float64)
    exact = np.array([tail(x) for x in values.double().tolist()])
    off = np.abs(ours - exact)
    near = np.abs(values.double().numpy()) <= 4.5
    assert (off[near] <= 6e-6 * np.abs(exact[near])).all()
    assert (off <= 2e-4 * np.abs(exact) + 1e-12).all()


def test_gelu_rounds_as_torch() -> None:
    """To the same bfloat16, down to -3, below which digits of torch's 1 + erf cancel; to the right
    one down to -7. Left out: numbers whose half is not a normal one or whose double is infinite."""
    values = every_bfloat16()
    values = values[(values >= -7.0) & (values.abs() >= 2.0**-120) & (values <= 2.0**120)]
    ours = torch.from_numpy(in_float32(values.float().numpy())).bfloat16()
    exact = torch.tensor([tail(x) for x in values.double().tolist()], dtype=torch.float64)
    assert torch.equal(ours, exact.float().bfloat16())
    above = values >= -3.0
    assert torch.equal(ours[above], torch.nn.functional.gelu(values[above]))


def test_gelu_keeps_infinity_and_what_is_no_number() -> None:
    given_values = np.array([np.inf, np.nan, 0.0], np.float32)
    np.testing.assert_array_equal(in_float32(given_values), given_values)


def test_references_round_once() -> None:
    one = given((9, 64, 128))
    gelu = reference.linear_gelu(one["x"], one["weight"])
    assert_exact(gelu, one, "gelu")
    given_gate = (one["x"], one["weight"], one["residual"], one["gate"])
    assert_exact(reference.linear_gated_residual(*given_gate, None), one, "gated")
    assert_exact(reference.linear_gated_residual(*given_gate, one["frame"]), one, "indexed")


WRONG = {
    "axes": ("x", lambda x: x[None], r"\(M, K\)"),
    "inputs": ("x", lambda x: x[:, :64], r"\(N, K\)"),
    "dtype": ("x", lambda x: x.half(), "bfloat16 on cpu is needed"),
    "last_axis": ("x", lambda x: x.T.contiguous().T, "contiguous last axis"),
    "rows_apart": ("weight", lambda w: torch.cat((w, w[:, :4]), 1)[:, :128], "multiple of 8"),
    "outputs": ("weight", lambda w: w[:100], "multiples of 64"),
    "residual": ("residual", lambda r: r[:5], r"\(6, 192\)"),
    "width": ("gate", lambda g: g[:, :64], r"\(F, 192\)"),
    "gate_dtype": ("gate", lambda g: g.float(), "gate of torch.float32"),
    "frame_dtype": ("frame", lambda f: f.float(), "int32 or int64"),
    "frame_count": ("frame", lambda f: f[:5], r"shape \(6,\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses(name: str) -> None:
    key, change, words = WRONG[name]
    one = given((6, 128, 192))
    one[key] = change(one[key])
    with pytest.raises(ValueError, match=words):
        fused(one, "indexed")


def test_refuses_addresses_that_tma_cannot_start_at() -> None:
    room = torch.zeros(6 * 136 + 1, dtype=torch.bfloat16)
    one = given((6, 128, 192)) | {"x": room[1:].view(6, 136)[:, :128]}
    with pytest.raises(ValueError, match="address that 16 divides"):
        fused(one, "none")


def test_refuses_frames_that_rows_do_not_share_evenly() -> None:
    one = given((7, 64, 64))
    with pytest.raises(ValueError, match="evenly"):
        linear_gated_residual(one["x"], one["weight"], one["residual"], one["gate"], None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 32}, "64 or 128"),
        ({"columns": 192}, "64, 128 or 256"),
        ({"pieces": 3}, "a divisor of 4"),
        ({"pieces": 1}, "2 are needed"),
        ({"stages": 1}, "at least 2"),
        ({"stages": 5}, "bytes of shared memory"),
    ],
    ids=str,
)
def test_refuses_designs(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LinearConfig(**change)


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.zeros(0, 64).bfloat16(), torch.zeros(128, 64).bfloat16()).shape == (0, 128)
