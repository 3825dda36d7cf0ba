"""The fit of the Rust core for pictures that are on a device, to the order of its operations.

torch's own interpolation adds in another order on a device than on a processor, and truncation
makes a whole level of a last bit. Here the core says which pixels each position sums, with which
weights; every product and every sum is a kernel of its own, so that no compiler fuses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from cosmos_fast._core import resize_windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.media.limits import Fit
    from cosmos_fast.types import Size

_BLOCK = 1 << 22
"""Values that are summed at a time, in float64 at most: what a large picture takes is bounded."""


class _Axis(NamedTuple):
    """What one axis sums: S terms for each of its N output positions."""

    index_SN: torch.Tensor
    """int64: the input of each term."""
    weight_SN: torch.Tensor
    """float32; 0 where a position has fewer terms."""
    fused_SN: torch.Tensor
    """bool: whether product and sum are rounded together."""
    all_fused: list[bool]
    """Of the positions, by term."""
    none_fused: list[bool]

    def part(self, block: slice) -> _Axis:
        return self._replace(
            index_SN=self.index_SN[:, block].contiguous(),
            weight_SN=self.weight_SN[:, block],
            fused_SN=self.fused_SN[:, block],
        )


def fit_tensor(pixels: torch.Tensor, size: Size, fit: Fit) -> torch.Tensor:
    """The same fit as the Rust core's, on the tensor's device, for which the host does not wait.

    Args:
        pixels: uint8, shape (T, h, w, 3).
        size: height and width of the result.
        fit: "cover" or "stretch".

    Returns:
        uint8, shape (T, H, W, 3), same device.

    Raises:
        InputError: a side that is empty or beyond 1048576, or an unknown fit.
    """
    frames, height, width, _ = pixels.shape
    across, down = resize_windows((height, width), (size.height, size.width), fit=fit)
    columns, left_to_right = _axis(across, width, pixels.device)
    rows, top_to_bottom = _axis(down, height, pixels.device)
    seen = pixels[:, top_to_bottom, left_to_right]
    narrow = pixels.new_empty((frames, seen.shape[1], size.width, 3), dtype=torch.float32)
    levels = pixels.new_empty((frames, size.height, size.width, 3))
    # Dividing by a number of the host would be a product with 1 / 255 on a device.
    whole = torch.full((), 255.0, device=pixels.device)
    for block in _blocks(seen.shape[1], frames * size.width * 3):
        narrow[:, block] = _summed(seen[:, block], columns, 2, whole)
    for block in _blocks(size.height, frames * size.width * 3):
        unit = _summed(narrow, rows.part(block), 1, None)
        levels[:, block] = unit.clamp_(0, 1).mul_(255).to(torch.uint8)
    return levels


def _axis(
    sums: tuple[list[int], list[int], list[float]], inputs: int, device: torch.device
) -> tuple[_Axis, slice]:
    """An axis over the slice of ``inputs`` that any of its positions touches, and that slice."""
    start_N, unfused_N = np.array(sums[0]), np.array(sums[1])
    weight_SN = np.array(sums[2], np.float32).reshape(len(start_N), -1).T
    term_S1 = np.arange(len(weight_SN))[:, None]
    index_SN = (start_N + term_S1).clip(max=inputs - 1)  # beyond are weights of zero
    fused_SN = term_S1 >= unfused_N
    span = slice(int(index_SN.min()), int(index_SN.max()) + 1)

    def placed(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    axis = _Axis(
        placed(index_SN - span.start),
        placed(weight_SN),
        placed(fused_SN),
        all_fused=[bool(row.all()) for row in fused_SN],
        none_fused=[not row.any() for row in fused_SN],
    )
    return axis, span


def _blocks(length: int, values: int) -> Iterator[slice]:
    """Of ``length`` rows with so many values each."""
    step = max(1, _BLOCK // values)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _summed(
    source_THWC: torch.Tensor, axis: _Axis, dimension: int, whole: torch.Tensor | None
) -> torch.Tensor:
    """The weighted sums along a dimension, float32.

    Args:
        whole: what a source of bytes is divided by, term by term: that of a large picture would
            be as large in float32 four times over.
    """
    along = [1, 1, 1, 1]
    along[dimension] = -1
    total = torch.zeros((), device=source_THWC.device)
    for term, index in enumerate(axis.index_SN):
        value = source_THWC.index_select(dimension, index)
        if whole is not None:
            value = value.float() / whole
        weight = axis.weight_SN[term].view(along)
        if axis.none_fused[term]:
            total = total + value * weight
            continue
        exact = value.double() * weight  # the product of two float32 fits into a float64
        if not axis.all_fused[term]:
            rounded = exact.float().double()
            exact = torch.where(axis.fused_SN[term].view(along), exact, rounded)
        total = (exact + total).float()
    return total
