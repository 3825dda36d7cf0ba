"""Who computes what: ranks laid out as guidance branches x context, tokens cut into ranges."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from cosmos_fast.errors import InputError
from cosmos_fast.types import TokenLayout

if TYPE_CHECKING:
    from collections.abc import Sequence


def cut(total: int, parts: int) -> list[range]:
    """``total`` things in ``parts`` consecutive ranges whose lengths differ by one at most."""
    short, longer = divmod(total, parts)
    starts = [part * short + min(part, longer) for part in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


@dataclass(frozen=True)
class Mesh:
    """``branches`` x ``context`` ranks; those that share the tokens of a branch are neighbours."""

    rank: int
    branches: int
    context: int

    @property
    def size(self) -> int:
        return self.branches * self.context

    @property
    def branch(self) -> int:
        """The guidance branch that this rank computes, where they are split."""
        return self.rank // self.context

    @property
    def place(self) -> int:
        """Number of this rank among those of its branch."""
        return self.rank % self.context

    @property
    def partners(self) -> range:
        """The ranks that share the tokens with this one, itself included."""
        return range(self.branch * self.context, (self.branch + 1) * self.context)

    @property
    def others(self) -> tuple[int, ...]:
        """The places of the partners but this one, each rank's from another one on."""
        return tuple((self.place + turn) % self.context for turn in range(1, self.context))


@dataclass(frozen=True)
class Shards:
    """The tokens of one run, cut into a range for each place of a mesh."""

    mesh: Mesh
    grid: tuple[int, int, int]
    """Patches along (t, h, w)."""
    ranges: tuple[range, ...]
    """Raster positions of each place; lengths differ by one at most, so any count is possible."""

    @classmethod
    def of(cls, mesh: Mesh, grid: tuple[int, int, int]) -> Shards:
        """
        Raises:
            InputError: there are fewer tokens than ranks.
        """
        tokens = grid[0] * grid[1] * grid[2]
        if tokens < mesh.context:
            raise InputError(
                f"{tokens} tokens cannot be shared by {mesh.context} ranks: use fewer ranks or a "
                f"larger size"
            )
        return cls(mesh, grid, tuple(cut(tokens, mesh.context)))

    @property
    def own(self) -> range:
        return self.ranges[self.mesh.place]

    def layout(self, device: torch.device) -> TokenLayout:
        """The tokens that this rank computes."""
        if self.mesh.context == 1:
            return TokenLayout(self.grid)
        index = torch.arange(self.own.start, self.own.stop, device=device)
        return TokenLayout(self.grid, index)

    def block(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Values of this rank's tokens: contiguous, shape (n, E)."""
        return self._tokens(x_BCTHW)[self.own.start : self.own.stop].contiguous()

    def counts(self, like_BCTHW: torch.Tensor) -> list[int]:
        """Elements in the block of each rank of the group."""
        per_token = like_BCTHW.numel() // sum(map(len, self.ranges))
        return [len(each) * per_token for each in self.ranges] * self.mesh.branches

    def whole(self, blocks: torch.Tensor, like_BCTHW: torch.Tensor) -> Sequence[torch.Tensor]:
        """The clip of each branch, from the blocks of all ranks one after another."""
        batch, channels, frames, height, width = like_BCTHW.shape
        _, rows, columns = self.grid
        split = (frames, rows, columns, batch, channels, height // rows, width // columns)
        return [
            flat.reshape(split).permute(3, 4, 0, 1, 5, 2, 6).reshape(like_BCTHW.shape)
            for flat in blocks.chunk(self.mesh.branches)
        ]

    def _tokens(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        batch, channels, frames, height, width = x_BCTHW.shape
        _, rows, columns = self.grid
        split = (batch, channels, frames, rows, height // rows, columns, width // columns)
        tokens = x_BCTHW.reshape(split).permute(2, 3, 5, 0, 1, 4, 6)
        return tokens.reshape(frames * rows * columns, -1)
