"""Why kernels of Triton's cannot run on a machine, with the cure."""

from __future__ import annotations

import re
import shutil
import sysconfig
from pathlib import Path
from typing import Final

import torch

_GLUON_SINCE: Final = (3, 6)
"""The first Triton in whose Gluon our kernels for Hopper are written."""


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run here, with the cure; None when they can."""
    if device.type != "cuda":
        return f"{device = } is not a CUDA device"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"{dtype = }: bfloat16, float16 or float32 is needed"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"compute capability {capability} of {device}: 8.0 or newer is needed"
    return launcher_obstacle()


def launcher_obstacle() -> str | None:
    """Triton compiles a small launcher in C at the first launch: compiler and Python.h."""
    try:
        from triton import knobs
    except ImportError as error:
        return f"triton cannot be imported ({error}); pip install triton"
    if knobs.build.impl is not None:
        return None
    compilers = (knobs.build.cc,) if knobs.build.cc else ("gcc", "clang")
    if not any(shutil.which(compiler) for compiler in compilers):
        return (
            f"Triton's launcher needs a C compiler and {' or '.join(compilers)} is not found; "
            f"install gcc or clang, or set CC"
        )
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    include = Path(sysconfig.get_paths(scheme=scheme)["include"])
    if not (include / "Python.h").is_file():
        return (
            f"Triton's launcher needs Python.h, which {include} lacks; "
            f"install the development package of this Python (python3-dev)"
        )
    return None


def gluon_obstacle() -> str | None:
    """Why this Triton cannot compile our kernels for Hopper; None if it can."""
    import triton

    return gluon_obstacle_of(triton.__version__)


def gluon_obstacle_of(triton: str) -> str | None:
    """The same of a version of Triton."""
    version = re.match(r"(\d+)\.(\d+)", triton)
    if version is None or tuple(map(int, version.groups())) >= _GLUON_SINCE:
        return None
    return (
        f"triton {triton}: kernels for Hopper need 3.6 or newer, which torch 2.11 brings; "
        f"pip install --upgrade torch"
    )
