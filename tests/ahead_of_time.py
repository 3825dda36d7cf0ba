"""Kernels compiled ahead of time where no GPU is, in a process of its own, and its machine code.

Triton's interpreter, which the other tests run in, excludes its compiler.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path


def printed_by(program: str, *arguments: object, cache: Path | None = None) -> Any:
    """The JSON object in the last line of what a program prints that may compile.

    Args:
        cache: an empty folder, where it is to compile and to find nothing.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


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


def assembler_log(ptx: str, folder: Path) -> str:
    from triton import knobs

    (folder / "kernel.ptx").write_text(ptx)
    command = [knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", "-o", os.devnull]
    command += [str(folder / "kernel.ptx")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr
