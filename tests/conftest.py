"""What every test may rely on: seeds, tolerances, isolation, and a guard over the process."""

from __future__ import annotations

import ctypes.util
import ipaddress
import logging
import os
import random
import signal
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from ahead_of_time import Compiler

if not torch.cuda.is_available():
    # Triton reads this when it is first imported: kernels then run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Read when the hub client is first imported: a test must not tell anyone that it ran.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


TOLERANCE: Final[Mapping[torch.dtype, dict[str, float]]] = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}
"""How far two ways of computing one thing may drift apart, by the dtype they compute in:
``torch.testing.assert_close(ours, theirs, **tolerance[dtype])``."""

_MEASURED: Final = pytest.StashKey[list[str]]()
_PARITY: Final = pytest.StashKey[list[str]]()
_BENCHMARKS: Final = Path(__file__).resolve().parent.parent / "BENCHMARKS.md"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-parity", action="store_true", help="write the parity table of BENCHMARKS.md"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MEASURED] = []
    config.stash[_PARITY] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "parity" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.parity)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        if os.environ.get("COSMOS_FAST_REQUIRE_GPU") == "1":
            pytest.fail("COSMOS_FAST_REQUIRE_GPU=1, but torch sees no CUDA device", pytrace=False)
        pytest.skip("needs a CUDA device")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if lines := config.stash[_MEASURED]:
        terminalreporter.section("measured (reported, never asserted)")
        for line in lines:
            terminalreporter.line(line)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    rows = session.config.stash[_PARITY]
    if session.config.getoption("--write-parity") and exitstatus == 0 and rows:
        text = _BENCHMARKS.read_text("utf-8")
        before, _, rest = text.partition("<!-- parity: begin -->\n")
        _, mark, after = rest.partition("<!-- parity: end -->")
        table = ["| ours | measured against | error | bound |", "|---|---|---|---|", *rows]
        lines = "\n".join(table) + "\n"
        _BENCHMARKS.write_text(f"{before}<!-- parity: begin -->\n{lines}{mark}{after}", "utf-8")


def _refuse_foreign_hosts(event: str, arguments: tuple[Any, ...]) -> None:
    """Tests talk to this machine only; a name or address beyond it is a mistake."""
    internet = (socket.AF_INET, socket.AF_INET6)
    if event != "socket.connect" or arguments[0].family not in internet:
        return
    host = str(arguments[1][0])
    try:
        loopback = ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise RuntimeError(f"a test tried to connect to {host}: tests stay on the loopback device")


sys.addaudithook(_refuse_foreign_hosts)


@pytest.fixture
def tolerance() -> Mapping[torch.dtype, dict[str, float]]:
    """The one table of tolerances."""
    return TOLERANCE


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Notes a line for the end of the run. No test asserts a time; this is where times go."""
    lines = request.config.stash[_MEASURED]
    return lambda line: lines.append(f"{request.node.name}: {line}")


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``parity(ours, rival, error, bound)``: fails beyond the bound, and is a row of BENCHMARKS.md.

    ``ours`` and ``rival`` are a few words each; ``error`` is relative unless they say otherwise;
    ``bound`` 0 asks for equality. A test that asks for this fixture carries the marker ``parity``.
    """
    rows = request.config.stash[_PARITY]

    def compare(ours: str, rival: str, error: float, bound: float) -> None:
        assert error <= bound, f"{ours} against {rival}: {error:.3g} is beyond {bound:g}"
        shown = f"{error:.1e}" if error else "0 (equal)"
        rows.append(f"| {ours} | {rival} | {shown} | {f'{bound:g}' if bound else 'equal'} |")

    return compare


@pytest.fixture(scope="session")
def mujoco() -> None:
    """Skips where MuJoCo cannot draw without a GPU."""
    pytest.importorskip("mujoco")
    if ctypes.util.find_library("OSMesa") is None:
        pytest.skip("MuJoCo draws through libOSMesa (Debian: libosmesa6), which is not here")


@pytest.fixture(scope="session")
def compiler() -> Iterator[Compiler]:
    """A process that compiles kernels for whatever device they name."""
    from ahead_of_time import Compiler

    compiler = Compiler()
    yield compiler
    compiler.close()


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """COSMOS_FAST_CACHE of this test: empty, and nobody else's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("COSMOS_FAST_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state."""
    random.seed(0)
    np.random.seed(0)  # the legacy state is what a guard over global state has to watch
    torch.manual_seed(0)


def process_globals() -> dict[str, Any]:
    """All state of the process that a library could disturb behind its host's back."""
    backends = torch.backends
    state: dict[str, Any] = {
        "environment": dict(os.environ),
        "working directory": os.getcwd(),  # noqa: PTH109
        "random": random.getstate(),
        "numpy random": _hashable(np.random.get_state(legacy=False)),
        "numpy error handling": np.geterr(),
        "torch random": bytes(torch.get_rng_state().numpy()),
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": torch.get_default_device(),
        "torch grad mode": torch.is_grad_enabled(),
        "torch inference mode": torch.is_inference_mode_enabled(),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch float32 matmul precision": torch.get_float32_matmul_precision(),
        "torch deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "torch distributed": torch.distributed.is_available()
        and torch.distributed.is_initialized(),
        "cudnn": {
            name: getattr(backends.cudnn, name)
            for name in ("enabled", "benchmark", "benchmark_limit", "deterministic", "allow_tf32")
        },
        "cuda matmul": {
            name: getattr(backends.cuda.matmul, name)
            for name in ("allow_tf32", "allow_bf16_reduced_precision_reduction")
        },
        "cuda attention": tuple(
            getattr(backends.cuda, f"{name}_sdp_enabled")()
            for name in ("flash", "mem_efficient", "math", "cudnn")
        ),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "root log handlers": [type(handler) for handler in logging.getLogger().handlers],
        "root log level": logging.getLogger().level,
        "own log handlers": [
            handler
            for handler in logging.getLogger("cosmos_fast").handlers
            if type(handler) is not logging.NullHandler  # a library's own, which does nothing
        ],
        "excepthook": (sys.excepthook, sys.unraisablehook),
        "recursion limit": sys.getrecursionlimit(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda device"] = torch.cuda.current_device()
        state["cuda random"] = [bytes(one.numpy()) for one in torch.cuda.get_rng_state_all()]
        state["cuda stream"] = torch.cuda.current_stream().cuda_stream
    return state


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hashable(item) for name, item in value.items()}
    return value.tobytes() if isinstance(value, np.ndarray) else value


@contextmanager
def unchanged() -> Iterator[None]:
    """Fails if the block disturbs a global of the process."""
    before = process_globals()
    yield
    after = process_globals()
    changed = sorted(name for name in before if before[name] != after[name])
    assert not changed, f"changed behind the host's back: {', '.join(changed)}"


@pytest.fixture
def unchanged_globals() -> Callable[[], AbstractContextManager[None]]:
    """``with unchanged_globals(): ...`` as :func:`unchanged`."""
    return unchanged


@pytest.fixture(scope="session")
def companions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoints folder with a small guardrail and two small upsamplers; never written to."""
    from tools.random_companions import make_guardrail, make_upsampler

    root = tmp_path_factory.mktemp("companions")
    make_guardrail(root)
    make_upsampler(root / "Qwen" / "Qwen2.5-VL-7B-Instruct")
    make_upsampler(root / "nvidia" / "Cosmos-Reason1-7B")
    return root
