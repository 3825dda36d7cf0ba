"""What sends work from a kernel back to torch: gradients, and a wrong or failing first run."""

from __future__ import annotations

from collections.abc import Callable

import torch


def needs_gradient(*tensors: torch.Tensor) -> bool:
    """Kernels have no backward pass: training goes through torch."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def why_wrong(error_of: Callable[[], float], limit: float) -> str | None:
    """Why what was run once must not be used; None if its relative error is within the limit."""
    try:
        error = error_of()
    except torch.AcceleratorError:
        raise  # the device is lost to this process: nothing can fall back
    except Exception as problem:  # whatever a compiler or a foreign wheel raises; it is reported
        return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
    if not error <= limit:
        return f"relative error {error:.1e} where {limit:.0e} is the limit"
    return None
