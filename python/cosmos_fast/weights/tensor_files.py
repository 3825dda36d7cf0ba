"""Reading tensors by name from untrusted files: safetensors, sharded safetensors, ``.pt``/``.pth``.

Shapes and dtypes are known before any weight is read. Tensors come one at a time as views of the
mapped file, so that host memory never holds a second copy of the model. Pickled code never runs:
``.pt`` files pass through torch's weights-only reader, at one place, with an explicit allow list.
"""

from __future__ import annotations

import contextlib
import json
import stat
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open

from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights.extents import Extent, archive_extents, safetensors_extents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PICKLE_SUFFIXES: Final = (".pt", ".pth", ".bin")
INDEX_SUFFIX: Final = ".safetensors.index.json"
JSON_LIMIT: Final = 64 << 20
"""Bytes of JSON beyond which a file is not what it says it is."""

_DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LFS_POINTER: Final = b"version https://git-lfs"


@dataclass(frozen=True)
class Entry:
    """What is known of a stored tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None: a dtype that torch or this module does not know."""
    file: Path
    """The file it lies in: a shard, where there are several."""


@dataclass
class TensorFile:
    """An open checkpoint file (or a shard index with its shards); a context manager."""

    path: Path
    entries: Mapping[str, Entry]
    _read: Callable[[str], torch.Tensor]
    others: Mapping[str, str] = field(default_factory=dict)
    """Entries that are no tensors: their name and type."""
    extents: Mapping[str, Extent] = field(default_factory=dict)
    """Where the bytes of each tensor lie; without those that are not in one piece."""
    _resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def read(self, name: str) -> torch.Tensor:
        """The tensor ``name`` on the host. It may be a view of the file: copy it, never change it.

        Raises:
            CheckpointError: the file ends before the tensor does.
        """
        try:
            return self._read(name)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise CheckpointError(
                f"{self.entries[name].file}: cannot read {name}: {error}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()


def open_tensors(path: Path, *, inside: str | None = None) -> TensorFile:
    """Opens a ``.safetensors``, ``.safetensors.index.json``, ``.pt``, ``.pth`` or ``.bin`` file.

    Args:
        path: the file.
        inside: for ``.pt`` and its like, the key of the dict of tensors in the dict they hold.

    Raises:
        CheckpointError: not a readable regular file of these kinds, damaged, or it asks for code.
    """
    check_regular_file(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in PICKLE_SUFFIXES:
        return _open_pickle(path, inside)
    raise _no_checkpoint(path)


def check_name(path: Path) -> None:
    """
    Raises:
        CheckpointError: no file of this name is read as a checkpoint.
    """
    if not path.name.endswith((INDEX_SUFFIX, ".safetensors", *PICKLE_SUFFIXES)):
        raise _no_checkpoint(path)


def _no_checkpoint(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: no checkpoint by its name; files that end in .safetensors, {INDEX_SUFFIX}, "
        f"{', '.join(PICKLE_SUFFIXES)} are read, and folders in NVIDIA's or diffusers' layout"
    )


def check_regular_file(path: Path) -> None:
    """
    Raises:
        CheckpointError: ``path`` is missing, a folder, a pipe, a device, empty, or a pointer that
            stands for a large file that was not fetched.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file; a checkpoint file is needed")
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be opened: {error}") from error
    if not start:
        raise CheckpointError(f"{path}: the file is empty; fetch it again")
    if start == _LFS_POINTER:
        raise CheckpointError(
            f"{path}: a git-lfs pointer, not the file it stands for; run `git lfs pull` there"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: missing, too large, not JSON, not an object, or a key is there twice.
    """
    check_regular_file(path)
    if path.stat().st_size > JSON_LIMIT:
        raise CheckpointError(
            f"{path}: {path.stat().st_size} bytes are too many for this JSON file"
        )
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}; an object is needed")
    return value


def shard_names(index: Path) -> dict[str, str]:
    """Tensor name to shard file name, as a shard index states them, every name a plain file name.

    Raises:
        CheckpointError: the index is malformed, or a shard name leads out of its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map of tensor names to shards")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{index}: {tensor} lies in {shard!r}; a file name is needed")
        plain = Path(shard).name == shard and "\\" not in shard and "\0" not in shard
        if not plain or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: {tensor} lies in {shard!r}; the name of a .safetensors file in the same "
                f"folder is needed"
            )
    return weight_map


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return value


def _open_safetensors(path: Path) -> TensorFile:
    resources = contextlib.ExitStack()
    try:
        file = resources.enter_context(safe_open(path, framework="pt", device="cpu"))
        entries = {}
        for name in file.keys():  # noqa: SIM118 - not a mapping: it has keys() and no iterator
            view = file.get_slice(name)
            entries[name] = Entry(tuple(view.get_shape()), _DTYPES.get(view.get_dtype()), path)
        extents = safetensors_extents(path)
    except CheckpointError:
        resources.close()
        raise
    except (SafetensorError, OSError, ValueError) as error:
        resources.close()
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    return TensorFile(path, entries, file.get_tensor, extents=extents, _resources=resources)


def _open_index(path: Path) -> TensorFile:
    weight_map = shard_names(path)
    resources = contextlib.ExitStack()
    entries: dict[str, Entry] = {}
    extents: dict[str, Extent] = {}
    shards: dict[str, TensorFile] = {}
    with contextlib.ExitStack() as on_error:
        on_error.callback(resources.close)
        for shard in sorted(set(weight_map.values())):
            shards[shard] = resources.enter_context(open_tensors(path.parent / shard))
            for name, entry in shards[shard].entries.items():
                if name in entries:
                    raise CheckpointError(
                        f"{path}: {name} is in {entries[name].file.name} and in {shard}; "
                        f"one of them must go"
                    )
                if weight_map.get(name) != shard:
                    raise CheckpointError(
                        f"{path}: {shard} holds {name}, which the index places in "
                        f"{weight_map.get(name)!r}; index and shards are not of one checkpoint"
                    )
                entries[name] = entry
            extents |= shards[shard].extents
        if absent := sorted(weight_map.keys() - entries.keys()):
            raise CheckpointError(
                f"{path}: {absent[0]} should be in {weight_map[absent[0]]} and is not "
                f"({len(absent)} such tensors); fetch that shard again"
            )
        on_error.pop_all()
    return TensorFile(
        path,
        entries,
        lambda name: shards[weight_map[name]].read(name),
        extents=extents,
        _resources=resources,
    )


class _Discarded:
    """Takes the place of pickled byte buffers (transformer-engine's ``_extra_state``), unread."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# torch keeps its allow list in one place for the whole process: one reader of ours at a time.
_ALLOW_LIST_LOCK: Final = threading.Lock()


def _open_pickle(path: Path, inside: str | None) -> TensorFile:
    content = _load_weights_only(path)
    if inside is not None:
        content = content.get(inside) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}; a flat dict of names and tensors is needed"
        )
    tensors: dict[str, torch.Tensor] = {}
    others: dict[str, str] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: the key {name!r} is no name; a flat dict is needed")
        if isinstance(value, dict) and value and "." not in name:
            raise CheckpointError(
                f"{path}: {name!r} holds another dict ({len(value)} entries), as training "
                f"checkpoints do; save that one by itself as a flat dict of names and tensors"
            )
        if not isinstance(value, torch.Tensor):
            others[name] = type(value).__name__
        elif value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {name} is a {value.layout} tensor on {value.device}; dense weights "
                f"are needed"
            )
        else:
            tensors[name] = value.detach()
    entries = {n: Entry(tuple(t.shape), t.dtype, path) for n, t in tensors.items()}
    extents = archive_extents(path, tensors) if zipfile.is_zipfile(path) else {}
    return TensorFile(path, entries, tensors.__getitem__, others, extents)


