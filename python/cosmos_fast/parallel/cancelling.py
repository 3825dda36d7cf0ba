"""Cancelling by one rank, agreed on by all: nobody stops where the others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from cosmos_fast.parallel.exchange import Exchange


class CancelToken(Protocol):
    """``threading.Event`` is one."""

    def is_set(self) -> bool: ...


class SharedCancel:
    """Each question is an exchange: every rank has to ask as often as the others.

    On a CUDA device the answer is that of the question before, so that nobody waits for it.
    """

    def __init__(self, own: CancelToken | None, exchange: Exchange) -> None:
        self._own, self._exchange = own, exchange
        self.is_agreed = False
        """Whether an answer was yes, which every rank has had."""
        self._previous: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def is_set(self) -> bool:
        self.is_agreed = self._asked()
        return self.is_agreed

    def _asked(self) -> bool:
        exchange = self._exchange
        wanted = self._own is not None and self._own.is_set()
        # Filled there: what is copied from here would make the host wait for all work before it.
        flag = torch.full((1,), int(wanted), dtype=torch.uint8, device=exchange.device)
        flags = exchange.to_all(flag, [1] * exchange.size).wait()
        if exchange.device.type != "cuda":
            return bool(flags.any())
        previous, event = self._previous, torch.cuda.Event()
        host = torch.empty(exchange.size, dtype=torch.uint8, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        event.record(torch.cuda.current_stream(exchange.device))
        self._previous = host, event
        if previous is None:
            return False
        previous[1].synchronize()
        return bool(previous[0].any())
