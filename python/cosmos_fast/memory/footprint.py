"""How much memory a computation needs, counted on torch's meta device: shapes, and no bytes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cosmos_fast.memory.segments import Segments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cosmos_fast.memory.segments import Trace


def trace(compute: Callable[[], object]) -> Trace:
    """The memory that tensors made by ``compute`` ask for and give back, in this order.

    ``compute`` runs on the meta device; what it closes over is not counted, what it still holds
    when it returns is never given back. A library's own workspace is not seen.
    """
    meter = cast("Any", _Meter)()  # its base class is not annotated
    meter.ledger = ledger = _Ledger()
    with torch.no_grad(), _AsOnDevices(), meter:
        compute()
    return tuple(ledger.requests)


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most bytes that tensors made by ``compute`` hold at a time, as torch's allocator serves
    them; see :func:`trace`."""
    segments = Segments()
    segments.follow(trace(compute))
    return segments.peak_allocated


class _AsOnDevices(TorchFunctionMode):
    """Attention as devices do it: no matrix of all pairs, where rows lie as kernels read them.

    Norms without a weight in one pass. And the shape of a convolution straight away: torch's own
    way to it takes 50 ms a time.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            return _attended(*args[:3])
        if function is torch.rms_norm:
            return _normed(args[0])
        if function in (torch.conv2d, torch.conv3d):
            return _convolution(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


_WIDEST_HEAD: Final = 128
"""Of wider ones torch's memory-efficient kernel keeps its sums apart, in float32."""


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What torch's attention makes on a device, with the sizes of ``(B, heads, N, C)``.

    No kernel of it reads rows whose values do not lie side by side. Its plain form computes in
    float32, with three matrices of all pairs and one of truth values at a time. One H200 decoded
    704 x 1280 frame by frame that way, 14,080 positions: 2.4 GiB of matrices, and the process took
    2.2 GiB more than planned.
    """
    # The heads of a row side by side.
    out = query.new_empty(query.transpose(1, 2).shape).transpose(1, 2)
    if all(tensor.stride(-1) == 1 for tensor in (query, key, value)):
        if value.shape[-1] > _WIDEST_HEAD:
            query.new_empty(out.shape, dtype=torch.float32)
        return out
    wide = torch.float32
    exact = [tensor.new_empty(tensor.shape, dtype=wide) for tensor in (query, key, value)]
    scores = query.new_empty((*query.shape[:-1], key.shape[-2]), dtype=wide)
    softmax, hopeless = torch.empty_like(scores), torch.empty_like(scores, dtype=torch.bool)
    checked = torch.empty_like(scores)
    del scores, softmax, hopeless
    sums, rounded = torch.empty_like(out, dtype=wide), torch.empty_like(checked, dtype=out.dtype)
    del exact, checked, sums, rounded
    return out


def _normed(x: torch.Tensor) -> torch.Tensor:
    """A root mean square norm as devices do it, in one pass that keeps what each row was divided
    by."""
    out = torch.empty_like(x)
    x.new_empty(x.shape[:-1], dtype=torch.float32)
    return out


def _convolution(x: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
    """Channels come last in the result where they do in ``x``, as cuDNN has it."""
    result = x.new_empty(_convolved(x, *others, **more))
    form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    if x.is_contiguous() or not x.is_contiguous(memory_format=form):
        return result
    return torch.empty_like(result, memory_format=form)


def _convolved(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    *_more: Any,
) -> tuple[int, ...]:
    """Shape of a convolution without dilation or groups."""
    axes = x.ndim - 2
    strides = (stride,) * axes if isinstance(stride, int) else stride
    paddings = (padding,) * axes if isinstance(padding, int) else padding
    sizes = (
        (length + 2 * pad - kernel) // step + 1
        for length, kernel, step, pad in zip(
            x.shape[2:], weight.shape[2:], strides, paddings, strict=True
        )
    )
    return (x.shape[0], weight.shape[0], *sizes)


class _Ledger:
    """Storages that are made and let go of, in their order."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, int]] = []
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._count = 0

    def count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        if storage in self._known or not size:
            return
        self._known.add(storage)
        self._count += 1
        self.requests.append((self._count, size))
        weakref.finalize(storage, self._release, self._count)

    def _release(self, number: int) -> None:
        self.requests.append((number, 0))


class _Meter(TorchDispatchMode):
    """Follows storages from the operation that made them to their end."""

    ledger: _Ledger

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; to keep its compiler off, torch would import it: seconds."""
        return False

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {id(_storage(leaf)) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        if function is torch.ops.aten.cat.default:
            result = _concatenated(*args)
        else:
            result = _elementwise(function, args, kwargs or {})
        if result is None:
            result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is_tensor(leaf) and id(_storage(leaf)) not in given:
                self.ledger.count(_storage(leaf))
        return result


def _concatenated(parts: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    """One tensor of several, channels last where they are in all; None where that is unclear.

    torch's own way to it, by decompositions in Python, takes a millisecond.
    """
    first = parts[0]
    alike = all(part.ndim == first.ndim and part.dtype == first.dtype for part in parts)
    formats = {_format(part) for part in parts}
    if not alike or len(formats) > 1:
        return None
    shape = list(first.shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return torch.empty(shape, dtype=first.dtype, device="meta", memory_format=formats.pop())


def _format(tensor: torch.Tensor) -> torch.memory_format:
    if not tensor.is_contiguous():
        for axes, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if tensor.ndim == axes and tensor.is_contiguous(memory_format=form):
                return form
    return torch.contiguous_format


_ELEMENTWISE: Final = frozenset(
    f"aten::{name}"
    for name in (
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "abs",
        "clamp",
        "clamp_min",
        "log",
        "rsqrt",
        "silu",
        "gelu",
        "where",
        "_to_copy",
    )
)
_COMPARISONS: Final = frozenset({"aten::lt", "aten::gt"})


def _elementwise(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """The result of an operation on each value, None where ``function`` is another one.

    torch's own way to it, by decompositions in Python, takes milliseconds and seconds of imports.
    """
    name = function._schema.name
    if name not in _ELEMENTWISE and name not in _COMPARISONS:
        return None
    given = [leaf for leaf in args if _is_tensor(leaf)]
    dtype = kwargs.get("dtype") or given[0].dtype
    for other in given[1:]:
        dtype = torch.promote_types(dtype, other.dtype)
    if name in _COMPARISONS:
        dtype = torch.bool
    shape = torch.broadcast_shapes(*(one.shape for one in given))
    return torch.empty(shape, dtype=dtype, device="meta")


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
