"""How much memory a computation needs, counted on torch's meta device: shapes, and no bytes."""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most bytes that tensors made by ``compute`` hold at a time.

    ``compute`` runs on the meta device; what it closes over is not counted, what it still holds
    when it returns is. A library's own workspace is not seen.
    """
    meter = cast("Any", _Meter)()  # its base class is not annotated
    meter.ledger = ledger = _Ledger()
    with torch.no_grad(), _FusedAttention(), meter:
        compute()
    return ledger.peak


class _FusedAttention(TorchFunctionMode):
    """Attention as devices do it: the output and a row of statistics, no matrix of all pairs."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            query = args[0]
            return torch.empty_like(query, memory_format=torch.contiguous_format)
        return function(*args, **(kwargs or {}))


class _Ledger:
    """Storages that are alive, and their bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._held = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = _rounded(storage.nbytes())
        self._held += size
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._held -= size


class _Meter(TorchDispatchMode):
    """Follows storages from the operation that made them to their end."""

    ledger: _Ledger

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {id(_storage(leaf)) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is_tensor(leaf) and id(_storage(leaf)) not in given:
                self.ledger.count(_storage(leaf))
        return result


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _rounded(size: int) -> int:
    """As torch's caching allocator serves a request: in 512 bytes, large ones in 2 MiB."""
    granule = 2 << 20 if size >= 10 << 20 else 512
    return math.ceil(size / granule) * granule
