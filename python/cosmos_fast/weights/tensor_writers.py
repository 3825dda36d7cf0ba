"""Writing checkpoints tensor by tensor: safetensors, sharded safetensors, ``.pt``.

A tensor is asked for when its turn comes and forgotten once it is written. Files appear under their
name when they are complete, never before.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cosmos_fast.files import TEMPORARY_PREFIX, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Read = Callable[[str], torch.Tensor]
    """Makes the tensor of a name, on any device, in the dtype and shape that were announced."""

DTYPE_NAMES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
SHARD_BYTES: Final = 5_000_000_000
"""Largest shard, as diffusers' own writer has it."""


class Spec(NamedTuple):
    """Shape and dtype of a tensor that is going to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(
    path: Path, specs: Mapping[str, Spec], read: Read, *, durable: bool = True, threads: int = 1
) -> None:
    """Writes one safetensors file.

    Args:
        path: where; its folder exists.
        specs: every tensor: float32, bfloat16 or float16.
        read: makes them, one at a time in each thread.
        durable: wait until the bytes are on the disk.
        threads: that ask for tensors and write them at a time.

    Raises:
        OSError: disk full or folder not writable; nothing is left behind.
    """
    # Wide dtypes first keeps every tensor aligned to its own width.
    names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for name in names:
        spec = specs[name]
        starts[name], end = end, end + spec.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with appearing(path, durable=durable) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        begin, descriptor = file.tell(), file.fileno()
        os.ftruncate(descriptor, begin + end)

        def write(name: str) -> None:
            tensor = read(name)
            assert (tuple(tensor.shape), tensor.dtype) == specs[name], name
            host = tensor.detach().cpu().contiguous().reshape(-1)
            _write_at(descriptor, host.view(torch.uint8).numpy().data, begin + starts[name])

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(write, names):
                pass


def write_sharded(
    folder: Path,
    stem: str,
    specs: Mapping[str, Spec],
    read: Read,
    *,
    shard_bytes: int = SHARD_BYTES,
    durable: bool = True,
    threads: int = 1,
) -> Path:
    """Writes ``{stem}.safetensors``, or shards of at most ``shard_bytes`` and then their index.

    Shards appear one after another: only the index makes them a checkpoint.

    Returns:
        The file, or the index.
    """
    shards: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + spec.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += spec.nbytes
    if len(shards) == 1:
        whole = folder / f"{stem}.safetensors"
        write_safetensors(whole, specs, read, durable=durable, threads=threads)
        return whole
    weight_map: dict[str, str] = {}
    for number, part in enumerate(shards, 1):
        shard = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / shard, part, read, durable=durable, threads=threads)
        weight_map |= dict.fromkeys(part, shard)
    index = folder / f"{stem}.safetensors.index.json"
    total = sum(spec.nbytes for spec in specs.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_atomically(index, json.dumps(content, indent=2).encode())
    return index


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """``os.pwrite`` of all of it: one call writes at most 2 GiB."""
    while len(content):
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def write_pt(path: Path, specs: Mapping[str, Spec], read: Read, *, durable: bool = True) -> None:
    """Writes a flat dict of tensors as torch's ``.pt``, loadable with ``weights_only=True``.

    torch writes tensor after tensor but wants all of them at hand: let ``read`` give views of
    mapped files, which are paged in as they are written, where the whole does not fit memory.
    Arguments and errors as :func:`write_safetensors`.
    """
    tensors = {}
    for name, spec in specs.items():
        tensor = read(name).detach().cpu()
        assert (tuple(tensor.shape), tensor.dtype) == spec, name
        # torch saves whole storages: a view of a larger one would drag that into the file.
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
        tensors[name] = tensor if whole else tensor.contiguous().clone()
    with appearing(path, durable=durable) as temporary:
        try:
            torch.save(tensors, temporary)
        except RuntimeError as error:  # how torch's writer says that the disk is full
            raise OSError(f"{path}: cannot be written: {error}") from error


@contextlib.contextmanager
def appearing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends without an error."""
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
