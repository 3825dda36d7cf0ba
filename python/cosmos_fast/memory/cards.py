"""Named cards, so that a plan needs no GPU: what they hold, compute and move.

Memory, bandwidth and dense bfloat16 rates are the makers' data sheets (products for which NVIDIA
publishes only the rate with 16-bit accumulation are listed at half of it, which is their rate with
32-bit accumulation). Bus rates are what pinned copies reach: measured on an H200 (PCIe 5 x16,
55 GB/s), and taken from it in proportion for PCIe 4.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.errors import InputError
from cosmos_fast.memory.request import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PCIE_5_X16: Final = 55_000_000_000
"""Bytes a second, measured with pinned memory on an H200."""
PCIE_4_X16: Final = 25_000_000_000
"""Bytes a second; estimate."""
PCIE_4_X8: Final = 12_500_000_000
"""Bytes a second; estimate."""

# Shares of the data sheet's rates (989 TFLOP/s in dense bfloat16, 4.8 TB/s) that an H200 at its
# power limit kept up for seconds, with torch 2.11 and our kernels. For other cards: estimates.
ATTENTION_SHARE: Final = 0.68
"""FA3 reached 690 to 702 TFLOP/s, our own attention 625 to 649: between the two."""
LINEAR_SHARE: Final = 0.70
"""With ``ATTENTION_SHARE`` within 5 % of seven forwards: of the 2B at 27,216, 31,104 and 84,480
tokens (409, 513 and 2,798 ms) and the 14B at 27,216 (1,898 ms), with FA3 and with our own."""
PRODUCT_SHARE: Final = 0.685
"""One large matrix product over and over, on random data: 665 to 687 TFLOP/s."""
COPY_SHARE: Final = 0.86
"""Copies within the device: 4.12 TB/s."""
DECODER_SHARE: Final = 0.338
"""VAE decode between kernels: 229 TFLOP in 0.68 to 0.69 s, 717 TFLOP in 2.12 to 2.14 s."""
CONVOLUTION_SHARE: Final = 0.14
"""The VAE's decoder without them: 229 TFLOP in 1.53 to 1.59 s."""
ENCODER_SHARE: Final = 0.171
"""The VAE's encoder, channels last: a frame of 432 x 768 in 14.3 ms, of 704 x 1280 in 36.9; 1.2
of them whatever the size."""
TEXT_SHARE: Final = 0.454
"""T5-11B, 512 rows a prompt: 10.7 TFLOP in 23.9 ms."""


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
    context_bytes: int = 860 * MIB
    """The CUDA context and the kernels that a generation loads, which torch knows nothing of. At
    most 841 MiB on an H200 with torch 2.11 for CUDA 13, FlashAttention 3 included, in a process
    that streams the 14B; 699 to 795 in others."""
    workspace_bytes: int = 40 * MIB
    """Of torch's allocator: what cuBLAS keeps, what weights are rounded up by, small tensors."""
    products: bool = False
    """Products of our own run on it; see ``model/linear_table.py``."""
    caches: bool = True
    """Memory comes in segments of torch's caching allocator; see ``segments.py``."""

    def __post_init__(self) -> None:
        rates = ("memory_bytes", "bf16_flops", "memory_bytes_per_second", "bus_bytes_per_second")
        for name in rates:
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{self.name}: {name} = {getattr(self, name)} is not above 0")

    @property
    def attention_flops(self) -> float:
        return self.bf16_flops * ATTENTION_SHARE

    @property
    def linear_flops(self) -> float:
        return self.bf16_flops * LINEAR_SHARE

    @property
    def copy_rate(self) -> float:
        """Bytes a second, read and written."""
        return self.memory_bytes_per_second * COPY_SHARE

    @property
    def decoder_flops(self) -> float:
        return self.bf16_flops * DECODER_SHARE

    @property
    def convolution_flops(self) -> float:
        return self.bf16_flops * CONVOLUTION_SHARE

    @property
    def encoder_flops(self) -> float:
        return self.bf16_flops * ENCODER_SHARE

    @property
    def text_flops(self) -> float:
        return self.bf16_flops * TEXT_SHARE


def _card(
    name: str, gib: float, teraflops: float, gigabytes: float, bus: int, *, products: bool = False
) -> Card:
    rates = (teraflops * 1e12, gigabytes * 1e9, bus)
    return Card(name, int(gib * GIB), *rates, products=products)


