"""Where in its file each tensor's bytes lie, so that they can be read without torch in between."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_fast._core import archive_directory, safetensors_header

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


@dataclass(frozen=True)
class Extent:
    """The bytes of a tensor, row after row, from ``start`` up to ``end`` in ``file``."""

    file: Path
    start: int
    end: int


def safetensors_extents(path: Path) -> dict[str, Extent]:
    """Of every tensor of a safetensors file.

    Raises:
        CheckpointError: the header breaks a rule of the format.
    """
    tensors, _ = safetensors_header(path)
    return {name: Extent(path, start, end) for name, _, _, start, end in tensors}


def archive_extents(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Extent]:
    """Of those tensors of a mapped ``.pt`` archive that lie in one piece.

    torch maps the file once and makes each tensor a view of it; which byte of the file that is
    follows from where the file is mapped. What is found must be an entry of the archive's
    directory, which the Rust core reads for itself; anything else is left out.

    Args:
        path: the archive.
        tensors: as torch's weights-only reader gives them, with the file mapped.

    Raises:
        CheckpointError: the archive's directory is damaged.
    """
    entries = {start: end for _, start, end in archive_directory(path)}
    mappings = _mappings(path)
    found = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        start = _file_offset(mappings, storage.data_ptr())
        if start is None or not tensor.is_contiguous():
            continue
        first = start + int(tensor.storage_offset()) * tensor.itemsize
        end = first + int(tensor.nbytes)
        if entries.get(start) == start + storage.nbytes() and end <= start + storage.nbytes():
            found[name] = Extent(path, first, end)
    return found


def _mappings(path: Path) -> list[tuple[int, int, int]]:
    """(first address, address behind the last, offset in the file) of each mapping of ``path``."""
    status, name = path.stat(), str(path.resolve())
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    mappings = []
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    for line in lines:
        addresses, _, offset, where, inode, *rest = line.split(maxsplit=5)
        # Layered file systems name another device here than stat does.
        if rest == [name] or (where == device and int(inode) == status.st_ino):
            start, _, end = addresses.partition("-")
            mappings.append((int(start, 16), int(end, 16), int(offset, 16)))
    return mappings


def _file_offset(mappings: list[tuple[int, int, int]], address: int) -> int | None:
    for start, end, offset in mappings:
        if start <= address < end:
            return address - start + offset
    return None
