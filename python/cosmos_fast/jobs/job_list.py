"""Files that list jobs: the original's JSON lines and the later tool's JSON array."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import BinaryIO

LONGEST_ENTRY: Final = 1 << 20
"""Bytes of one job; a prompt of 512 tokens has about 2,000."""
LARGEST_ARRAY: Final = 256 << 20
"""Bytes of a JSON array, which is read as a whole; JSON lines may be any number."""
_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = b" \t\r\n"


class JobList:
    """The entries of a list, found once and read one at a time: a long list costs no memory.

    Which form it is, the first character that is no space tells: ``[`` an array, ``{`` lines.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Raises:
            InputError: it cannot be read, is of neither form, or is empty; or it is an array that
                is no valid JSON. A bad line costs that line only.
        """
        self.path: Final = os.fspath(path)
        self.name: Final = Path(self.path).name
        """What journal, summary and staging folders of the list are called after."""
        self._starts, self._lengths, self._lines = array("Q"), array("Q"), array("Q")
        try:
            self._file: Final = open(path, "rb", buffering=1 << 16)  # noqa: SIM115, PTH123
        except OSError as error:
            raise InputError(f"{self.path}: the list cannot be read ({error.strerror})") from error
        try:
            self.is_array: Final = self._starts_like_an_array()
            self.digest: Final = self._index_array() if self.is_array else self._index_lines()
            self._state = self._status()
            if not self._starts:
                raise InputError(f"{self.path}: the list is empty; one job a line is expected")
        except OSError as error:
            self._file.close()
            raise InputError(f"{self.path}: the list cannot be read ({error.strerror})") from error
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._starts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def line(self, index: int) -> int:
        """Line of an entry in the file, from 1."""
        return self._lines[index]

    def default_name(self, index: int) -> str:
        """Of the video of an entry that names none, as the reference calls it."""
        return f"output_{index}.mp4" if self.is_array else f"{index}.mp4"

    def raw(self, index: int) -> bytes:
        """The bytes of an entry.

        Raises:
            InputError: it is longer than :data:`LONGEST_ENTRY`, or the file has changed.
        """
        length = self._lengths[index]
        if length > LONGEST_ENTRY:
            raise InputError(f"an entry of {length} bytes: at most {LONGEST_ENTRY} are read")
        if self._status() != self._state:
            raise InputError(f"{self.path} was changed while its jobs ran; start again")
        return os.pread(self._file.fileno(), length, self._starts[index])

    def entry(self, index: int) -> dict[str, Any]:
        """The object of an entry.

        Raises:
            InputError: it is no JSON object.
        """
        raw = self.raw(index)
        try:
            entry = json.loads(
                raw.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_constant
            )
        except InputError:
            raise
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8: {error.reason} at byte {error.start}") from error
        except RecursionError as error:
            raise InputError("lists in lists in lists, too deep to read") from error
        except ValueError as error:
            raise InputError(f"not valid JSON: {error}; found {_shown(raw)}") from error
        if not isinstance(entry, dict):
            raise InputError(f"a JSON object in braces is needed; found {_shown(raw)}")
        return entry

    def _starts_like_an_array(self) -> bool:
        first = b""
        while not first.strip(_SPACE):
            block = self._file.read(1 << 16)
            if not block:
                raise InputError(f"{self.path}: the list is empty; one job a line is expected")
            first = block.removeprefix(_BOM)
        self._file.seek(0)
        kind = first.lstrip(_SPACE)[:1]
        if kind not in (b"[", b"{") and not self.path.endswith(".jsonl"):
            raise InputError(
                f"{self.path}: neither a JSON array, which starts with [, nor JSON lines, which "
                f"start with {{; found {_shown(first)}"
            )
        return kind == b"["

    def _index_lines(self) -> str:
        hasher = hashlib.sha256()
        start = number = 0
        for number, line in enumerate(_long_lines(self._file, hasher), start=1):
            text, length = line
            if number == 1:
                start = len(text) - len(text.removeprefix(_BOM))
                length, text = length - start, text.removeprefix(_BOM)
            if text.strip(_SPACE):
                self._add(start, length, number)
            start += length
        return hasher.hexdigest()

    def _index_array(self) -> str:
        data = self._file.read(LARGEST_ARRAY + 1)
        if len(data) > LARGEST_ARRAY:
            raise InputError(
                f"{self.path}: an array of more than {LARGEST_ARRAY >> 20} MiB; write JSON lines"
            )
        # A byte a character: offsets in the text are offsets in the file.
        text = data.decode("latin-1")
        decoder, line, counted = json.JSONDecoder(), 1, 0
        at = _skip(text, len(_BOM) if data.startswith(_BOM) else 0) + 1
        at, expected = _skip(text, at), "a job"
        with contextlib.suppress(IndexError):
            while not (text[at] == "]" and not (expected == "a job" and len(self))):
                try:
                    _, end = decoder.raw_decode(text, at)
                except (ValueError, RecursionError) as error:
                    line += text.count("\n", counted, at)
                    raise InputError(f"{self.path}:{line}: no valid JSON: {error}") from error
                line, counted = line + text.count("\n", counted, at), at
                self._add(at, end - at, line)
                at = _skip(text, end)
                expected = "a comma or the end of the list"
                if text[at] == ",":
                    at, expected = _skip(text, at + 1), "a job"
                elif text[at] != "]":
                    break
            else:
                if not text[at + 1 :].strip():
                    return hashlib.sha256(data).hexdigest()
                at, expected = _skip(text, at + 1), "nothing"
        line += text.count("\n", counted, at)
        raise InputError(
            f"{self.path}:{line}: {expected} is expected; found {_shown(data[at : at + 99])}"
        )

    def _add(self, start: int, length: int, line: int) -> None:
        self._starts.append(start)
        self._lengths.append(length)
        self._lines.append(line)

    def _status(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def _long_lines(file: BinaryIO, hasher: Any) -> Iterator[tuple[bytes, int]]:
    """Each line's first bytes, and its length with its end; no line is ever held whole."""
    while line := file.readline(LONGEST_ENTRY + 1):
        hasher.update(line)
        length, more = len(line), line
        while not more.endswith(b"\n") and (more := file.readline(LONGEST_ENTRY + 1)):
            hasher.update(more)
            length += len(more)
        yield line, length


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _shown(raw: bytes) -> str:
    text = raw[:60].decode("utf-8", "replace").strip()
    return repr(text) if text else "nothing"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice!r:.80} is given twice")
    return entry


def _no_constant(text: str) -> None:
    raise InputError(f"{text} is no number of JSON")
