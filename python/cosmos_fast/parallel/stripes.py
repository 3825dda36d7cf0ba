"""A convolutional decoder whose rows are shared by ranks: each computes a stripe of every layer.

Every convolution that looks at rows above and below is given the neighbours' nearest rows, so that
each row is computed from what it is computed from on one device. Nothing is computed twice, and
nothing is approximated.

Between kernels (``model/vae_fused.py``) that is one exchange a convolution, of the first and the
last row of every frame that it reads, and three launches beside it: what is sent, and what arrives
or is zero at either end. The 2B's decoder has 28 such convolutions a latent frame; at 432 x 768
each rank sends 18.7 MB for them to each neighbour. The plain decoder copies what a convolution
reads, and its result, once more; there the causal memory holds the borders too.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cosmos_fast.errors import CosmosFastError
from cosmos_fast.parallel.shards import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cosmos_fast.parallel.exchange import Exchange


class SharedRows:
    """The :class:`~cosmos_fast.model.stripe.Stripe` of one rank, and the way back to pictures."""

    def __init__(self, exchange: Exchange, rows: int) -> None:
        """
        Args:
            rows: of the latents; at least as many as ranks.
        """
        self._exchange = exchange
        self._rows = rows
        self._stripes = cut(rows, exchange.size)
        around = (exchange.rank - 1, exchange.rank + 1)
        self._neighbours = [rank for rank in around if 0 <= rank < exchange.size]
        self._bordered_since = 0
        """Inputs of convolutions that got borders since pixels were put together."""

    @property
    def own(self) -> range:
        return self._stripes[self._exchange.rank]

    def border(self, x_BTHWC: torch.Tensor) -> None:
        self._bordered(x_BTHWC, dim=2, reach=1)

    @contextmanager
    def called(self, whole: nn.Module, shared: Sequence[nn.Module]) -> Iterator[None]:
        own = self.own
        handles = [whole.register_forward_hook(lambda _, __, y: y[..., own.start : own.stop, :])]
        for module in shared:
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.kernel_size[-2] > 1:
                    reach = layer.kernel_size[-2] // 2
                    handles.append(layer.register_forward_pre_hook(self._adding(reach)))
                    handles.append(layer.register_forward_hook(_removing(reach)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gathered(self, pixels: torch.Tensor) -> torch.Tensor:
        """Whole pictures on every rank, of stripes (n, rows, W, C).

        Raises:
            CosmosFastError: they were made without borders: the seams would be visible.
        """
        if not self._bordered_since:
            raise CosmosFastError(
                "a decoder that neither takes a stripe nor calls its layers as modules cannot be "
                "shared by ranks"
            )
        self._bordered_since = 0
        count, _, width, channels = pixels.shape
        scale = pixels.shape[1] // len(self.own)
        by_row = pixels.transpose(0, 1).contiguous()
        each = scale * count * width * channels
        counts = [len(stripe) * each for stripe in self._stripes]
        received = self._exchange.to_all(by_row, counts).wait()
        by_row = received.view(self._rows * scale, count, width, channels)
        return by_row.transpose(0, 1).contiguous()

    def _adding(self, reach: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            x, *others = arguments
            *before, height, width = x.shape
            wide = x.new_empty((*before, height + 2 * reach, width))
            wide[..., reach:-reach, :] = x
            self._bordered(wide, dim=wide.ndim - 2, reach=reach)
            return wide, *others

        return hook

    def _bordered(self, x: torch.Tensor, dim: int, reach: int) -> None:
        """Writes ``reach`` rows of the neighbours at either end of axis ``dim``, zeros beyond the
        picture."""
        exchange, neighbours = self._exchange, self._neighbours
        inside = x.narrow(dim, reach, x.shape[dim] - 2 * reach)
        ends = {
            exchange.rank - 1: (inside.narrow(dim, 0, reach), x.narrow(dim, 0, reach)),
            exchange.rank + 1: (
                inside.narrow(dim, inside.shape[dim] - reach, reach),
                x.narrow(dim, x.shape[dim] - reach, reach),
            ),
        }
        sent = torch.stack([ends[rank][0] for rank in neighbours])
        size = sent[0].numel()
        counts = [size if rank in neighbours else 0 for rank in range(exchange.size)]
        pending = exchange.start(sent, counts, counts)
        for rank, (_, outer) in ends.items():
            if rank not in neighbours:
                outer.zero_()
        for rank, rows in zip(neighbours, pending.wait().view(sent.shape), strict=True):
            ends[rank][1].copy_(rows)
        self._bordered_since += 1


def _removing(reach: int) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
    """The convolution pads with zeros; rows that saw them are the neighbours' to compute."""
    return lambda _, __, y: y[..., reach:-reach, :]
