"""What one planning decision would cost with NVIDIA's action-conditioned 2B: arithmetic, not a run.

Operations of the transformer alone, as ``model/flops.py`` counts them, over the speed that
BENCHMARKS.md reports for a whole run of the 2B; encoding and decoding come on top.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from cosmos_fast.config import DiTConfig
from cosmos_fast.model.flops import forward_flops
from cosmos_fast.sampling import sigmas

BENCHMARKS: Final = Path(__file__).resolve().parents[2] / "BENCHMARKS.md"
RELEASED: Final = DiTConfig(num_layers=28, num_heads=16)
LATENT_SIZE: Final = (4, 60, 80)
"""13 frames of 480 x 640."""
STEPS: Final = 35
FEWER_STEPS: Final = 10


def measured_speed(text: str) -> float:
    """The TFLOP/s of the last "median step" row of BENCHMARKS.md; its last column.

    Raises:
        ValueError: there is no such row.
    """
    rows = re.findall(r"^\| median step.*?(\d+) TFLOP/s \|$", text, re.MULTILINE)
    if not rows:
        raise ValueError('no row "| median step ... TFLOP/s |" in BENCHMARKS.md')
    return float(rows[-1])


def decision_cost(futures: int, speed: float | None = None) -> dict[str, Any]:
    """
    Args:
        futures: chunks that a decision imagines: candidates, rounds and chunks multiplied.
        speed: TFLOP/s; None is the measured one.
    """
    speed = measured_speed(BENCHMARKS.read_text("utf-8")) if speed is None else speed
    forward = forward_flops(RELEASED, LATENT_SIZE).total
    found: dict[str, Any] = {
        "label": "arithmetic, not measured",
        "futures": futures,
        "tflop_a_forward": round(forward / 1e12, 2),
        "measured_tflop_per_second": speed,
    }
    for steps in (STEPS, FEWER_STEPS):
        # One branch: its guidance is 0. The solver looks once more than it steps.
        evaluations = len(sigmas(steps))
        operations = futures * evaluations * forward
        found[f"{steps}_steps"] = {
            "forwards": futures * evaluations,
            "pflop": round(operations / 1e15, 1),
            "seconds": round(operations / speed / 1e12, 1),
        }
    return found
