"""Cancelling among ranks: asked between steps and chunks, it must not hold the device up."""

from __future__ import annotations

from datetime import timedelta
from threading import Event
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cosmos_fast.parallel.cancelling import SharedCancel
from cosmos_fast.parallel.exchange import Exchange

PATIENCE = timedelta(seconds=20)


def test_a_question_on_a_cpu_is_answered_at_once() -> None:
    group: Any = dist.ProcessGroupGloo(dist.HashStore(), 0, 1, PATIENCE)
    cancel = Event()
    shared = SharedCancel(cancel, Exchange(group, torch.device("cpu")))
    assert not shared.is_set()
    cancel.set()
    assert shared.is_set()
    assert not SharedCancel(None, Exchange(group, torch.device("cpu"))).is_set()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_a_question_on_a_device_waits_for_nothing_and_is_answered_by_the_next() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    options = dist.ProcessGroupNCCL.Options()
    group: Any = dist.ProcessGroupNCCL(dist.HashStore(), 0, 1, options)
    cancel = Event()
    shared = SharedCancel(cancel, Exchange(group, device))
    x = torch.randn(4096, 4096, device=device)
    assert not shared.is_set()  # which makes the communicator
    torch.cuda.set_sync_debug_mode("error")  # a wait for the stream raises
    try:
        for _ in range(3):
            x = (x @ x).tanh()
            assert not shared.is_set()
        cancel.set()
        answers = [shared.is_set() for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert answers[-1]
