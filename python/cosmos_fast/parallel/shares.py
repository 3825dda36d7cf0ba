"""Predictions of shared branches and tokens, put together on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cosmos_fast.parallel.exchange import Exchange
    from cosmos_fast.parallel.shards import Shards
    from cosmos_fast.types import TokenLayout

Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(x, times, mask, step) -> flow"""


class Shares:
    """Which tokens of which guidance branches this rank computes in one run."""

    def __init__(self, shards: Shards, exchange: Exchange | None, branches: int) -> None:
        self._shards, self._exchange, self._branches = shards, exchange, branches
        self.layout: TokenLayout = shards.layout(
            exchange.device if exchange else torch.device("cpu")
        )
        """The tokens that this rank computes."""

    def computes(self, branch: int) -> bool:
        """Whether this rank computes guidance branch 0 (conditional) or 1."""
        mesh = self._shards.mesh
        return mesh.branches == 1 or mesh.branch == branch

    def joined(self, own: Sequence[Velocity | None]) -> list[Velocity]:
        """The velocity of each branch over the whole clip.

        Args:
            own: for each branch that this rank computes, the velocity of its tokens.
        """
        if self._exchange is None:
            return [each for each in own if each is not None]
        if self._shards.mesh.branches == 1:
            return [_first_of(self._gathered(each)) for each in own if each is not None]
        (mine,) = (each for each in own if each is not None)
        both = _OncePerStep(self._gathered(mine))
        return [_nth(both, branch) for branch in range(self._branches)]

    def _gathered(self, velocity: Velocity) -> Callable[..., Sequence[torch.Tensor]]:
        exchange, shards = self._exchange, self._shards
        assert exchange is not None

        def everywhere(
            x: torch.Tensor, times: torch.Tensor, mask: torch.Tensor, step: int
        ) -> Sequence[torch.Tensor]:
            flow = velocity(x, times, mask, step)
            blocks = exchange.to_all(shards.block(flow), shards.counts(flow)).wait()
            return shards.whole(blocks, flow)

        return everywhere


class _OncePerStep:
    """Both branches come out of one exchange: the second to ask gets what is there."""

    def __init__(self, velocities: Callable[..., Sequence[torch.Tensor]]) -> None:
        self._velocities = velocities
        self._last: tuple[int, Sequence[torch.Tensor]] | None = None

    def __call__(
        self, x: torch.Tensor, times: torch.Tensor, mask: torch.Tensor, step: int
    ) -> Sequence[torch.Tensor]:
        if self._last is None or self._last[0] != step:
            self._last = step, self._velocities(x, times, mask, step)
        return self._last[1]


def _nth(velocities: Callable[..., Sequence[torch.Tensor]], branch: int) -> Velocity:
    return lambda x, times, mask, step: velocities(x, times, mask, step)[branch]


def _first_of(velocities: Callable[..., Sequence[torch.Tensor]]) -> Velocity:
    return _nth(velocities, 0)
