"""The Rust core of cosmos-fast."""

from typing_extensions import Buffer
from typing import Final

__version__: Final[str]

def normalize(source: Buffer, target: Buffer) -> None:
    """Pictures to the network's range and layout: ``x / 127.5 - 1`` of every byte.

    Args:
        source: uint8, shape (T, H, W, 3), C-contiguous.
        target: written; float32, or bfloat16 as uint16 bits, shape (3, T, H, W), C-contiguous.
            bfloat16 is rounded after each of the two operations, as the reference does.

    Raises:
        InputError: wrong shape, layout or a read-only target.
    """

def denormalize(source: Buffer, target: Buffer) -> None:
    """The way back: ``(x + 1) / 2`` clamped to [0, 1], times 255, plus one half, truncated.

    Args:
        source: float32, or bfloat16 as uint16 bits, shape (3, T, H, W), C-contiguous, about [-1, 1].
        target: written; uint8, shape (T, H, W, 3), C-contiguous.

    Raises:
        InputError: wrong shape, layout or a read-only target.
    """
