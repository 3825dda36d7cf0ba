"""How ranks share a video, as a caller states it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from cosmos_fast.errors import InputError, RankLost
from cosmos_fast.parallel.shards import Mesh


@dataclass(frozen=True)
class Parallel:
    """Several processes that make one video together, each with its own device.

    Every rank loads an engine with its own ``device`` and makes the same calls with the same
    arguments; every rank gets the clip. Only rank 0 reads pictures, embeds prompts and writes.
    """

    group: Any
    """``torch.distributed.ProcessGroup`` over all ranks: NCCL for CUDA devices, gloo for CPUs. Used
    as it is: no other group is made. Should a rank be lost, it is aborted."""
    guidance: Literal["auto", "split", "together"] = "auto"
    """Whether half of the ranks compute the unconditional branch; "auto": where their number is
    even."""
    context: Literal["auto", "heads", "ring"] = "auto"
    """How ranks share self-attention: an all-to-all over heads, which have to divide by the ranks,
    or keys and values that go round. "auto": by heads where they divide."""
    windows: bool = True
    """Whether ranks whose tokens are shared write heads into each other's memory, where all of them
    can, which ranks of one machine mostly can; else they send messages."""
    pieces: int = 2
    """Parts in which heads travel by messages, so that one moves while another is computed."""
    on_loss: Callable[[RankLost], None] | None = field(default=None, compare=False)
    """Called on a thread of its own when another rank is lost during a call. The call raises the
    same error as soon as the device lets go of it."""

    def __post_init__(self) -> None:
        if self.guidance not in ("auto", "split", "together"):
            raise InputError(f'{self.guidance = }: "auto", "split" or "together" is needed')
        if self.context not in ("auto", "heads", "ring"):
            raise InputError(f'{self.context = }: "auto", "heads" or "ring" is needed')
        if self.pieces < 1:
            raise InputError(f"{self.pieces = }: at least 1 is needed")

    def mesh(self, rank: int, size: int, branches: int) -> Mesh:
        """
        Args:
            branches: 2 with guidance, else 1.

        Raises:
            InputError: guidance cannot be split over an odd number of ranks.
        """
        if self.guidance == "split" and branches == 2 and size % 2:
            raise InputError(f'guidance="split" needs an even number of ranks, not {size}')
        split = branches == 2 and size % 2 == 0 and self.guidance != "together"
        return Mesh(rank, 2, size // 2) if split else Mesh(rank, 1, size)

    def way(self, heads: int, mesh: Mesh) -> Literal["heads", "ring"]:
        """
        Raises:
            InputError: the heads do not divide by the ranks, and nothing else is allowed.
        """
        divides = heads % mesh.context == 0
        if self.context == "heads" and not divides:
            raise InputError(
                f'{heads} heads do not divide by {mesh.context} ranks: use context="ring"'
            )
        return "heads" if divides and self.context != "ring" else "ring"
