"""A convolutional decoder whose rows are shared by ranks: each computes a stripe of every layer.

Every convolution that looks at rows above and below is given the neighbours' nearest rows, so that
each row is computed from what it is computed from on one device. Nothing is computed twice, and
nothing is approximated: the causal memory of a layer holds the stripe and its borders.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cosmos_fast.errors import CosmosFastError
from cosmos_fast.parallel.shards import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cosmos_fast.parallel.exchange import Exchange


@contextmanager
def striped(
    exchange: Exchange, whole: nn.Module, shared: Iterable[nn.Module], rows: int
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """In the block, each rank computes a stripe of rows of what ``shared`` computes.

    Args:
        whole: the last module that every rank computes in full; its output, of ``rows`` rows in
            the last axis but one, is cut.
        shared: what follows it. Rows may only be mixed by convolutions of odd height and stride 1.
        rows: at least as many as ranks.

    Returns:
        ``gather(pixels)``: a stripe of shape (n, rows, W, C) to the whole picture, on every rank.
    """
    stripes = cut(rows, exchange.size)
    own = stripes[exchange.rank]
    borders = _Borders(exchange)
    handles = [whole.register_forward_hook(lambda _, __, y: y[..., own.start : own.stop, :])]
    for module in shared:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.kernel_size[-2] > 1:
                reach = layer.kernel_size[-2] // 2
                handles.append(layer.register_forward_pre_hook(borders.adding(reach)))
                handles.append(layer.register_forward_hook(borders.removing(reach)))

    def gather(stripe: torch.Tensor) -> torch.Tensor:
        borders.check()
        count, _, width, channels = stripe.shape
        scale = stripe.shape[1] // len(own)
        by_row = stripe.transpose(0, 1).contiguous()
        each = scale * count * width * channels
        received = exchange.to_all(by_row, [len(stripe) * each for stripe in stripes]).wait()
        return received.view(rows * scale, count, width, channels).transpose(0, 1).contiguous()

    try:
        yield gather
    finally:
        for handle in handles:
            handle.remove()


class _Borders:
    """Hooks around a convolution: rows of the neighbours before it, none of them after it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._count = 0

    def check(self) -> None:
        """
        Raises:
            CosmosFastError: layers ran without their hooks: the seams would be visible.
        """
        if self._count == 0:
            raise CosmosFastError(
                "a decoder whose layers are not called as modules cannot be shared by ranks"
            )
        self._count = 0

    def adding(self, reach: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            self._count += 1
            return self._bordered(arguments[0], reach), *arguments[1:]

        return hook

    def removing(self, reach: int) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        """The convolution pads with zeros; rows that saw them are the neighbours' to compute."""
        return lambda _, __, y: y[..., reach:-reach, :]

    def _bordered(self, x: torch.Tensor, reach: int) -> torch.Tensor:
        """``x`` with ``reach`` rows of the neighbours at either end; zeros beyond the picture."""
        exchange = self._exchange
        above, below = x[..., :reach, :], x[..., -reach:, :]
        up, down = exchange.rank - 1, exchange.rank + 1
        neighbours = [rank for rank in (up, down) if 0 <= rank < exchange.size]
        sent = torch.cat([(above if rank == up else below).reshape(-1) for rank in neighbours])
        counts = [above.numel() if rank in neighbours else 0 for rank in range(exchange.size)]
        arrived = iter(exchange.start(sent, counts, counts).wait().split(above.numel()))
        zeros = torch.zeros_like(above)
        return torch.cat(
            [
                next(arrived).view(above.shape) if up in neighbours else zeros,
                x,
                next(arrived).view(above.shape) if down in neighbours else zeros,
            ],
            dim=-2,
        )
