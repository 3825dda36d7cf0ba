"""The one way to launch a kernel: now, or never, where it is only to be known what would be.

To compile kernels before they are needed, their calls are made with tensors of the meta device
within :func:`only_named`: what would be launched is kept, and can be compiled from there.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


class Launch(NamedTuple):
    """A launch that was not made."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def compile(self) -> Any:
        """What Triton makes of it: the kernel, compiled or found, or the future of one."""
        return self.kernel.warmup(*self.arguments, grid=self.grid, **self.options)


_NAMED: Final[ContextVar[list[Launch] | None]] = ContextVar("launches to name", default=None)


@contextmanager
def only_named() -> Iterator[list[Launch]]:
    """Within the body, and this thread, nothing is launched: what would be goes into the list."""
    named: list[Launch] = []
    token = _NAMED.set(named)
    try:
        yield named
    finally:
        _NAMED.reset(token)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """``kernel[grid](*arguments, **options)``, or its name, where launches are only named."""
    named = _NAMED.get()
    if named is None:
        kernel[grid](*arguments, **options)
    else:
        named.append(Launch(kernel, grid, arguments, options))


def processors(tensor: torch.Tensor) -> int:
    """Multiprocessors of the device that ``tensor`` is on; any number where it is on none."""
    if tensor.is_meta:
        return 1
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)
