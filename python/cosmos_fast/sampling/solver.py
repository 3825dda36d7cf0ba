"""Solvers: functions from a predictor, a start and noise levels to clean latents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from cosmos_fast.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from cosmos_fast.sampling.predictor import Predictor

    StepCallback = Callable[[int, int, torch.Tensor], None]


class CancelToken(Protocol):
    """What ``cancel`` must offer; ``threading.Event`` does."""

    def is_set(self) -> bool: ...


def adams_bashforth(
    predict: Predictor,
    x: torch.Tensor,
    sigmas: Sequence[float],
    *,
    on_step: StepCallback | None = None,
    cancel: CancelToken | None = None,
) -> torch.Tensor:
    """Two-step exponential Adams-Bashforth in log sigma, then one clean-up evaluation.

    The data-prediction multistep solver of DPM-Solver++ (arXiv 2211.01095, 2M), in the
    coefficients of NVIDIA's ``res_x0_rk`` / ``2ab``: with a = s'/s, h = ln(s/s') and the previous
    step's length h', x <- a x + (1 - a) x0 + (h - 1 + a) (x0 - x0_prev) / h'. The first step is
    Euler's. The state is kept in float32, the update is made in float64.

    Args:
        predict: called once a step and once more at the last level.
        x: float32, noise times ``sigmas[0]``.
        sigmas: K + 1 falling levels.
        on_step: called after each evaluation with its number from 1, K + 1, and x0.
        cancel: looked at before each evaluation.

    Returns:
        float32: the prediction at the last level, not the state.

    Raises:
        Cancelled: ``cancel`` was set.
    """
    evaluations = len(sigmas)

    def evaluate(state: torch.Tensor, step: int) -> torch.Tensor:
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"cancelled before evaluation {step + 1} of {evaluations}")
        x0 = predict(state, sigmas[step], step)
        if on_step is not None:
            on_step(step + 1, evaluations, x0)
        return x0

    x0_previous, length_previous = None, 1.0
    for step in range(evaluations - 1):
        x0 = evaluate(x, step)
        ratio, length = sigmas[step + 1] / sigmas[step], math.log(sigmas[step] / sigmas[step + 1])
        state = ratio * x.double() + (1 - ratio) * x0.double()
        if x0_previous is not None:
            slope = (x0.double() - x0_previous.double()) / length_previous
            state += (length - 1 + ratio) * slope
        x, x0_previous, length_previous = state.float(), x0, length
    return evaluate(x, evaluations - 1)
