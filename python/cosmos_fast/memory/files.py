"""Weights that rest in their files: for machines whose RAM cannot hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.memory.engines import HostEngines
from cosmos_fast.memory.host import HostBlock, allocate, layout, unique_parameters
from cosmos_fast.weights.bring import Ring, send

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from cosmos_fast.memory.engines import Engines
    from cosmos_fast.weights.load import Source

WINDOW_SLOTS: Final = 8


class Window:
    """Pinned host memory through which weights pass from their files to the device; made when it
    is first used."""

    def __init__(self, device: torch.device, size: int) -> None:
        """
        Args:
            size: bytes in all.
        """
        self._device = device
        self._slot_bytes = max(size // WINDOW_SLOTS // 4096, 1) * 4096
        self._ring: Ring | None = None

    @property
    def ring(self) -> Ring:
        if self._ring is None:
            self._ring = Ring(self._device, WINDOW_SLOTS, self._slot_bytes)
        return self._ring


class FileBlock:
    """The parameters of one block, read from their files whenever they are needed.

    Off the device they hold nothing: whoever uses them there gets NaN.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        sources: Sequence[Sequence[Source]],
        dtype: torch.dtype,
        window: Window,
    ) -> None:
        """
        Args:
            modules: whose parameters, on any device; what they hold is let go as they rest.
            sources: of each parameter the stretches of files it is made of, in order.
            dtype: of the parameters.
            window: what the bytes pass through.
        """
        self.modules: Final = tuple(modules)
        self.parameters: Final = unique_parameters(modules)
        self._locations, self.bytes = layout(self.parameters, dtype)
        self._sources = sources
        self._seen = {one.extent.file: _seen(one.extent.file) for each in sources for one in each}
        self._window = window
        self._nothing = [
            torch.full((), torch.nan, dtype=dtype).expand(parameter.shape)
            for parameter in self.parameters
        ]

    @property
    def pinned_bytes(self) -> int:
        return 0

    def send(self, place: torch.Tensor, engines: Engines) -> None:
        """
        Raises:
            CheckpointError: a file is not the one any more whose weights were checked.
        """
        for path, seen in self._seen.items():
            if _seen(path) != seen:
                raise CheckpointError(
                    f"{path} was changed or replaced while weights are streamed from it: load the "
                    f"engine again"
                )
        parts = []
        for location, sources in zip(self._locations, self._sources, strict=True):
            offset = location.offset
            for source in sources:
                length = source.extent.end - source.extent.start
                length = length // 2 if source.rounded else length
                parts.append((source.extent, source.rounded, place[offset : offset + length]))
                offset += length
        with engines.copying():
            send(parts, self._window.ring)

    def to_host(self, *, pin: bool) -> HostBlock:
        """The same weights in host memory, read from the files once and for all.

        Raises:
            MemoryPlanError: there is not that much host memory, or it cannot be locked; they rest
                in the files as before.
        """
        memory = allocate(self.bytes)
        self.send(memory, HostEngines())
        self.bind(self.views(memory))
        try:
            return HostBlock(self.modules, pin=pin)
        finally:
            self.rest()

    def views(self, memory: torch.Tensor) -> list[torch.Tensor]:
        return [location.view(memory) for location in self._locations]

    def bind(self, views: Sequence[torch.Tensor]) -> None:
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.data = view

    def rest(self) -> None:
        self.bind(self._nothing)


def _seen(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from another one under its name; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def file_blocks(
    network: nn.Module,
    blocks: Mapping[str, Sequence[nn.Module]],
    sources: Mapping[str, Sequence[Source]],
    dtype: torch.dtype,
    window: Window,
) -> dict[str, FileBlock]:
    """Blocks of ``network`` whose weights rest in files.

    Args:
        sources: by parameter name, from ``weights.locate_*``.

    Raises:
        InputError: a parameter cannot come straight from its file.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    made = {}
    for block, modules in blocks.items():
        found = [names[id(parameter)] for parameter in unique_parameters(modules)]
        if strange := [name for name in found if name not in sources]:
            raise InputError(
                f"{strange[0]} cannot be streamed from its file, where it has another dtype or "
                f"form: convert the checkpoint (cosmos-fast convert), or give more host memory"
            )
        made[block] = FileBlock(modules, [sources[name] for name in found], dtype, window)
    return made
