"""The Hopper kernel's hand-shakes, played out on threads: who may touch which buffer, and when.

Gluon has no interpreter. Here the functions of the kernel run as the Python they are, with a model
of the machine under them: a thread for each partition, barriers that count arrivals and bytes,
copies that spoil their target at once and deliver late, products that read shared memory as late
as their wait allows. A slot freed too soon, a wait for the wrong phase, a wrong coordinate or mask
shows as a wrong number, a NaN or a standstill.
"""

from __future__ import annotations

import random
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cosmos_fast_kernels import (
    attention_hopper,
    attention_hopper_consumer,
    attention_hopper_decay,
    attention_hopper_pipeline,
    attention_hopper_products,
    attention_hopper_softmax,
)
from cosmos_fast_kernels.attention_hopper_pipeline import HopperConfig

if TYPE_CHECKING:
    from collections.abc import Callable

STANDSTILL = 5.0
"""Seconds after which a wait counts as one that never ends."""


class Registers(np.ndarray):
    """A tensor in registers."""

    type = types.SimpleNamespace(layout=None)

    def to(self, dtype: object) -> Registers:
        return self


def registers(array: Any) -> Registers:
    return np.asarray(array, np.float32).view(Registers)


class Shared:
    """A view of shared memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = list(array.shape)

    def index(self, slot: Any) -> Shared:
        return Shared(self.array[int(slot)])

    def reshape(self, shape: list[int]) -> Shared:
        view = self.array.reshape(shape)
        assert np.shares_memory(view, self.array)
        return Shared(view)

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.array.transpose(order))

    def store(self, value: np.ndarray) -> None:
        self.array[...] = value

    def load(self, layout: object) -> Registers:
        return registers(self.array.copy())


@dataclass
class Barrier:
    """A phase ends when as many arrived as must, and all bytes it was told of have."""

    count: int = 0
    pending: int = 0
    bytes: int = 0
    phase: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def settle(self, arrivals: int, transferred: int) -> None:
        with self.changed:
            self.pending -= arrivals
            self.bytes += transferred
            assert self.pending >= 0, "more arrivals than the barrier expects"
            if self.pending == 0 and self.bytes == 0:
                self.pending = self.count
                self.phase += 1
                self.changed.notify_all()

    def wait(self, parity: int) -> None:
        with self.changed:
            passed = self.changed.wait_for(lambda: self.phase & 1 != parity, STANDSTILL)
        assert passed, "standstill at a barrier"


class Barriers:
    def __init__(self, count: int, arrivals: int) -> None:
        self.barriers = [Barrier(arrivals, arrivals) for _ in range(count)]

    def index(self, slot: Any) -> Barrier:
        return self.barriers[int(slot)]


@dataclass
class Product:
    """A product under way: its result may be read only after a wait."""

    a: Any
    b: Shared
    into: Any
    use_acc: bool
    result: Registers | None = None

    def run(self) -> None:
        if self.result is not None:
            return
        into = self.into
        if isinstance(into, Product):
            into.run()
            into = into.result
        left = self.a.array if isinstance(self.a, Shared) else self.a
        product = np.asarray(left) @ self.b.array
        self.result = registers(product + into if self.use_acc else product)


@dataclass
class Descriptor:
    """A tensor (B, H, S, D) that copies read, zeros beyond its end, or write."""

    tensor: np.ndarray
    rows: int

    @property
    def block_type(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(shape=[1, 1, self.rows, self.tensor.shape[3]])

    dtype = None
    layout = None


class Machine:
    """One multiprocessor: runs the kernel's programs one after another."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.local = threading.local()
        self.program, self.programs = 0, 1
        self.copies = ThreadPoolExecutor(4)
        self.sums: np.ndarray | None = None
        self.named = {8: Barrier(2, 2), 9: Barrier(2, 2)}
        self.named |= {name: Barrier(3, 3) for name in range(10, 16)}
        self.kernel = self.translated()

    def translated(self) -> Callable[..., None]:
        """The kernel with this machine in place of Gluon."""
        world = {**vars(attention_hopper_pipeline), **vars(attention_hopper_decay)}
        world |= {**vars(attention_hopper_softmax), **vars(attention_hopper_products)}
        world |= {**vars(attention_hopper_consumer), **vars(attention_hopper)}
        world |= {
            "gl": self.gluon(),
            "mbarrier": types.SimpleNamespace(
                wait=lambda bar, phase, pred=True: pred and bar.wait(int(phase)),
                arrive=lambda bar, count: bar.settle(count, 0),
                expect=lambda bar, size: bar.settle(1, size),
            ),
            "tma": types.SimpleNamespace(
                async_copy_global_to_shared=self.load,
                async_copy_shared_to_global=self.save,
                store_wait=lambda pending: None,
            ),
            "fence_async_shared": lambda: None,
            "warpgroup_mma": self.multiply,
            "warpgroup_mma_wait": self.wait_products,
        }
        for name, value in list(world.items()):
            if type(value).__name__ == "GluonJITFunction":
                world[name] = types.FunctionType(value.fn.__code__, world, name)
        world |= {
            "meet": self.meet,
            "make_barriers": Barriers,
            "FREE": attention_hopper_pipeline.FREE.value,
        }
        world["meet_loader"] = lambda wait, name, config: self.meet(wait, int(name))
        world["_here"] = world["_behind_a_branch"] = lambda x: x
        world["make_ring"] = lambda desc, stages: Shared(
            np.full([stages, *desc.block_type.shape], np.nan, np.float32)
        )
        return world["_attention_kernel"]

    def gluon(self) -> types.SimpleNamespace:
        def reduced(operation: Callable[..., Any]) -> Callable[..., Registers]:
            return lambda x, axis: registers(operation(x, axis=axis))

        return types.SimpleNamespace(
            program_id=lambda axis: self.program,
            num_programs=lambda axis: self.programs,
            num_warps=lambda: 4,
            static_range=range,
            cdiv=lambda a, b: -(-a // b),
            cast=lambda value, dtype: value,
            where=lambda chosen, yes, no: np.asarray(np.where(chosen, yes, no)).view(Registers),
            maximum=np.maximum,
            max=reduced(np.max),
            sum=reduced(np.sum),
            exp2=np.exp2,
            log2=np.log2,
            arange=lambda start, end, layout: np.arange(start, end),
            full=lambda shape, value, dtype, layout: registers(np.full(shape, value)),
            convert_layout=lambda value, layout: value,
            store=self.store_sums,
            inline_asm_elementwise=lambda text, constraints, terms, *_: terms[0] * terms[1],
            warp_specialize=self.specialise,
            NVMMADistributedLayout=lambda *_: None,
            DotOperandLayout=lambda *_: None,
            SliceLayout=lambda *_: None,
            float32=None,
            int32=None,
            int64=None,
        )

    def meet(self, wait: bool, name: int) -> None:
        bar = self.named[name]
        with bar.changed:
            phase = bar.phase & 1
        bar.settle(1, 0)
        if wait:
            bar.wait(phase)

    def load(self, desc: Descriptor, place: list[Any], bar: Barrier, target: Shared) -> None:
        batch, head, row, _ = (int(one) for one in place)
        target.array[...] = np.nan

        def deliver() -> None:
            if self.random.random() < 0.3:
                threading.Event().wait(self.random.random() * 0.002)
            found = desc.tensor[batch, head, max(row, 0) : row + desc.rows]
            target.array[...] = 0.0
            target.array[0, 0, : len(found)] = found
            bar.settle(0, -target.array.size * 2)

        self.copies.submit(deliver)

    def save(self, desc: Descriptor, place: list[Any], source: Shared) -> None:
        batch, head, row, _ = (int(one) for one in place)
        target = desc.tensor[batch, head, row : row + desc.rows]
        target[...] = source.array[0, 0, : len(target)]

    def store_sums(self, place: Any, value: np.ndarray, mask: np.ndarray) -> None:
        assert self.sums is not None
        self.sums[np.asarray(place)[mask]] = value[mask]

    def multiply(
        self, a: Any, b: Shared, into: Any, use_acc: bool = True, is_async: bool = False
    ) -> Product:
        product = Product(a, b, into, use_acc)
        self.local.__dict__.setdefault("products", []).append(product)
        if self.random.random() < 0.5:
            product.run()
        return product

    def wait_products(self, outstanding: int, deps: tuple[Any, ...]) -> Any:
        under_way = self.local.products
        while len(under_way) > outstanding:
            under_way.pop(0).run()
        done = tuple(one.result if isinstance(one, Product) else one for one in deps)
        return done if len(done) > 1 else done[0]

    def specialise(self, partitions: list[Any], warps: list[int], registers: list[int]) -> None:
        with ThreadPoolExecutor(len(partitions)) as pool:
            for done in [pool.submit(run, *arguments) for run, arguments in partitions]:
                done.result()


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, config: HopperConfig, zero_keys: int, programs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp of the kernel's own code for tensors (B, H, S, D)."""
    machine = Machine(seed=0)
    batches, heads, queries, head_dim = q.shape
    out = np.full_like(q, np.nan)
    machine.sums = np.full(batches * queries * heads, np.nan, np.float32)
    machine.programs = programs
    for machine.program in range(programs):
        machine.kernel(
            Descriptor(q, config.rows),
            Descriptor(k, config.keys),
            Descriptor(v, config.keys),
            Descriptor(k, config.tail or config.keys),
            Descriptor(v, config.tail or config.keys),
            Descriptor(out, config.rows),
            0,
            head_dim**-0.5 * np.log2(np.e),
            zero_keys,
            batches,
            queries,
            k.shape[2],
            heads,
            config,
            zero_keys > 0,
            True,
        )
    machine.copies.shutdown()
    return out, machine.sums.reshape(batches, queries, heads).transpose(0, 2, 1)


DESIGNS = {
    "no loader": HopperConfig(
        head_dim=64, rows=128, consumers=1, loader=False, turns="none", q_stages=1
    ),
    "free": HopperConfig(head_dim=64, turns="none"),
    "values first": HopperConfig(head_dim=64, overlap=False),
    "turns": HopperConfig(head_dim=64),
    "hardware turns": HopperConfig(head_dim=64, turns="named"),
    "late decay": HopperConfig(head_dim=64, late_decay=True),
    "wide": HopperConfig(head_dim=64, keys=64, tail=32),
    "one tile of queries": HopperConfig(head_dim=64, q_stages=1),
    "slots at hardware barriers": HopperConfig(head_dim=64, turns="none", free="named"),
    "all at hardware barriers": HopperConfig(
        head_dim=64, keys=64, tail=32, turns="named", free="named", skip_decay=True, slack=8.0
    ),
    "values before exponentials": HopperConfig(
        head_dim=64, turns="named", free="named", early_values=True, q_registers=True
    ),
    "three stages": HopperConfig(
        head_dim=64, turns="named", free="named", early_values=True, late_keys=True, stages=3
    ),
    "queries in registers": HopperConfig(
        head_dim=64, q_registers=True, free="named", skip_decay=True, slack=8.0
    ),
    "three consumers": HopperConfig(head_dim=64, consumers=3, keys=64),
}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(
    ("queries", "keys", "zero_keys", "programs"),
    [(1, 1, 0, 1), (129, 640, 1, 1), (300, 257, 7, 2)],
)
def test_the_partitions_agree(
    design: str, queries: int, keys: int, zero_keys: int, programs: int
) -> None:
    config = DESIGNS[design]
    generator = np.random.default_rng(0)
    shapes = [(2, 2, length, config.head_dim) for length in (queries, keys, keys)]
    q, k, v = (generator.standard_normal(shape).astype(np.float32) for shape in shapes)
    k += 20 * generator.standard_normal(config.head_dim).astype(np.float32)  # an offset by channel

    out, log_sum_exp = attend(q, k, v, config, zero_keys, programs)

    scores = np.einsum("bhsd,bhtd->bhst", q, k, dtype=np.float64) * config.head_dim**-0.5
    scores = np.concatenate([scores, np.zeros((*scores.shape[:3], zero_keys))], axis=-1)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    expected = weights[..., :keys] / total @ v
    np.testing.assert_allclose(out, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(log_sum_exp, (top + np.log(total))[..., 0], rtol=1e-5, atol=1e-4)
