"""Weights that rest in host memory: a block's parameters side by side, moved by one copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

PARAMETER_ALIGNMENT: Final = 256
"""Bytes at which each parameter of a block starts, as kernels and copies like it."""


@dataclass(frozen=True)
class Location:
    """Where a parameter is in its block."""

    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def view(self, memory: torch.Tensor) -> torch.Tensor:
        """The parameter in ``memory``, uint8 of its block's size or more."""
        length = self.shape.numel() * self.dtype.itemsize
        return memory[self.offset : self.offset + length].view(self.dtype).view(self.shape)


def layout(parameters: Sequence[torch.Tensor]) -> tuple[list[Location], int]:
    """Where each parameter goes in a block, and the block's bytes."""
    locations, offset = [], 0
    for parameter in parameters:
        locations.append(Location(offset, parameter.dtype, parameter.shape))
        length = parameter.numel() * parameter.dtype.itemsize
        offset += -(-length // PARAMETER_ALIGNMENT) * PARAMETER_ALIGNMENT
    return locations, offset


def unique_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Every parameter of ``modules`` once, in order.

    Raises:
        InputError: there is none, or one wants a gradient: weights that move cannot be trained.
    """
    found = {id(p): p for module in modules for p in module.parameters()}
    parameters = list(found.values())
    if not parameters:
        raise InputError("a block without parameters: there is nothing to move")
    if any(parameter.requires_grad for parameter in parameters):
        raise InputError("parameters that want gradients cannot move; call requires_grad_(False)")
    return parameters


class HostBlock:
    """The parameters of one block in host memory, which they are views of from now on."""

    def __init__(self, modules: Sequence[nn.Module], *, pin: bool) -> None:
        """
        Args:
            modules: whose parameters; without gradients.
            pin: page-locked, so that copies to a CUDA device run beside computing.
        """
        self.modules: Final = tuple(modules)
        self.parameters: Final = unique_parameters(modules)
        self._locations, self.bytes = layout(self.parameters)
        self.memory: Final = torch.empty(self.bytes, dtype=torch.uint8, pin_memory=pin)
        for parameter, location in zip(self.parameters, self._locations, strict=True):
            location.view(self.memory).copy_(parameter.data)
        self.rest()

    def views(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """The parameters in ``memory``, to be bound once the block has been copied there."""
        return [location.view(memory) for location in self._locations]

    def bind(self, views: Sequence[torch.Tensor]) -> None:
        """The parameters are ``views`` from now on."""
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.data = view

    def rest(self) -> None:
        """The parameters are those in host memory again."""
        self.bind(self.views(self.memory))