def _check_archive(path: Path) -> bool:
    """Whether ``path`` is a zip archive; refuses one that would unfold to more than it is."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(
                        f"{path}: {entry.filename} in it is compressed; torch stores "
                        f"tensors plainly"
                    )
                if entry.filename.endswith(".pkl") and entry.file_size > JSON_LIMIT:
                    raise CheckpointError(
                        f"{path}: its description {entry.filename} has {entry.file_size} bytes; "
                        f"that is no dict of tensors"
                    )
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: a damaged archive: {error}; fetch it again") from error
    return True


def _load_weights_only(path: Path) -> Any:
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_Discarded, "_io.BytesIO"),
        (_Discarded, "io.BytesIO"),
    ]
    archive = _check_archive(path)
    try:
        with _ALLOW_LIST_LOCK, torch.serialization.safe_globals(allowed):
            # Files from before torch 1.6 are no zip archives and cannot be mapped.
            return torch.load(  # noqa: TID251 - this is that one place
                path, map_location="cpu", weights_only=True, mmap=archive
            )
    except Exception as error:
        # A hostile or damaged pickle can make the reader fail in any way; all are one refusal.
        reason = str(error).strip().splitlines()
        detail = next(
            (line for line in reason if "nsupported" in line), reason[0] if reason else ""
        )
        raise CheckpointError(
            f"{path}: torch's weights-only reader refuses it ({type(error).__name__}: {detail}). "
            f"The file is damaged or asks for code to run; only dicts of tensors are read. "
            f"Prefer a .safetensors file"
        ) from error


def files_of(path: Path) -> Iterator[Path]:
    """``path`` itself and, where it is a shard index, every shard it names."""
    yield path
    if path.name.endswith(INDEX_SUFFIX):
        for shard in sorted(set(shard_names(path).values())):
            yield path.parent / shard
