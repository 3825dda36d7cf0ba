"""Amounts of memory as people give them: what an engine may take of a device and of its host."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cosmos_fast.errors import InputError
from cosmos_fast.memory.request import GIB, MIB

if TYPE_CHECKING:
    from cosmos_fast.memory.cards import Card

COMPONENTS: Final = ("text encoder", "vae encoder", "dit", "vae decoder")
"""What may be told to leave the device when its stage ends."""
_LARGEST: Final = 1 << 46
"""Bytes that no machine has; the planner counts below it."""
_UNITS: Final = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9,
    "KIB": 1 << 10, "MIB": MIB, "GIB": GIB, "TB": 10**12, "TIB": 1 << 40,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*(?P<number>\d+(\.\d*)?)\s*(?P<unit>[A-Za-z]*)\s*")


@dataclass(frozen=True, init=False)
class Budget:
    """The engine's whole share of a machine, in bytes; None: all there is."""

    device: int | None = None
    host: int | None = None

    def __init__(self, device: int | str | None = None, host: int | str | None = None) -> None:
        """
        Args:
            device, host: bytes, or amounts such as "12GiB".

        Raises:
            InputError: not an amount above 0.
        """
        for name, given in (("device", device), ("host", host)):
            value = None if given is None else read_amount(name, given)
            if value is not None:
                _check_range(name, given, value)
            object.__setattr__(self, name, value)


Memory = Literal["auto", "resident"] | str | int | Budget
"""How a budget is given; see :func:`cosmos_fast.plan`."""


def parse_amount(text: str) -> int:
    """Bytes of "12GiB", "8 GB", "512MiB" or "1000000".

    Raises:
        InputError: not an amount.
    """
    match = _AMOUNT.fullmatch(text)
    unit = _UNITS.get(match["unit"].upper()) if match else None
    if match is None or unit is None:
        raise InputError(f'{text!r}: an amount such as "12GiB", "8GB" or "512MiB" is needed')
    return int(min(float(match["number"]) * unit, 2.0 * _LARGEST))  # float knows infinity


def read_amount(name: str, given: object) -> int:
    """Bytes of an amount as text or as a whole number.

    Args:
        name: what it is for, as the error tells it.

    Raises:
        InputError: neither.
    """
    if isinstance(given, str):
        try:
            return parse_amount(given)
        except InputError as error:
            raise InputError(f"{name} = {error}") from None
    try:
        if isinstance(given, bool):
            raise TypeError
        return operator.index(given)  # type: ignore[arg-type] # that is the question
    except TypeError:
        raise InputError(
            f'{name} = {given!r}: a whole number of bytes, or an amount such as "12GiB", is needed'
        ) from None


def read_budget(memory: Memory, card: Card, host: int | str | None = None) -> Budget:
    """The budget that ``memory`` means on ``card``.

    Raises:
        InputError: not an amount, or more than the card has.
    """
    if isinstance(memory, Budget):
        budget = memory if host is None else Budget(memory.device, host)
    elif isinstance(memory, str) and memory in ("auto", "resident"):
        return Budget(None, host)
    else:
        budget = Budget(_device_bytes(memory), host)
    if budget.device is not None and budget.device > card.memory_bytes:
        raise InputError(
            f"{memory = }: {card.name} has {gib(card.memory_bytes)}; give no more, or "
            f'"auto" for what can be had of it'
        )
    return budget


def _device_bytes(memory: object) -> int:
    try:
        value = read_amount("memory", memory)
    except InputError as error:
        raise InputError(f'{error}; or "auto", "resident" or a Budget') from None
    _check_range("memory", memory, value)
    return value


def _check_range(name: str, given: object, value: int) -> None:
    if not 1 <= value < _LARGEST:
        raise InputError(
            f"{name} = {given!r}: a budget is above 0 bytes and below 64 TiB; None is all there is"
        )


def read_reserved(amount: int | str) -> int:
    """Bytes of a device for networks that are none of a plan's.

    Raises:
        InputError: not an amount, below 0, or more than any device has.
    """
    found = read_amount("reserved", amount)
    if not 0 <= found < _LARGEST:
        raise InputError(
            f"reserved = {amount!r}: bytes of the device, 0 or more and below 64 TiB, are needed"
        )
    return found


def read_offload(offload: str | Iterable[str]) -> frozenset[str]:
    """Components that must leave the device when their stage ends; one may be given by its name.

    Raises:
        InputError: a name that is none of ``COMPONENTS``.
    """
    try:
        named = frozenset((offload,) if isinstance(offload, str) else offload)
    except TypeError:
        raise InputError(
            f"{offload = }: some of {', '.join(COMPONENTS)} are needed, or () for none"
        ) from None
    if unknown := named - set(COMPONENTS):
        raise InputError(
            f"offload {sorted(map(str, unknown))}: components are {', '.join(COMPONENTS)}"
        )
    return named


def gib(amount: int, *, up: bool = False) -> str:
    """Bytes as people read them.

    Args:
        up: rounded up, so that what is told can be asked for as it stands.
    """
    unit, name, digits = (MIB, "MiB", 1) if 0 < amount < 100 * MIB else (GIB, "GiB", 2)
    parts = amount * 10**digits / unit
    return f"{(math.ceil(parts) if up else round(parts)) / 10**digits:.{digits}f} {name}"
