"""The checks of ``doctor`` that look at this machine: software, devices, memory, disk."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from cosmos_fast.cli.checks import Check

GIB: Final = 2**30
OPTIONAL_ATTENTION: Final = ("flash_attn", "flash_attn_interface", "sageattention", "xformers")
"""Import names of attention packages that people install beside torch's own backends."""
_MODEL: Final = "nvidia/Cosmos-Predict2-2B-Video2World"
_DOWNLOADED: Final[Mapping[str, tuple[int, tuple[str, ...]]]] = MappingProxyType(
    {
        "model and VAE": (4 * GIB, (_MODEL,)),
        "T5": (9 * GIB, (f"{_MODEL}/text_encoder", "google-t5/t5-11b")),
        "guardrail": (19 * GIB, ("nvidia/Cosmos-Guardrail1",)),
        "prompt upsampler": (
            16 * GIB,
            ("nvidia/Cosmos-Reason1-7B", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ),
    }
)
"""What a plain download of the 2B brings: its size, and where it may lie below the folder."""


def machine_checks() -> Iterator[Check]:
    """Every check of this machine, in the order of a run."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield from packages()
    yield core()
    torch = _torch()
    if isinstance(torch, Check):
        yield torch
    else:
        yield Check("torch", "ok", f"{torch.__version__}, built for {_built_for(torch)}")
        yield driver()
        yield from gpus(torch)
        yield attention(torch)
    yield triton()
    yield compiler()
    yield ffmpeg()
    yield worlds()
    yield ram()
    yield pinned_memory()
    yield from disks()


def packages() -> Iterator[Check]:
    """Whether what is installed lies within the ranges that cosmos-fast was made for."""
    from packaging.requirements import Requirement

    try:
        wanted = metadata.requires("cosmos-fast") or []
    except metadata.PackageNotFoundError:
        yield Check(
            "packages",
            "warn",
            "cosmos-fast is not installed as a package: versions are not checked",
            "pip install . in a clone, or install the wheel",
        )
        return
    amiss = []
    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            amiss.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            amiss.append(f"{requirement.name} {found} is not {requirement.specifier}")
    own = f"cosmos-fast {metadata.version('cosmos-fast')}"
    if amiss:
        cure = "install cosmos-fast again, from the clone (pip install .) or the wheel: pip then "
        yield Check("packages", "warn", f"{own}: {'; '.join(amiss)}", f"{cure}fetches what fits")
    else:
        yield Check("packages", "ok", f"{own} and what it needs")


def core() -> Check:
    """The compiled core."""
    try:
        module = import_module("cosmos_fast._core")
    except ImportError as error:
        return Check(
            "core",
            "fail",
            f"the compiled core cannot be imported: {error}",
            "install a wheel made for this machine, or build it in a clone (make setup)",
        )
    return Check("core", "ok", f"{getattr(module, '__version__', 'without a version')}")


def _torch() -> Any:
    try:
        return import_module("torch")
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"cannot be imported: {error}", "pip install torch")


def _built_for(torch: Any) -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "the CPU alone"


def driver() -> Check:
    """NVIDIA's kernel driver."""
    version = Path("/proc/driver/nvidia/version")
    if not version.is_file():
        return Check("driver", "warn", "no NVIDIA driver", "needed where there is an NVIDIA GPU")
    return Check("driver", "ok", version.read_text().splitlines()[0].removeprefix("NVRM version: "))


def gpus(torch: Any) -> Iterator[Check]:
    """Every CUDA device that torch sees."""
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            cure = "install torch built for CUDA, if this machine has an NVIDIA GPU"
        else:
            cure = "check the driver and CUDA_VISIBLE_DEVICES, if this machine has an NVIDIA GPU"
        yield Check("gpu", "warn", "torch sees none: only small models run, on the CPU", cure)
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{found.major}.{found.minor}"
        name = f"gpu {index}"
        line = f"{found.name}, capability {capability}, {_gib(free)} of {_gib(total)} GiB free"
        if (found.major, found.minor) < (8, 0):
            yield Check(name, "warn", line, "bf16 kernels need capability 8.0 or above")
        else:
            yield Check(name, "ok", line)


def attention(torch: Any) -> Check:
    """torch's attention backends, and the packages that people install beside them."""
    cuda = torch.backends.cuda
    own = [
        label
        for label, enabled in (
            ("flash", cuda.is_flash_attention_available()),
            ("cuDNN", torch.backends.cudnn.is_available()),
            ("math", True),
        )
        if enabled
    ]
    found = [f"{name} {_version_of(name)}" for name in OPTIONAL_ATTENTION if find_spec(name)]
    extra = f"; installed beside: {', '.join(found)}" if found else "; none installed beside"
    return Check("attention", "ok", f"torch: {', '.join(own)}{extra}")


def triton() -> Check:
    """Triton, which the kernels are written in."""
    try:
        module = import_module("triton")
    except (ImportError, OSError) as error:
        return Check(
            "triton",
            "warn",
            f"cannot be imported ({error}): kernels fall back to torch, which is slower",
            "pip install triton, in the version that torch names",
        )
    return Check("triton", "ok", f"{module.__version__}")


def compiler() -> Check:
    """A C compiler with Python's headers: Triton builds its launcher at the first GPU launch."""
    cure = (
        "install gcc and the headers of this Python (build-essential and python3-dev, or conda's "
        "gcc); without them kernels fall back to torch"
    )
    candidates = (_triton_compiler(), "cc", "gcc", "clang")
    path = next((found for name in candidates if name and (found := shutil.which(name))), None)
    if path is None:
        return Check("C compiler", "warn", "none found: Triton cannot launch kernels", cure)
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        finding = f"{path}, but no {header}: Triton cannot launch kernels"
        return Check("C compiler", "warn", finding, cure)
    return Check("C compiler", "ok", f"{path}, with {header}")


def _triton_compiler() -> str | None:
    """The compiler that Triton was told to use (CC), if it was."""
    try:
        knobs: Any = import_module("triton.knobs")
    except (ImportError, OSError):
        return None
    return getattr(getattr(knobs, "build", None), "cc", None)


def ffmpeg() -> Check:
    """The ffmpeg binary, and whether it can write H.264."""
    from cosmos_fast.errors import CosmosFastError
    from cosmos_fast.types import Size

    cure = "pip install imageio-ffmpeg, or set COSMOS_FAST_FFMPEG to an ffmpeg with libx264"
    try:
        from cosmos_fast.media import VideoWriter, find_ffmpeg

        found = find_ffmpeg()
        line = f"{found.version}, {found.path} (from {found.source})"
        with tempfile.TemporaryDirectory() as folder:
            size = Size(64, 64)
            with VideoWriter(Path(folder, "probe.mp4"), size=size, fps=16, metadata={}) as writer:
                writer.write(np.zeros((5, *size, 3), dtype=np.uint8))
    except (CosmosFastError, ImportError) as error:
        return Check("ffmpeg", "fail", str(error), cure)
    return Check("ffmpeg", "ok", f"{line}, writes mp4")


def worlds() -> Check:
    """The small trained worlds that ship with the package."""
    from cosmos_fast.weights import packaged_worlds

    found = packaged_worlds()
    if not found:
        finding = "none in this package: there is no demo"
        return Check("toy worlds", "warn", finding, "install a release, which carries ballworld")
    return Check("toy worlds", "ok", ", ".join(found))


def ram() -> Check:
    """Memory of the host, or the share of it that this container may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _container_limit()
    share = min(total, limit) if limit else total
    bound = ", limited by the container" if share < total else ""
    line = f"{_gib(share)} GiB, {_gib(min(_available(), share))} GiB available{bound}"
    if share < 16 * GIB:
        cure = "the text encoder alone takes 10 GiB: 16 GiB or more are needed for released models"
        return Check("RAM", "warn", line, cure)
    return Check("RAM", "ok", line)


def _available() -> int:
    listing = Path("/proc/meminfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_limit() -> int | None:
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(place)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            return int(text)
    return None


def pinned_memory() -> Check:
    """How much memory this process may lock (``ulimit -l``)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Check("pinned memory", "ok", "no limit (ulimit -l)")
    line = f"{soft / 2**20:.0f} MiB (ulimit -l)"
    if soft < GIB:
        cure = "raise it with ulimit -l unlimited, or docker run --ulimit memlock=-1"
        return Check("pinned memory", "warn", f"{line}: weights may move slowly", cure)
    return Check("pinned memory", "ok", line)


def disks() -> Iterator[Check]:
    """Room where weights, temporary files and videos go."""
    from huggingface_hub import constants

    yield _checkpoints_disk(Path("checkpoints"))
    for name, place in (
        ("disk: hub cache", Path(constants.HF_HUB_CACHE)),
        ("disk: temporary", Path(tempfile.gettempdir())),
        ("disk: here", Path.cwd()),
    ):
        yield _disk(name, place, GIB, "1 GiB is wanted; delete what is not needed")


def _checkpoints_disk(folder: Path) -> Check:
    """The folder that ``download`` fills unless told otherwise, and what of it is still to come."""
    absent = {
        what: size
        for what, (size, places) in _DOWNLOADED.items()
        if not any((folder / place).exists() for place in places)
    }
    if not absent:
        return _disk("disk: checkpoints", folder, GIB, "1 GiB is wanted; delete what is not needed")
    wanted = sum(absent.values())
    listed = ", ".join(f"{what} {_gib(size)}" for what, size in absent.items())
    cure = (
        f"{_gib(wanted)} GiB are wanted, for what a download of the 2B still has to bring "
        f"({listed}); make room, leave parts out, or name another folder with --checkpoint_dir"
    )
    return _disk("disk: checkpoints", folder, wanted, cure)


def _disk(name: str, place: Path, wanted: int, cure: str) -> Check:
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Check(name, "warn", f"{place} may not be written", "choose another folder")
    line = f"{_gib(free)} GiB free at {place}"
    return Check(name, "warn", line, cure) if free < wanted else Check(name, "ok", line)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def _version_of(name: str) -> str:
    packages = metadata.packages_distributions().get(name, [])
    return metadata.version(packages[0]) if packages else "of unknown version"
