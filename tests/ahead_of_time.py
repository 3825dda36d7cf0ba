"""Kernels compiled ahead of time where no GPU is, in a process of its own, and its machine code.

Triton's interpreter, which the other tests run in, excludes its compiler. Run as a program, this
file is the process that a :class:`Compiler` has its forks from.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE: Final = 300
"""Seconds that a program may take."""


def _compiling() -> dict[str, str]:
    """The environment of a process that may compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return environment | {"PYTHONPATH": os.pathsep.join(sys.path)}


def printed_by(program: str, *arguments: object, cache: Path | None = None) -> Any:
    """The JSON object in the last line of what a program prints that may compile.

    Args:
        cache: an empty folder, where it is to compile and to find nothing.
    """
    environment = _compiling()
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


class Compiler:
    """Runs programs as :func:`printed_by` does, each in a fork of one process that has imported
    torch and Triton and knows what Triton is: seconds that each would take again."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_compiling(),
        )

    def printed_by(self, program: str, *arguments: object, cache: Path) -> Any:
        """The JSON object in the last line of what a program prints.

        Args:
            cache: an empty folder, where it compiles and finds nothing.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        errors = cache / "errors.txt"
        words = [program, str(cache), str(errors), *map(str, arguments)]
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that compiles has ended: {self._process.wait()}"
        code, printed = json.loads(answer)
        assert code == 0, errors.read_text()[-3000:] or f"exit code {code}"
        return json.loads(printed.splitlines()[-1])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _fork_for_each_line() -> None:
    """Lines say program, cache, where errors go, and arguments; answers are an exit code and what
    was printed."""
    import pytest  # noqa: F401  (the programs are tests as well)
    from triton.runtime.cache import triton_key

    triton_key()
    for line in sys.stdin:
        program, cache, errors, *arguments = json.loads(line)
        printed = Path(cache, "printed.txt")
        if (child := os.fork()) == 0:
            _become(program, arguments, Path(cache), printed, Path(errors))
        _, status = os.waitpid(child, 0)
        answer = [os.waitstatus_to_exitcode(status), printed.read_text()]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _become(
    program: str, arguments: list[str], cache: Path, printed: Path, errors: Path
) -> NoReturn:
    code = 1
    with printed.open("w") as out, errors.open("w") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            signal.alarm(PATIENCE)
            os.environ["TRITON_CACHE_DIR"] = str(cache)
            sys.argv = [program, *arguments]
            sys.path[0] = str(Path(program).parent)
            runpy.run_path(program, run_name="__main__")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def pretend_target(capability: int) -> None:
    """From here on launch wrappers find a device that knows its target, for all of the process."""
    import triton
    from triton.backends.compiler import GPUTarget

    shared = {"max_shared_mem": 227 * 1024}
    driver = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=lambda source, metadata: lambda *arguments: None,
        utils=types.SimpleNamespace(
            get_device_properties=lambda device: shared,
            load_binary=lambda *arguments: (object(), object(), 0, 0, 1024),
        ),
    )
    triton.runtime.driver.set_active(driver)
    cuda: Any = torch.cuda
    cuda.get_device_capability = lambda device=None: divmod(capability, 10)
    cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=132)
    cuda.device = lambda device: contextlib.nullcontext()


def disassembled(cubin: bytes, folder: Path) -> str:
    from triton import knobs

    (folder / "kernel.cubin").write_bytes(cubin)
    command = [knobs.nvidia.nvdisasm.path, "-c", str(folder / "kernel.cubin")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def assembler_log() -> Iterator[io.StringIO]:
    """What the assembler says of each kernel that is compiled in the body."""
    from triton import knobs

    log = io.StringIO()
    with knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        yield log


if __name__ == "__main__":
    _fork_for_each_line()
