"""Kernels compiled side by side before they are launched, and which those are.

The calls that will be made are made with tensors of the meta device, and name what they would
launch. Triton's compiler lets go of the interpreter in its passes, in LLVM and in the assembler,
which are four fifths of its time, so that threads are enough. What is compiled lies in Triton's
cache on disk.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch

from cosmos_fast.model.attention import Attended, AttentionSpec
from cosmos_fast.model.attention_table import (
    LONG_KEYS,
    QUERIES,
    SHORT_KEYS,
    ShapeClass,
    forms,
)
from cosmos_fast.model.linear_table import DESIGNS, Epilogue, Following, Gated, Normed
from cosmos_fast.model.ops.attention import TableAttention
from cosmos_fast.model.ops.backends import candidates
from cosmos_fast.model.ops.choice import Ops, _with_kernels
from cosmos_fast.model.ops.products import _hopper_product, has_designs, table_product
from cosmos_fast_kernels.launching import Launch, only_named

logger = logging.getLogger(__name__)

_MOST_THREADS: Final = 16
"""The part of compiling that holds the interpreter keeps no more of them busy."""


@contextmanager
def compiling(
    device: torch.device, calls: Callable[[], None], *, processes: int = 1
) -> Iterator[None]:
    """Compiles what ``calls`` would launch while the body runs, and ends when all is compiled.

    A launch in the body waits for its own kernel alone. What cannot be compiled is left to the
    launch that needs it, which tells why; where nothing can be compiled ahead, the body runs as it
    is.

    Args:
        device: a CUDA device, where kernels can run.
        calls: calls operations with tensors of the meta device.
        processes: that do the same at the same time; they share the cores.
    """
    launches = _named(device, calls)
    cores = len(os.sched_getaffinity(0)) // processes
    threads = max(1, min(_MOST_THREADS, cores, len(launches)))
    workers = ThreadPoolExecutor(threads, "cosmos-fast compiler", _leave_interrupts_to_others)
    with _FILTERS, workers as pool:
        compiler = _Compiler(pool, device)
        mode = _entered(compiler)
        if mode is None:
            yield
            return
        try:
            _submit(device, launches)
            yield
            wait(compiler.begun)
        except BaseException:
            compiler.stop()
            raise
        finally:
            _leave(mode)


class _Filters:
    """Filters of warnings are, when the last engine has compiled, as the first one found them.

    Triton sets some of its own while it reads a kernel, and restores what was before. Filters are
    of the whole process: threads that do so at once restore each other's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._engines:
                self._found = warnings.catch_warnings()
                self._found.__enter__()
            self._engines += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._engines -= 1
            if not self._engines:
                self._found.__exit__(None, None, None)


_FILTERS: Final = _Filters()


def _leave_interrupts_to_others() -> None:
    """In a thread that compiles: an assembler that it starts does not hear the terminal's Ctrl-C,
    for whose death Triton would print all of the assembly."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _entered(compiler: _Compiler) -> Any:
    """Triton's mode, on in this context; None where that cannot be."""
    import triton

    try:
        mode = triton.AsyncCompileMode(compiler, ignore_errors=True)
        mode.__enter__()
    except Exception as problem:  # such as: the program around us has entered one of its own
        logger.warning("kernels are not compiled ahead: %s", problem)
        return None
    return mode


def _leave(mode: Any) -> None:
    """Ends Triton's mode in this context, come what may: it would hand later launches to threads
    that are gone."""
    try:
        mode.__exit__(None, None, None)
    except BaseException:  # interrupted as it waited, or a hook of somebody's has failed
        mode.raw_futures = []
        mode.__exit__(None, None, None)
        raise


def _named(device: torch.device, calls: Callable[[], None]) -> list[Launch]:
    with only_named() as launches:
        try:
            with torch.cuda.device(device), torch.no_grad():
                calls()
        except Exception as problem:  # the real call will tell, if it fails as well
            logger.warning("not all kernels are compiled ahead: %s", problem)
    return launches


def _submit(device: torch.device, launches: list[Launch]) -> None:
    """Within Triton's mode, which compiles each variant once."""
    for one in launches:
        try:
            with torch.cuda.device(device):
                one.compile()
        except Exception as problem:  # the launch itself will tell
            logger.warning("a kernel is not compiled ahead: %s", problem)


class _Compiler:
    """The executor of Triton's mode: a kernel is compiled, and then loaded, by the same thread."""

    def __init__(self, pool: ThreadPoolExecutor, device: torch.device) -> None:
        self._pool = pool
        self._device = device
        self._stopped = False
        self.begun: Final[list[Future[Any]]] = []

    def stop(self) -> None:
        """Nothing more is begun. (The mode would wait for ever for futures that are cancelled.)"""
        self._stopped = True

    def submit(self, compile_one: Callable[[], Any]) -> Future[Any]:
        try:
            future = self._pool.submit(self._loaded, compile_one)
        except RuntimeError as problem:  # the system starts no thread; here the kernel gets done
            logger.info("a kernel is compiled by the thread that asks for it: %s", problem)
            future = Future()
            try:
                future.set_result(self._loaded(compile_one))
            except Exception as failure:
                future.set_exception(failure)
        self.begun.append(future)
        return future

    def _loaded(self, compile_one: Callable[[], Any]) -> Any:
        if self._stopped:
            raise RuntimeError("nobody needs this kernel any more")
        kernel = compile_one()
        try:
            with torch.cuda.device(self._device):
                kernel[1, 1, 1]  # compiles its launcher in C, and launches nothing
        except Exception as problem:
            logger.warning("kernel %s is not loaded ahead: %s", kernel.name, problem)
            return compile_one()  # from the disk, as if nobody had tried; the launch will tell
        return kernel


def expected(device: torch.device, dtype: torch.dtype, head_dim: int) -> Ops:
    """What :meth:`Ops.select` chooses on a CUDA device if every test is passed, for naming alone:
    attention and products that are not ours compute nothing."""
    capability = torch.cuda.get_device_capability(device)
    found = candidates(capability, dtype, head_dim)
    found.pop("fa3", None)  # a wheel is compiled already
    attention = TableAttention(capability, found, _no_attention)
    ops = _with_kernels(attention, {}, folds_padding=attention.folds_padding)
    return replace(ops, product=table_product) if has_designs(device, dtype, head_dim) else ops


def _no_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
) -> Attended:
    return Attended(torch.empty_like(q, memory_format=torch.contiguous_format))


def name_tests(
    ops: Ops,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    classes: Collection[ShapeClass],
) -> None:
    """The launches of the tests that :meth:`Ops.select` makes, where they are only named."""

    def meta(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    for wanted in classes:
        for keys, spec in forms(wanted, head_dim**-0.5):
            assert keys in (SHORT_KEYS, LONG_KEYS)
            q, k, v = meta(1, keys, 3, 2, head_dim).unbind(2)
            ops.attention(q[:, :QUERIES], k, v, spec)
    if not has_designs(device, dtype, head_dim):
        return
    outputs = 3 * head_dim
    gated = Gated(meta(1, 300, outputs), meta(1, 3, outputs), None)
    following: dict[Epilogue, Following] = {"gated": gated, "norm": Normed(meta(head_dim), 1e-6)}
    for epilogue, name in DESIGNS:
        given = following.get(epilogue)
        _hopper_product(epilogue, name, meta(1, 300, 320), meta(outputs, 320), given)
