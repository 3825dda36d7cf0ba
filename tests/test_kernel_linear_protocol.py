"""The product kernel's hand-shakes, played out on threads, as those of attention are.

The model of the machine is that of ``test_kernel_attention_hopper_protocol``. Here, besides, what
is stored leaves shared memory as late as the kernel's waits allow, and in the order of its start.
"""

from __future__ import annotations

import time
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from cosmos_fast_kernels import (
    attention_hopper_pipeline,
    linear_hopper,
    linear_hopper_consumer,
    linear_hopper_epilogue,
    linear_hopper_heads,
    linear_hopper_pipeline,
    reference,
)
from cosmos_fast_kernels.linear_hopper_epilogue import Epilogue
from cosmos_fast_kernels.linear_hopper_pipeline import LinearConfig
from test_kernel_attention_hopper_protocol import (
    Barrier,
    Barriers,
    Machine,
    Product,
    Shared,
    registers,
)
from test_kernel_linear_heads import six

if TYPE_CHECKING:
    from collections.abc import Callable

FRAME_POINTER = 2**40
Q_NORM, K_NORM, COS, SIN = (2**41 + number * 2**32 for number in range(4))
EPS = 1e-3


@dataclass
class Matrix:
    """A matrix that copies read, 64 columns of ``rows`` rows at once and zeros beyond, or write."""

    array: np.ndarray
    rows: int

    dtype = None
    layout = None

    @property
    def block_type(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(shape=[self.rows, 64])

    def place(self, row: int, column: int) -> np.ndarray:
        return self.array[row : row + self.rows, column : column + 64]


class ProductMachine(Machine):
    """One multiprocessor, for matrices."""

    gates: np.ndarray
    frames: np.ndarray
    tables: dict[int, np.ndarray]

    def translated(self) -> Callable[..., None]:
        world = {**vars(attention_hopper_pipeline), **vars(linear_hopper_pipeline)}
        world |= {**vars(linear_hopper_epilogue), **vars(linear_hopper_heads)}
        world |= {**vars(linear_hopper_consumer), **vars(linear_hopper)}
        for name, value in list(world.items()):
            if type(value).__name__ == "GluonJITFunction":
                world[name] = types.FunctionType(value.fn.__code__, world, name)
        gluon = self.gluon()
        gluon.abs = np.abs
        gluon.minimum = lambda a, b, propagate_nan=None: np.minimum(a, b)
        gluon.maximum = lambda a, b, propagate_nan=None: np.maximum(a, b)
        gluon.rsqrt = lambda x: 1 / np.sqrt(x)
        gluon.load = self.gather
        world |= {
            "gl": gluon,
            "mbarrier": types.SimpleNamespace(
                wait=lambda bar, phase, pred=True: pred and bar.wait(int(phase)),
                arrive=lambda bar, count, pred=True: pred and bar.settle(count, 0),
                expect=lambda bar, size: bar.settle(1, size),
            ),
            "tma": types.SimpleNamespace(
                async_copy_global_to_shared=self.load,
                async_copy_shared_to_global=self.save,
                store_wait=self.wait_stores,
            ),
            "fence_async_shared": lambda: None,
            "warpgroup_mma": self.multiply,
            "warpgroup_mma_init": lambda value: value,
            "warpgroup_mma_wait": self.wait_products,
            "halves": lambda x: np.split(x, 2, axis=1),
            "joined": lambda left, right: np.concatenate((left, right), axis=1),
            "make_barriers": Barriers,
            "make_ring": lambda desc, count: Shared(
                np.full([count, *desc.block_type.shape], np.nan, np.float32)
            ),
            "CONSUMERS": linear_hopper_pipeline.CONSUMERS.value,
        }
        kernel: Callable[..., None] = world["_linear_kernel"]
        return kernel

    def gather(self, place: Any) -> Any:
        place = np.asarray(place)
        for pointer, table in self.tables.items():
            if pointer <= place.min() < pointer + 2**32:
                return registers(table.reshape(-1)[place - pointer])
        if place.min() >= FRAME_POINTER:
            return self.frames[place - FRAME_POINTER]
        return registers(self.gates.reshape(-1)[place])

    def load(self, desc: Any, place: list[Any], bar: Barrier, target: Shared) -> None:
        row, column = map(int, place)
        target.array[...] = np.nan

        def deliver() -> None:
            if self.random.random() < 0.3:
                time.sleep(self.random.random() * 0.002)
            found = desc.place(row, column)
            target.array[...] = 0.0
            target.array[: found.shape[0], : found.shape[1]] = found
            bar.settle(0, -target.array.size * 2)

        self.copies.submit(deliver)

    def save(self, desc: Any, place: list[Any], source: Shared) -> None:
        row, column = map(int, place)

        def leave() -> None:
            target = desc.place(row, column)
            target[...] = source.array[: target.shape[0], : target.shape[1]]

        self.local.__dict__.setdefault("stores", []).append(leave)

    def wait_stores(self, pending: int) -> None:
        stores = self.local.__dict__.setdefault("stores", [])
        while len(stores) > pending:
            stores.pop(0)()

    def wait_products(self, outstanding: int, deps: tuple[Any, ...]) -> Any:
        under_way = self.local.products
        while len(under_way) > outstanding:
            under_way.pop(0).run()
        (one,) = deps
        finished = isinstance(one, Product) and one not in under_way
        return one.result if finished else one


DESIGNS = {
    "together": LinearConfig(columns=128, stages=3),
    "pieces come back": LinearConfig(columns=256, stages=2, pieces=2, group=2),
    "turns": LinearConfig(rows=64, columns=64, together=False, stages=3, pieces=1),
    "turns, two rounds": LinearConfig(columns=256, together=False, stages=2, pieces=2, group=1),
}
EPILOGUES = {
    "none": Epilogue(),
    "gelu": Epilogue("gelu"),
    "gated": Epilogue("gated"),
    "indexed": Epilogue("gated", indexed=True, round_first=True),
    "norm": Epilogue("norm", features=64),
    "rope": Epilogue("rope", features=64, round_first=True),
    "norm of 128": Epilogue("norm", features=128),
    "rope of 128": Epilogue("rope", features=128),
}


def multiplied(
    one: dict[str, np.ndarray], config: LinearConfig, epilogue: Epilogue, programs: int
) -> np.ndarray:
    """The kernel's own code on matrices; a residual is written over."""
    x, weight, residual = one["x"], one["weight"], one["residual"].copy()
    out = residual if epilogue.kind == "gated" else np.full_like(residual, np.nan)
    machine = ProductMachine(seed=0)
    machine.gates, machine.frames = one["gate"], one["frame"]
    pointers = {"q_norm": Q_NORM, "k_norm": K_NORM, "cos": COS, "sin": SIN}
    machine.tables = {pointer: one[name] for name, pointer in pointers.items() if name in one}
    machine.programs = programs
    rows, outputs = out.shape
    for machine.program in range(programs):
        machine.kernel(
            Matrix(x, config.rows),
            Matrix(weight, config.columns),
            Matrix(residual, config.rows),
            Matrix(out, config.rows),
            0,
            FRAME_POINTER,
            outputs,
            rows,
            -(-rows // config.tile_rows),
            -(-outputs // config.columns),
            outputs // 64,
            x.shape[1] // 64,
            rows // len(one["gate"]),
            Q_NORM,
            K_NORM,
            COS,
            SIN,
            EPS,
            len(one["cos"]) if "cos" in one else 1,
            outputs // (3 * epilogue.features) if epilogue.features else 0,
            config,
            epilogue,
        )
    machine.copies.shutdown()
    return out


@pytest.mark.parametrize("epilogue", [name for name, one in EPILOGUES.items() if not one.features])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "programs"),
    [(2, 64, 64, 1), (274, 320, 448, 1), (274, 128, 192, 2)],
)
def test_the_partitions_agree(
    rows: int, inputs: int, outputs: int, programs: int, design: str, epilogue: str
) -> None:
    generator = np.random.default_rng(0)
    shapes = {
        "x": (rows, inputs),
        "weight": (outputs, inputs),
        "residual": (rows, outputs),
        "gate": (2, outputs),
    }
    one: dict[str, np.ndarray] = {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    one["frame"] = generator.integers(0, 2, rows)

    out = multiplied(one, DESIGNS[design], EPILOGUES[epilogue], programs)

    exact = one["x"].astype(np.float64) @ one["weight"].T.astype(np.float64)
    if epilogue == "gelu":
        exact = np.where(exact > 0, exact, 0) - np.abs(exact) * tails(np.abs(exact))
    if epilogue in ("gated", "indexed"):
        frame = one["frame"] if epilogue == "indexed" else np.arange(rows) // (rows // 2)
        exact = one["residual"] + one["gate"][frame] * exact
    np.testing.assert_allclose(out, exact, rtol=2e-4, atol=2e-4)


HEAD_SHAPES = [(2, 64, 1, 1), (274, 320, 2, 1), (274, 128, 3, 2), (150, 64, 1, 3)]
"""Rows, inputs, heads of q, programs."""


@pytest.mark.parametrize("epilogue", [name for name, one in EPILOGUES.items() if one.features])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("rows", "inputs", "q_heads", "programs"), HEAD_SHAPES)
def test_the_partitions_agree_on_heads(
    rows: int, inputs: int, q_heads: int, programs: int, design: str, epilogue: str
) -> None:
    features, kind = EPILOGUES[epilogue].features, EPILOGUES[epilogue].kind
    if DESIGNS[design].columns % features:
        pytest.skip("its tiles cut heads of 128")
    outputs, tokens = 3 * q_heads * features, rows // 2
    generator = np.random.default_rng(0)
    shapes = {
        "x": (rows, inputs),
        "weight": (outputs, inputs),
        "residual": (rows, outputs),
        "gate": (1, outputs),
        "q_norm": (features,),
        "k_norm": (features,),
        "cos": (tokens, features // 2),
        "sin": (tokens, features // 2),
    }
    one: dict[str, np.ndarray] = {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    one["frame"] = np.zeros(rows, np.int64)

    out = multiplied(one, DESIGNS[design], EPILOGUES[epilogue], programs)

    given = {name: torch.from_numpy(array).double() for name, array in one.items()}
    if kind == "norm":
        exact = reference.linear_head_norm(given["x"], given["weight"], given["q_norm"], EPS)
    else:
        exact = reference.linear_qk_norm_rope(*six(given), EPS)
    np.testing.assert_allclose(out, exact, rtol=2e-4, atol=2e-4)


def tails(x: np.ndarray) -> np.ndarray:
    """The normal distribution at -x."""
    return (torch.special.erfc(torch.from_numpy(x) * 0.5**0.5) / 2).numpy()
