"""Writes hostile safetensors files and ``.pt`` archives, each wrong in one way.

``python tests/attacks/safetensors/generate.py FOLDER`` writes them all. Large ones are sparse: they
claim much and take nothing. Every file must be refused quickly and in little memory; the reason why
it must is in its description.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

LIMIT: Final = 100_000_000
Writer = Callable[[Path], None]
TENSOR: Final = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
GOOD: Final = json.dumps(TENSOR)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def plain(content: bytes) -> Writer:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def sparse(start: bytes, size: int) -> Writer:
    def write(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return write


def tensor(**changes: Any) -> dict[str, Any]:
    return {"a": TENSOR | changes}


def second(**changes: Any) -> dict[str, Any]:
    """A good tensor of 16 bytes, and one behind it that is changed."""
    return {"a": TENSOR, "b": TENSOR | {"data_offsets": [16, 32]} | changes}


def text(raw: str, data: bytes = bytes(16)) -> Writer:
    return plain(safetensors(raw.encode(), data))


def many_tensors(path: Path) -> None:
    entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    path.write_bytes(
        safetensors(("{" + ",".join(entry % n for n in range(300_000)) + "}").encode())
    )


SAFETENSORS: Final[dict[str, Writer]] = {
    # Length of the header
    "empty": plain(b""),
    "seven bytes": plain(bytes(7)),
    "length 0": plain(bytes(8)),
    "length 0, then data": plain(bytes(64)),
    "length 2^63": plain(struct.pack("<Q", 1 << 63) + b"{}"),
    "length 2^64 - 1": plain(struct.pack("<Q", (1 << 64) - 1) + b"{}"),
    "length beyond the file": plain(safetensors({}, length=100)),
    "length one short": plain(
        safetensors(tensor(), bytes(16), length=len(json.dumps(tensor())) - 1)
    ),
    "length one beyond the limit": sparse(struct.pack("<Q", LIMIT + 1) + b"{}", LIMIT + 9 + 16),
    "limit of zeros": sparse(struct.pack("<Q", LIMIT), LIMIT + 8),
    "limit of spaces behind a brace": sparse(struct.pack("<Q", LIMIT) + b"{", LIMIT + 8),
    # JSON
    "no JSON": text("hello"),
    "a list": text("[]"),
    "a number": text("1"),
    "space before the brace": text(" " + json.dumps(tensor())),
    "two objects": text("{}{}", b""),
    "not closed": text('{"a":'),
    "bad UTF-8": plain(safetensors(b'{"\xff\xfe":{}}')),
    "lone surrogate": text(r'{"\ud800":' + json.dumps(TENSOR) + "}"),
    "deep nesting": text('{"a":' + "[" * 50_000 + "]" * 50_000 + "}"),
    "NaN": text('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
    "a name twice": text('{"a":' + GOOD + ',"a":' + GOOD + "}"),
    "metadata twice": text('{"__metadata__":{},"__metadata__":{},"a":' + GOOD + "}"),
    "a metadata key twice": text('{"__metadata__":{"k":"1","k":"2"},"a":' + GOOD + "}"),
    "metadata of numbers": plain(safetensors({"__metadata__": {"k": 1}} | tensor(), bytes(16))),
    "a field twice": text(
        '{"a":{"dtype":"F32","dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    ),
    "too many tensors": many_tensors,
    # One tensor
    "no dtype": text('{"a":{"shape":[2,2],"data_offsets":[0,16]}}'),
    "no shape": text('{"a":{"dtype":"F32","data_offsets":[0,16]}}'),
    "no offsets": text('{"a":{"dtype":"F32","shape":[2,2]}}'),
    "unknown dtype": plain(safetensors(tensor(dtype="F33"), bytes(16))),
    "dtype in lower case": plain(safetensors(tensor(dtype="f32"), bytes(16))),
    "dtype of code": plain(safetensors(tensor(dtype="O"), bytes(16))),
    "negative axis": plain(safetensors(tensor(shape=[-2, -2]), bytes(16))),
    "axis with a fraction": plain(safetensors(tensor(shape=[2.0, 2]), bytes(16))),
    "axis of 2^64": plain(safetensors(tensor(shape=[1 << 64]), bytes(16))),
    "axes whose product overflows to 4": plain(
        safetensors(tensor(shape=[1 << 32, 1 << 32, 4]), bytes(16))
    ),
    "bits that overflow": plain(safetensors(tensor(shape=[1 << 61], dtype="F64"), bytes(16))),
    "a million axes": plain(safetensors(tensor(shape=[1] * 1_000_000), bytes(16))),
    "half a byte": plain(
        safetensors({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, bytes(1))
    ),
    "three offsets": plain(safetensors(tensor(data_offsets=[0, 8, 16]), bytes(16))),
    "offsets the wrong way round": plain(safetensors(tensor(data_offsets=[16, 0]), bytes(16))),
    "negative offsets": plain(safetensors(tensor(data_offsets=[-16, 0]), bytes(16))),
    "offset of 2^64 - 1": plain(
        safetensors(tensor(data_offsets=[(1 << 64) - 17, (1 << 64) - 1]), bytes(16))
    ),
    "one byte too few for its shape": plain(safetensors(tensor(data_offsets=[0, 15]), bytes(15))),
    "terabytes claimed": plain(
        safetensors(
            {"a": {"dtype": "U8", "shape": [1 << 42], "data_offsets": [0, 1 << 42]}}, bytes(16)
        )
    ),
    # Together
    "starts at 1": plain(safetensors(tensor(data_offsets=[1, 17]), bytes(17))),
    "hole": plain(safetensors(second(data_offsets=[20, 36]), bytes(36))),
    "overlap": plain(safetensors(second(data_offsets=[8, 24]), bytes(24))),
    "the same bytes twice": plain(safetensors(second(data_offsets=[0, 16]), bytes(16))),
    "data behind the last tensor": plain(safetensors(tensor(), bytes(17))),
    "cut in the data": plain(safetensors(tensor(), bytes(15))),
    "no data": plain(safetensors(tensor())),
    "no tensors but data": plain(safetensors({}, bytes(5))),
    "a zip archive": plain(b"PK\x03\x04" + bytes(100)),
    "git-lfs pointer": plain(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
}
"""Description to writer. The reader of safetensors headers must refuse all of them."""


def archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in entries.items():
            file.writestr(name, content)


def patched(
    place: bytes, offset: int, change: bytes, names: tuple[str, ...] = ("m/data/0",)
) -> Writer:
    """An archive in which ``change`` stands ``offset`` bytes behind the last ``place``."""

    def write(path: Path) -> None:
        archive(path, dict.fromkeys(names, b"12345678"))
        content = bytearray(path.read_bytes())
        start = content.rindex(place) + offset
        content[start : start + len(change)] = change
        path.write_bytes(content)

    return write


def _prefixed(path: Path) -> None:
    archive(path, {"m/data/0": b"12345678"})
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())


def _cut(path: Path) -> None:
    archive(path, {"m/data/0": bytes(1000)})
    path.write_bytes(path.read_bytes()[:-30])


ARCHIVES: Final[dict[str, Writer]] = {
    "archive: empty file": plain(b""),
    "archive: pickle without an archive": plain(b"\x80\x02}q\x00."),
    "archive: compressed": lambda path: archive(
        path, {"m/data/0": bytes(99)}, zipfile.ZIP_DEFLATED
    ),
    "archive: cut": _cut,
    "archive: something in front": _prefixed,
    "archive: encrypted": patched(b"PK\x01\x02", 8, b"\x01\x00"),
    "archive: size beyond the file": patched(b"PK\x01\x02", 20, b"\xf0" * 8),
    "archive: packed and full size differ": patched(b"PK\x01\x02", 24, b"\x09"),
    "archive: local header elsewhere": patched(b"PK\x01\x02", 42, b"\x05"),
    "archive: local header beyond the end": patched(b"PK\x01\x02", 42, b"\xf0" * 4),
    "archive: local name differs": patched(b"PK\x03\x04", 30, b"x"),
    "archive: entries overlap": patched(
        b"PK\x01\x02", 42, b"\x00\x00\x00\x00", ("m/data/0", "m/data/1")
    ),
    "archive: a name twice": patched(b"PK\x01\x02", 53, b"0", ("m/data/0", "m/data/1")),
    "archive: more entries than there are": patched(b"PK\x05\x06", 8, b"\x09\x00\x09\x00"),
    "archive: fewer entries than there are": patched(b"PK\x05\x06", 8, b"\x00\x00\x00\x00"),
    "archive: directory beyond the end": patched(b"PK\x05\x06", 16, b"\xf0" * 4),
    "archive: 64-bit directory that is not there": patched(b"PK\x05\x06", 16, b"\xff" * 4),
    "archive: directory of 4 GiB": patched(b"PK\x05\x06", 12, b"\xfe" * 4),
    "archive: several disks": patched(b"PK\x05\x06", 4, b"\x01\x00"),
    "archive: name that is no text": patched(b"PK\x01\x02", 46, b"\xff"),
}
"""Description to writer. The reader of archive directories must refuse all of them."""


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, write) in enumerate((SAFETENSORS | ARCHIVES).items()):
        write(folder / f"{number:02}-{name.replace(' ', '-').replace(':', '').replace(',', '')}")


if __name__ == "__main__":
    main()
