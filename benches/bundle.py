"""Packs what the benches import, for a machine with a GPU and torch but without a network.

    python benches/bundle.py bundle
    # there:  mkdir site && for f in bundle/*.tar.xz; do tar xJf $f -C site; done
    #         export PYTHONPATH=python:kernels:.:site

Each archive is one group of wheels for that machine's Python, laid out as pip lays them out. The
package itself comes as the tree does, its core as ``python/cosmos_fast/_core.abi3.so``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

GROUPS: Final = {
    "needs": ("ffmpeg-python==0.2.0", "future==1.0.0"),
    "diffusers": ("diffusers==0.42.1",),
    "attention": ("fa3-fwd==0.0.3", "sageattention==1.0.6"),
    "loaders": ("fastsafetensors==0.5.0", "runai-model-streamer==0.17.1", "humanize==4.17.0"),
    # 29 MB; newer ones bring 68.
    "ffmpeg": ("imageio-ffmpeg==0.6.0",),
    # With what mujoco imports to render; typing_extensions comes with torch.
    "worlds": ("mujoco==3.17.0", "glfw==2.11.0", "PyOpenGL==3.1.10"),
}
"""What is packed together, and for which benches: worlds for ``tools.pusherworld.evaluate``."""

GLIBC: Final = (39, 35, 34, 31, 28, 27, 24, 17)
"""manylinux_2_N tags that pip may take; it matches N exactly."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the archives go")
    parser.add_argument("--group", action="append", choices=GROUPS, help="default: all of them")
    parser.add_argument("--python", default="3.12", help="that machine's Python (default: 3.12)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for group in arguments.group or GROUPS:
        archive = arguments.folder / f"{group}.tar.xz"
        unfinished = archive.with_name(f".{archive.name}")
        with tempfile.TemporaryDirectory() as site:
            if code := install(GROUPS[group], Path(site), arguments.python):
                print(f"bundle: pip found not all of {', '.join(GROUPS[group])}", file=sys.stderr)
                return code
            with tarfile.open(unfinished, "w:xz") as tar:
                tar.add(site, arcname=".")
            unfinished.replace(archive)
        print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB", flush=True)
    return 0


def install(names: tuple[str, ...], site: Path, python: str) -> int:
    """pip's exit code."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
    command += ["--disable-pip-version-check", "--target", str(site)]
    for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
        command += ["--abi", abi]
    for minor in GLIBC:
        command += ["--platform", f"manylinux_2_{minor}_x86_64"]
    for old in ("manylinux2014_x86_64", "manylinux1_x86_64", "any"):
        command += ["--platform", old]
    return subprocess.run([*command, *names], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
