"""Checkpoint files that nobody should be able to harm a reader with.

Each builder writes one file into an empty folder and returns it. Those that try to run code touch
``canary`` beside the file.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

Builder = Callable[[Path], Path]

CANARY = "canary"


class _Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple:
        return self._call


def _touch(folder: Path) -> tuple:
    return os.system, f"touch {folder / CANARY}"


def _saved(folder: Path, content: object, **options: object) -> Path:
    path = folder / "model.pt"
    torch.save(content, path, **options)  # type: ignore[arg-type]
    return path


def _plain_pickle(folder: Path, content: object, protocol: int) -> Path:
    path = folder / "model.pt"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def _archive(folder: Path, description: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", description)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return path


def _named(weight: object) -> dict[str, object]:
    return {"net.x_embedder.proj.1.weight": torch.zeros(4, 4), "net.extra": weight}


def _safetensors(folder: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path = folder / "model.safetensors"
    stated = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", stated) + header + data)
    return path


def _entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _header(**entries: dict[str, object]) -> bytes:
    return json.dumps(entries).encode()


def _truncated(folder: Path) -> Path:
    path = _saved(folder, {"net.w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-700])
    return path


def _fifo(folder: Path) -> Path:
    path = folder / "model.safetensors"
    os.mkfifo(path)
    return path


def _folder(folder: Path) -> Path:
    path = folder / "model.pt"
    path.mkdir()
    return path


def _device(folder: Path) -> Path:
    path = folder / "model.pt"
    path.symlink_to("/dev/zero")
    return path


def _looped(folder: Path) -> Path:
    path = folder / "model.pt"
    path.symlink_to(path)
    return path


def _bytes(name: str, content: bytes) -> Builder:
    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return build


def _index(**content: object) -> Builder:
    def build(folder: Path) -> Path:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(content))
        return path

    return build


PICKLES: dict[str, Builder] = {
    "system in an archive": lambda f: _saved(f, _Calls(*_touch(f))),
    "system beside a tensor": lambda f: _saved(f, _named(_Calls(*_touch(f)))),
    "system as a key": lambda f: _saved(f, {_Calls(*_touch(f)): torch.zeros(1)}),
    "system in an ordered dict": lambda f: _saved(f, OrderedDict(a=_Calls(*_touch(f)))),
    "system before torch 1.6": lambda f: _saved(
        f, _named(_Calls(*_touch(f))), _use_new_zipfile_serialization=False
    ),
    "system in a bare pickle": lambda f: _plain_pickle(f, _Calls(*_touch(f)), 2),
    "system with protocol 4": lambda f: _plain_pickle(f, _Calls(*_touch(f)), 4),
    "system with protocol 4 in an archive": lambda f: _archive(
        f, pickle.dumps(_Calls(*_touch(f)), protocol=4)
    ),
    "eval": lambda f: _saved(f, _named(_Calls(eval, f"open({str(f / CANARY)!r}, 'w')"))),
    "exec": lambda f: _saved(f, _named(_Calls(exec, f"open({str(f / CANARY)!r}, 'w')"))),
    "import": lambda f: _saved(f, _named(_Calls(__import__, "antigravity"))),
    "open": lambda f: _saved(f, _named(_Calls(open, str(f / CANARY), "w"))),
    "a nested load": lambda f: _saved(f, _named(_Calls(torch.load, str(f / "other.pt")))),
    "a setter": lambda f: _saved(f, _named(_Calls(setattr, torch.Tensor, "broken", True))),
    "getattr": lambda f: _saved(f, _named(_Calls(getattr, Path, "touch"))),
    "path of the host": lambda f: _saved(f, _named(_Calls(Path.touch, f / CANARY))),
}
"""Files that want code to run."""

DAMAGED: dict[str, Builder] = {
    "empty": _bytes("model.pt", b""),
    "empty safetensors": _bytes("model.safetensors", b""),
    "text": _bytes("model.pt", b"<html>404 not found</html>"),
    "a picture": _bytes("model.pt", b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "zeros": _bytes("model.pt", bytes(4096)),
    "only the magic of an archive": _bytes("model.pt", b"PK\x03\x04" + bytes(40)),
    "git-lfs pointer": _bytes(
        "model.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3912\n"
    ),
    "unknown suffix": _bytes("model.ckpt", b"abc"),
    "cut archive": _truncated,
    "pipe": _fifo,
    "folder": _folder,
    "device": _device,
    "link to itself": _looped,
    "missing": lambda f: f / "model.pt",
    "name too long": lambda f: f / ("x" * 300 + ".pt"),
    "list": lambda f: _saved(f, [torch.zeros(2)]),
    "a tensor": lambda f: _saved(f, torch.zeros(2)),
    "nested dict": lambda f: _saved(f, {"model": {"net.w": torch.zeros(2)}}),
    "numbers for names": lambda f: _saved(f, {1: torch.zeros(2)}),
    "sparse tensor": lambda f: _saved(f, {"net.w": torch.eye(3).to_sparse()}),
    "unfolding description": lambda f: _archive(f, bytes(1 << 22), zipfile.ZIP_DEFLATED),
    "a call without arguments": lambda f: _archive(
        f, b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00)Rq\x01."
    ),
    "endless memo": lambda f: _archive(f, b"\x80\x02" + b"}" * 100_000),
    "header of no bytes": lambda f: _safetensors(f, b""),
    "header longer than the file": lambda f: _safetensors(f, b"{}", length=1 << 20),
    "header of 2**63 bytes": lambda f: _safetensors(f, b"{}", length=1 << 63),
    "header of 2**64 - 1 bytes": lambda f: _safetensors(f, b"{}", length=(1 << 64) - 1),
    "header beyond the limit": lambda f: _safetensors(f, b"{}", length=100_000_001),
    "header is no JSON": lambda f: _safetensors(f, b"{{{{{{{{"),
    "header is a list": lambda f: _safetensors(f, b"[1, 2]"),
    "header is no UTF-8": lambda f: _safetensors(f, b'{"\xff\xfe": 1}'),
    "data cut off": lambda f: _safetensors(f, _header(a=_entry(0, 400, [100])), bytes(399)),
    "data left over": lambda f: _safetensors(f, _header(a=_entry(0, 4, [1])), bytes(12)),
    "overlap": lambda f: _safetensors(
        f, _header(a=_entry(0, 8, [2]), b=_entry(4, 12, [2])), bytes(12)
    ),
    "hole": lambda f: _safetensors(
        f, _header(a=_entry(0, 4, [1]), b=_entry(8, 12, [1])), bytes(12)
    ),
    "shape larger than its bytes": lambda f: _safetensors(
        f, _header(a=_entry(0, 4, [1 << 30])), bytes(4)
    ),
    "shape that overflows": lambda f: _safetensors(
        f, _header(a=_entry(0, 4, [1 << 62, 1 << 62])), bytes(4)
    ),
    "negative size": lambda f: _safetensors(f, _header(a=_entry(0, 4, [-1])), bytes(4)),
    "offsets backwards": lambda f: _safetensors(f, _header(a=_entry(4, 0, [1])), bytes(4)),
    "unknown dtype": lambda f: _safetensors(f, _header(a=_entry(0, 4, [1], "F99")), bytes(4)),
    "one name, two places": lambda f: _safetensors(
        f,
        b'{"a":%s,"a":%s}' % tuple(json.dumps(_entry(i, i + 4, [1])).encode() for i in (0, 4)),
        bytes(8),
    ),
    "deep JSON": lambda f: _safetensors(f, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "index without a map": _index(metadata={}),
    "index with an empty map": _index(weight_map={}),
    "index that is a list": _bytes("model.safetensors.index.json", b"[]"),
    "index that is no JSON": _bytes("model.safetensors.index.json", b"{"),
    "index with a deep value": _bytes(
        "model.safetensors.index.json", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    ),
    "index with a name twice": _bytes(
        "model.safetensors.index.json",
        b'{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}',
    ),
    "shard above": _index(weight_map={"a": "../other.safetensors"}),
    "shard below": _index(weight_map={"a": "sub/other.safetensors"}),
    "shard at the root": _index(weight_map={"a": "/etc/passwd.safetensors"}),
    "shard of another system": _index(weight_map={"a": "..\\other.safetensors"}),
    "shard with a null": _index(weight_map={"a": "a\0.safetensors"}),
    "shard that is a number": _index(weight_map={"a": 3}),
    "shard of another kind": _index(weight_map={"a": "other.pt"}),
    "shard that is missing": _index(weight_map={"a": "other.safetensors"}),
    "shard that is the folder": _index(weight_map={"a": ".."}),
}
"""Files that are no checkpoint, or not whole."""
