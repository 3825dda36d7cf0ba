"""The clips of a long video that is not whole yet: a folder that it goes on from.

One file a clip, which appears whole or not at all, holds all that the clips behind it and the
finished video need; what is there says how far the video has come. The folder is locked for as long
as its process lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cosmos_fast.errors import InputError, MediaError
from cosmos_fast.files import TEMPORARY_PREFIX, write_atomically
from cosmos_fast.jobs.job import digest
from cosmos_fast.types import TextEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from cosmos_fast.types import Prompt

_FORMAT: Final = 1
_RECORD: Final = "rollout.json"
_CLIPS: Final = "clip-*.safetensors"
_LONGEST: Final = 60
"""Characters of a value that a message repeats."""


@dataclass(frozen=True)
class KeptClip:
    """One clip, as it is kept."""

    told: dict[str, Any]
    """What JSON can hold: its drift, its report, the prompt that it followed, and the digests of
    the weights that made it."""
    pixels: dict[str, torch.Tensor]
    """uint8 (T, H, W, 3) on the host: its new ``frames``, the ``tail`` that the next one continues,
    and, where that is ``handed`` over changed, the changed one."""


class KeptClips:
    """A folder of clips, locked while the block runs. Of several ranks the first has one.

    It is believed as a finished video is: whoever can write to it can change what is made of it.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, begin_again: str = "remove the folder"
    ) -> None:
        """
        Args:
            folder: made if need be. It is new, empty, or one of these.
            begin_again: what to do for all clips to be made again, for messages.
        """
        self.folder: Final = Path(folder)
        self.clips = 0
        """Clips of this video that are there, as far as is known."""
        self.notes: list[str] = []
        """What the report has to tell."""
        self._begin_again = begin_again
        self._key = ""
        self._is_new = False

    def __enter__(self) -> Self:
        """
        Raises:
            InputError: another process has the folder.
            MediaError: it cannot be made or locked.
        """
        with self._failing("cannot be used"):
            self._is_new = not self.folder.exists()
            self._descriptor = _locked(self.folder)
        with self._failing("cannot be tidied up"):
            for unfinished in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
                unfinished.unlink()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self._paths():  # of a video without clips nothing need be known
                self._forget()
                if self._is_new:
                    self._remove_folder()
        finally:
            os.close(self._descriptor)

    def clear(self) -> int:
        """Removes all clips; how many there were."""
        self.clips = 0
        with self._failing("cannot be emptied"):
            return self._remove_from(0)

    @property
    def found(self) -> int:
        """Clips that are there, of whichever video, damaged ones among them."""
        return len(self._paths())

    def remove(self) -> None:
        """Removes the clips, and the folder if nothing else is in it."""
        self.clear()
        with self._failing("cannot be removed"):
            self._forget()
        self._remove_folder()

    def begin(
        self,
        what: Mapping[str, Any],
        digests: Callable[[], Mapping[str, str | None]],
        sizes: Sequence[int],
    ) -> None:
        """Says which video this is.

        Args:
            what: all that makes its clips, but prompts and weights; plain values, by names for
                messages.
            digests: of the weights, by file; asked where clips are there, as it may take long.
            sizes: bytes of each clip's pixels.

        Raises:
            InputError: the folder is another video's, or something else's.
            MediaError: it cannot be read or written, or the disk has no room for the clips.
        """
        known = {"format": _FORMAT, **json.loads(json.dumps(what))}
        self._key = digest(json.dumps(known, sort_keys=True).encode())
        found, paths = self._record(), self._paths()
        if found is None and set(self.folder.iterdir()) - {*paths, self.folder / _RECORD}:
            self._key = ""
            raise InputError(f"{self.folder}: no folder of a long video; name one that is new")
        if found is None and paths:
            self.notes.append(f"{_RECORD} was damaged: all clips were made again")
            self.clear()
        elif found is not None and paths:
            self._compare(found, known)
            clip = self._read(0)
            if clip is not None:
                self._compare({"weights": clip.told["weights"]}, {"weights": dict(digests())})
            self.clips = len(paths)
        self._refuse_full(sizes[self.clips :])
        with self._failing("cannot be written"):
            write_atomically(self.folder / _RECORD, f"{json.dumps(known, indent=2)}\n".encode())

    def take(self, number: int, prompt: Prompt | None) -> KeptClip | None:
        """Clip ``number``, from 0, of those before it all taken; None where it has to be made.

        Args:
            prompt: that it should have followed; None: whichever it did.

        Raises:
            InputError: it followed another one.
            MediaError: it cannot be read.
        """
        clip = self._read(number)
        if clip is None:
            with self._failing("cannot be cleared of damaged clips"):
                self._remove_from(number)
            self.clips = number
        elif prompt is not None:
            name = f"prompt of clip {number + 1}"
            self._compare({name: clip.told["prompt"]}, {name: described(prompt)})
        return clip

    def add(self, number: int, clip: KeptClip) -> None:
        """Keeps a clip.

        Raises:
            MediaError: the disk is full, or the folder has gone.
        """
        record = json.dumps({**clip.told, "rollout": self._key, "number": number}).encode()
        held = {**clip.pixels, "record": torch.from_numpy(np.frombuffer(record, np.uint8).copy())}
        held["sha256"] = torch.frombuffer(bytearray(_sum(held)), dtype=torch.uint8)
        with self._failing(f"could not keep clip {number + 1}"):
            write_atomically(self._path(number), save(held))
            os.fsync(self._descriptor)
        self.clips = number + 1

    def _read(self, number: int) -> KeptClip | None:
        with self._failing("cannot be read"):
            try:
                data = self._path(number).read_bytes()
            except FileNotFoundError:
                return None
        try:
            held = load(data)
            if held.pop("sha256").numpy().tobytes() != _sum(held):
                raise ValueError
            told = json.loads(held.pop("record").numpy().tobytes())
            if (told["rollout"], told["number"]) != (self._key, number):
                raise ValueError
            return KeptClip(told, held)
        except (SafetensorError, ValueError, LookupError, TypeError):
            self.notes.append(
                f"kept clip {number + 1} was damaged: it and what follows were made again"
            )
            return None

    def _record(self) -> dict[str, Any] | None:
        try:
            with self._failing("cannot be read"):
                try:
                    found = json.loads((self.folder / _RECORD).read_bytes())
                except FileNotFoundError:
                    return None
            return found if isinstance(found, dict) and "format" in found else None
        except ValueError:
            return None

    def _compare(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differences = [
            f"{name} was {_short(was)} and is {_short(value)}"
            for name, was, value in _pairs(then, now)
            if was != value
        ]
        if differences:
            self.clips = 0
            self._key = ""
            more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
            raise InputError(
                f"{self.folder} keeps clips of another long video: {', '.join(differences[:4])}"
                f"{more}; give what it was begun with, or {self._begin_again} to begin again"
            )

    def _refuse_full(self, sizes: Sequence[int]) -> None:
        with self._failing("cannot be used"):
            free = shutil.disk_usage(self.folder).free
        if sum(sizes) > free:
            raise MediaError(
                f"{self.folder}: keeping {len(sizes)} clips until the video is whole takes "
                f"{_amount(sum(sizes))}, and {_amount(free)} are free; free some, or write to "
                f"another disk"
            )

    def _forget(self) -> None:
        if self._key:
            (self.folder / _RECORD).unlink(missing_ok=True)
            self._key = ""

    def _remove_folder(self) -> None:
        with contextlib.suppress(OSError):  # somebody else's files, or already gone
            self.folder.rmdir()

    def _path(self, number: int) -> Path:
        return self.folder / _CLIPS.replace("*", f"{number:05d}")

    def _paths(self) -> list[Path]:
        """Of the clips that are there, whole or not."""
        return sorted(self.folder.glob(_CLIPS))

    def _remove_from(self, number: int) -> int:
        """The last goes first: what is left is always a beginning."""
        paths = [path for path in self._paths() if path >= self._path(number)]
        for path in reversed(paths):
            path.unlink(missing_ok=True)
        return len(paths)

    @contextlib.contextmanager
    def _failing(self, how: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MediaError(
                f"{self.folder}: {how} ({error.strerror or error}); see to the disk and its "
                f"permissions, or write to another folder"
            ) from error


def described(prompt: Prompt) -> dict[str, Any]:
    """A prompt as plain values, equal where prompts are."""
    if isinstance(prompt, TextEmbedding):
        rows = prompt.rows.detach().cpu().contiguous().view(torch.int16)
        return {"rows": prompt.length, "sha256": digest(rows.numpy().tobytes())}
    return {"text": prompt if isinstance(prompt, str) else None}


def _locked(folder: Path) -> int:
    """A descriptor of ``folder``, which is made if need be; closing it lets go of the lock.

    Raises:
        InputError: another process has it.
        OSError: it cannot be made, opened or locked.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(
                f"{folder}: another process is making this long video; wait until it has ended, "
                f"or write to another place"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last owner has removed it in this moment


def _sum(held: Mapping[str, torch.Tensor]) -> bytes:
    found = hashlib.sha256()
    for name, tensor in sorted(held.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().numpy().reshape(-1).view(np.uint8).data)
    return found.digest()


def _pairs(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, value then, value now), those of values within values one by one."""
    for name in dict.fromkeys([*then, *now]):
        was, value = then.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(value, dict) and "text" not in {*was, *value}:
            yield from ((f"{name} of {key}", *pair) for key, *pair in _pairs(was, value))
        else:
            yield name, was, value


def _short(value: object) -> str:
    if isinstance(value, dict):
        value = value["text"] if "text" in value else f"an embedding of {value.get('rows')} rows"
    told = "none" if value is None else repr(value)
    return told if len(told) <= _LONGEST else f"{told[: _LONGEST - 3]}..."


def _amount(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
