"""Copies in host memory of weights that do not move otherwise: to sleep and to wake by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cosmos_fast.memory.executor import host_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from cosmos_fast.memory.host import HostBlock


class Copies:
    """Of components by name, block by block. A network is on its device or it rests, as a whole."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: where the networks belong.
        """
        self._device = device
        self._blocks: dict[str, Mapping[str, HostBlock]] = {}

    def make(self, components: Mapping[str, Mapping[str, Sequence[nn.Module]]]) -> None:
        """Copies what was not copied before; nothing moves.

        Raises:
            MemoryPlanError: the host has no memory for all of them; there are no more than before.
        """
        self._blocks |= {
            name: host_blocks(blocks, self._device)
            for name, blocks in components.items()
            if name not in self._blocks
        }

    def of(self, component: str) -> Mapping[str, HostBlock] | None:
        return self._blocks.get(component)

    def forget(self, component: str) -> None:
        self._blocks.pop(component, None)

    def clear(self) -> None:
        self._blocks.clear()

    def rest(self) -> None:
        """Off the device, the memory of which is given back."""
        for blocks in self._blocks.values():
            for block in blocks.values():
                block.rest()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def bring(self) -> None:
        """To the device.

        Raises:
            torch.OutOfMemoryError: it has no room; everything rests.
        """
        try:
            for blocks in self._blocks.values():
                for block in blocks.values():
                    memory = torch.empty(block.bytes, dtype=torch.uint8, device=self._device)
                    memory.copy_(block.memory, non_blocking=True)
                    block.bind(block.views(memory))
            if self._device.type == "cuda":
                # The next call may run on another stream, which knows nothing of these copies.
                torch.cuda.current_stream(self._device).synchronize()
        except BaseException:
            self.rest()
            raise
