"""Ranks that are processes of ours find one another: a store, and a group of their own."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast

import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined, unused-ignore]
    PrefixStore,
    Store,
    TCPStore,
)

from cosmos_fast.errors import InputError, RankLost

if TYPE_CHECKING:
    from cosmos_fast.config import Seat
    from cosmos_fast.parallel.exchange import Group

_PREFIX: Final = "cosmos-fast"
LOOPBACK: Final = "127.0.0.1"
_FOREVER: Final = timedelta(hours=12)
"""Time-out of an exchange. Rank 0 may load a text encoder while the others wait; it is the watch
that notices who is gone."""


def serve_store(size: int) -> TCPStore:
    """A store for ``size`` ranks of this machine, served by this process at a free ``port``."""
    return TCPStore(LOOPBACK, 0, size, is_master=True, wait_for_workers=False)


def join(seat: Seat, device: torch.device, store: Store | None = None) -> Group:
    """The group of all seats, over NCCL on CUDA devices and gloo on CPUs.

    The default group of the process and torch.distributed's table of groups are not touched.

    Args:
        seat: this process's place among the ranks.
        device: what this rank computes on.
        store: where the ranks meet, if this process has it already.

    Raises:
        InputError: torch was built without the backend.
        RankLost: the others did not come.
    """
    try:
        if store is None:
            store = TCPStore(
                seat.address,
                seat.port,
                seat.size,
                is_master=seat.rank == 0 and not seat.store_is_served,
                timeout=timedelta(seconds=300),
                wait_for_workers=False,
            )
        place = PrefixStore(f"{_PREFIX}/{seat.attempt}", store)
        if device.type == "cpu":
            return cast("Group", dist.ProcessGroupGloo(place, seat.rank, seat.size, _FOREVER))
        if not dist.is_nccl_available():
            raise InputError(f"{seat.size} ranks on CUDA devices need NCCL, which this torch lacks")
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = _FOREVER
        # Copies between devices take their few multiprocessors before attention takes them all.
        options.is_high_priority_stream = True
        group = dist.ProcessGroupNCCL(place, seat.rank, seat.size, options)
        group.eager_connect_single_device(device)
    except (dist.DistError, RuntimeError) as error:
        raise RankLost(
            f"rank {seat.rank} of {seat.size} found no group at {seat.address}:{seat.port}: {error}"
        ) from error
    return cast("Group", group)


def leave(group: Group, device: torch.device) -> None:
    """Ends a group of :func:`join` once its work is done; the other ranks need not come. NCCL would
    warn of a group that is left as it is.

    The host waits for the device: what this rank still sends would not arrive."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        backend: Any = group
        backend.abort()
