"""Named cards, so that a plan needs no GPU: what they hold, compute and move.

Memory, bandwidth and dense bfloat16 rates are the makers' data sheets (products for which NVIDIA
publishes only the rate with 16-bit accumulation are listed at half of it, which is their rate with
32-bit accumulation). Bus rates are what pinned copies reach: measured on an H200 (PCIe 5 x16,
55 GB/s), and taken from it in proportion for PCIe 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cosmos_fast.errors import InputError
from cosmos_fast.memory.request import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

PCIE_5_X16: Final = 55_000_000_000
"""Bytes a second, measured with pinned memory on an H200."""
PCIE_4_X16: Final = 25_000_000_000
"""Bytes a second; estimate."""
PCIE_4_X8: Final = 12_500_000_000
"""Bytes a second; estimate."""

# Shares of the data sheet's dense bfloat16 rate (989 TFLOP/s) that an H200 was measured to keep up
# with torch 2.11. For other cards they are estimates.
ATTENTION_SHARE: Final = 0.62
"""cuDNN attention, head width 128, 27 000 to 84 000 tokens: 615 TFLOP/s."""
LINEAR_SHARE: Final = 0.72
"""The DiT's linear layers: 586 to 732 TFLOP/s, the wide ones carrying most of the work."""
CONVOLUTION_SHARE: Final = 0.15
"""VAE decode, eager: 229 TFLOP in 1.53 s."""
TEXT_SHARE: Final = 0.137
"""T5-11B, 512 rows a prompt: 10.8 TFLOP in 80 ms."""


@dataclass(frozen=True)
class Card:
    """A GPU in a machine."""

    name: str
    memory_bytes: int
    """What a process can have of it."""
    bf16_flops: float
    """Dense bfloat16 with float32 accumulation, per second, by the data sheet."""
    memory_bytes_per_second: float
    """Of its own memory, by the data sheet."""
    bus_bytes_per_second: int
    """From pinned host memory."""
    context_bytes: int = 512 * MIB
    """The CUDA context and loaded kernels; estimate."""
    workspace_bytes: int = 160 * MIB
    """cuBLAS and cuDNN; estimate."""

    @property
    def attention_flops(self) -> float:
        return self.bf16_flops * ATTENTION_SHARE

    @property
    def linear_flops(self) -> float:
        return self.bf16_flops * LINEAR_SHARE

    @property
    def convolution_flops(self) -> float:
        return self.bf16_flops * CONVOLUTION_SHARE

    @property
    def text_flops(self) -> float:
        return self.bf16_flops * TEXT_SHARE


def _card(name: str, gib: float, teraflops: float, gigabytes: float, bus: int) -> Card:
    return Card(name, int(gib * GIB), teraflops * 1e12, gigabytes * 1e9, bus)


CARDS: Final[Mapping[str, Card]] = MappingProxyType(
    {
        card.name: card
        for card in (
            _card("h200", 139.8, 989, 4800, PCIE_5_X16),
            _card("h100", 79.1, 989, 3350, PCIE_5_X16),
            _card("a100-80", 79.1, 312, 2039, PCIE_4_X16),
            _card("l40s", 44.4, 362, 864, PCIE_4_X16),
            _card("rtx5090", 31.3, 209.5, 1792, PCIE_5_X16),
            _card("rtx4090-pcie4x16", 23.5, 165.2, 1008, PCIE_4_X16),
            _card("rtx4090-pcie4x8", 23.5, 165.2, 1008, PCIE_4_X8),
            _card("rtx4080", 15.6, 97.5, 716.8, PCIE_4_X16),
            _card("rtx3090", 23.6, 71, 936, PCIE_4_X16),
        )
    }
)


def find_card(gpu: str | Card) -> Card:
    """The card that ``gpu`` names, or ``gpu`` itself: a measured one.

    Raises:
        InputError: no card of that name.
    """
    if isinstance(gpu, Card):
        return gpu
    card = CARDS.get(gpu.lower())
    if card is None:
        raise InputError(
            f"{gpu = }: known cards are {', '.join(CARDS)}; or pass a Card of your own"
        )
    return card
