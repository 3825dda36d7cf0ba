"""Looks inside a built wheel and says what is missing from it, or what has no place in it."""

from __future__ import annotations

import argparse
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
REQUIRED: Final = (
    "cosmos_fast/py.typed",
    "cosmos_fast/_core.abi3.so",
    "cosmos_fast/_core.pyi",
)
LICENCES: Final = ("LICENSE", "NOTICE")
CODE_LIMIT: Final = 5_000_000
"""Bytes of the wheel, compressed, without cosmos_fast/assets."""


def sources() -> set[str]:
    """Every file of the two packages that has to travel, as it is named inside the wheel."""
    folders = (ROOT / "python" / "cosmos_fast", ROOT / "kernels" / "cosmos_fast_kernels")
    return {
        file.relative_to(folder.parent).as_posix()
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".so"
    }


def faults(wheel: Path, *, published: bool = False) -> list[str]:
    """What is wrong with ``wheel``; empty when nothing is.

    Args:
        published: it leaves this machine, so its binary may not name places on it.
    """
    found = []
    if "-cp311-abi3-" not in wheel.name:
        found.append(f"{wheel.name} is not tagged cp311-abi3: one wheel has to serve 3.11 and up")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        binary = archive.read("cosmos_fast/_core.abi3.so") if published else b""
        code = sum(
            item.compress_size
            for item in archive.infolist()
            if not item.filename.startswith("cosmos_fast/assets/")
        )
    found += [f"missing: {name}" for name in sorted((sources() | set(REQUIRED)) - names)]
    found += [
        f"missing licence: {name}"
        for name in LICENCES
        if f"{info}/licenses/{name}" not in names
        or name not in metadata.get_all("License-File", ())
    ]
    found += [
        f"has no place in a wheel: {name}"
        for name in sorted(names)
        if name.split("/")[0] not in {"cosmos_fast", "cosmos_fast_kernels", info}
        or "__pycache__" in name
    ]
    if metadata["License-Expression"] != "Apache-2.0":
        found.append(f"License-Expression is {metadata['License-Expression']!r}")
    if "cosmos-fast=cosmos_fast.cli:main" not in entry_points.replace(" ", ""):
        found.append("the cosmos-fast command is not declared")
    places = {str(place).encode() for place in (Path.home(), ROOT)}
    found += [f"the binary names {place.decode()}" for place in places if place + b"/" in binary]
    if code > CODE_LIMIT:
        found.append(f"{code} bytes without the assets: at most {CODE_LIMIT} was promised")
    return found


def sizes(wheel: Path) -> str:
    """A line on what the wheel weighs and where."""
    with zipfile.ZipFile(wheel) as archive:
        items = archive.infolist()
        assets = sum(i.compress_size for i in items if i.filename.startswith("cosmos_fast/assets/"))
        (core,) = (i.compress_size for i in items if i.filename.endswith("_core.abi3.so"))
    total = wheel.stat().st_size
    return (
        f"{wheel.name}: {total / 1e6:.2f} MB, of it {core / 1e6:.2f} MB the Rust core "
        f"and {assets / 1e6:.2f} MB the small worlds"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--published", action="store_true", help="it leaves this machine")
    arguments = parser.parse_args()
    wheel: Path = arguments.wheel
    found = faults(wheel, published=arguments.published)
    print(sizes(wheel))
    for fault in found:
        print(f"check_wheel: {fault}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