CARDS: Final[Mapping[str, Card]] = MappingProxyType(
    {
        card.name: card
        for card in (
            _card("h200", 139.8, 989, 4800, PCIE_5_X16, products=True),
            _card("h100", 79.1, 989, 3350, PCIE_5_X16, products=True),
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


_BUS_CLASSES: Final = (3e9, 6e9, PCIE_4_X8, PCIE_4_X16, PCIE_5_X16)
"""What buses are taken for, so that a plan does not change with the noise of a measurement."""
_MARKETING: Final = re.compile(r"nvidia|geforce|tesla|sxm\d*|pcie|nvl|hbm\d*e?|[^a-z0-9]")
_SIDE: Final = 8192
_HELD_SECONDS: Final = 1.0
_UNKNOWN_FLOPS_PER_CORE: Final = 5e11
"""Dense bfloat16 rate of a multiprocessor of a card that is not listed; estimate, on the low
side."""
_CPU: Final = Card(
    "cpu", 1 << 40, 2e11, 2e10, 10_000_000_000, context_bytes=0, workspace_bytes=0, caches=False
)
"""A CPU in the place of a card; for tests."""


def find_card(gpu: str | Card) -> Card:
    """The card that ``gpu`` names, ``gpu`` itself, or for "measured" the current CUDA device.

    Raises:
        InputError: no card of that name, or no CUDA device to measure.
    """
    if isinstance(gpu, Card):
        return gpu
    if not isinstance(gpu, str):
        raise InputError(f'{gpu = }: the name of a card, "measured" or a Card is needed')
    if gpu.lower() == "measured":
        if not torch.cuda.is_available():
            raise InputError(
                f'gpu = "measured": torch sees no CUDA device here; name a card instead: '
                f"{', '.join(CARDS)}"
            )
        return measured_card(torch.device("cuda", torch.cuda.current_device()))
    card = CARDS.get(gpu.lower())
    if card is None:
        raise InputError(
            f"{gpu = }: known cards are {', '.join(CARDS)}; or pass a Card of your own"
        )
    return card


def card_of(device: torch.device) -> Card:
    """The card of ``device``: its listed rates where it is listed, its own bus and memory.

    The bus is measured, in 20 ms, and taken for the nearest of a few classes; so the same machine
    has the same plans.
    """
    if device.type == "cpu":
        return _CPU
    properties = torch.cuda.get_device_properties(device)
    listed = _listed(properties.name)
    bus = min(_BUS_CLASSES, key=lambda rate: abs(math.log(rate / _bus_rate(device))))
    return replace(
        listed or _estimated(properties),
        name=properties.name,
        memory_bytes=properties.total_memory,
        bus_bytes_per_second=int(bus),
    )


def measured_card(device: torch.device) -> Card:
    """The card of ``device`` by measurement: bus, memory and matrix products, in two seconds.

    Products are of random numbers and held until the card has come down to the clock that its
    power allows: zeros and ones, and the first tenths of a second, are up to a third faster. The
    shares of the peak that attention and convolutions reach are those of the listed cards.
    """
    properties = torch.cuda.get_device_properties(device)
    return replace(
        card_of(device),
        memory_bytes=properties.total_memory,
        bf16_flops=_matrix_rate(device) / PRODUCT_SHARE,
        memory_bytes_per_second=_memory_rate(device) / COPY_SHARE,
        bus_bytes_per_second=int(_bus_rate(device)),
    )


def _listed(name: str) -> Card | None:
    """The listed card that a driver's name means: "NVIDIA H100 80GB HBM3" is "h100"."""
    plain = _MARKETING.sub("", name.lower())
    for known, card in CARDS.items():
        if plain.startswith(known.partition("-")[0]):
            return card
    return None


def _estimated(properties: Any) -> Card:
    flops = properties.multi_processor_count * _UNKNOWN_FLOPS_PER_CORE
    return Card(properties.name, properties.total_memory, flops, 5e11, PCIE_4_X8)


def _bus_rate(device: torch.device) -> float:
    source = torch.empty(64 * MIB, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device, pin_memory=False)
    return source.nbytes / _seconds(lambda: target.copy_(source, non_blocking=True), device, 8)


def _memory_rate(device: torch.device) -> float:
    source = torch.empty(256 * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device, 20)


def _matrix_rate(device: torch.device) -> float:
    """Operations a second of the last quarter of ``_HELD_SECONDS``."""
    random = torch.Generator(device).manual_seed(0)
    kind: dict[str, Any] = {"dtype": torch.bfloat16, "device": device, "generator": random}
    a, b = (torch.randn(_SIDE, _SIDE, **kind) for _ in range(2))
    out = torch.empty_like(a)
    each = _seconds(lambda: torch.mm(a, b, out=out), device, 3)
    calls = max(8, int(_HELD_SECONDS / each))
    last = _durations(lambda: torch.mm(a, b, out=out), device, calls)[-calls // 4 :]
    return 2.0 * _SIDE**3 * len(last) / sum(last)


def _seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one ``work``, the fastest of ``repeats`` after one to warm up."""
    work()
    return min(_durations(work, device, repeats))


def _durations(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each ``work``, one behind the other."""
    stream = torch.cuda.current_stream(device)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for mark in marks[:-1]:
        mark.record(stream)
        work()
    marks[-1].record(stream)
    marks[-1].synchronize()
    return [float(a.elapsed_time(b)) / 1000 for a, b in itertools.pairwise(marks)]
