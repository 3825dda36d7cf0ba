"""Some rows of a decoder's pictures, whose other rows are computed elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import nn


class Stripe(Protocol):
    """Which rows are computed here, and the way to the nearest of the others.

    Whoever computes the others makes the same calls in the same order, on tensors that differ in
    height alone.
    """

    @property
    def own(self) -> range:
        """Latent rows; a layer at k times their resolution has k times as many."""

    def border(self, x_BTHWC: torch.Tensor) -> None:
        """Writes the nearest row above and below into the first and the last row of every frame.

        Args:
            x_BTHWC: contiguous, the own rows between two that are overwritten: with zeros where the
                picture ends.
        """

    def called(self, whole: nn.Module, shared: Sequence[nn.Module]) -> AbstractContextManager[None]:
        """In the block, ``shared`` computes the own rows, where its layers are called as modules.

        Args:
            whole: the last module that computes all rows; its output (..., H, W) is cut.
            shared: what follows it. Rows may only be mixed by convolutions of odd height and
                stride 1.
        """
