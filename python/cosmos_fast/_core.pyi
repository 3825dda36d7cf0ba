"""The Rust core of cosmos-fast."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Final, Self, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Decoder",
    "Encoder",
    "Journal",
    "MemoryPlan",
    "ProcessLimits",
    "WeightReader",
    "__version__",
    "archive_directory",
    "capture",
    "denormalize",
    "inspect",
    "normalize",
    "plan_memory",
    "resize",
    "resize_windows",
    "safetensors_header",
    "smallest_memory",
]

__version__: Final[str]

def normalize(source: NDArray[np.uint8], target: NDArray[np.float32] | NDArray[np.uint16]) -> None:
    """Pictures to the network's range and layout: ``x / 127.5 - 1`` of every byte.

    Args:
        source: uint8, shape (T, H, W, 3), C-contiguous.
        target: written; float32, or bfloat16 as uint16 bits, shape (3, T, H, W), C-contiguous.
            bfloat16 is rounded after each of the two operations, as the reference does.

    Raises:
        InputError: wrong shape, layout or a read-only target.
    """

def denormalize(
    source: NDArray[np.float32] | NDArray[np.uint16], target: NDArray[np.uint8]
) -> None:
    """The way back: ``(x + 1) / 2`` clamped to [0, 1], times 255, plus one half, truncated.

    Args:
        source: float32, or bfloat16 as uint16 bits, shape (3, T, H, W), C-contiguous, about
            [-1, 1].
        target: written; uint8, shape (T, H, W, 3), C-contiguous.

    Raises:
        InputError: wrong shape, layout or a read-only target.
    """

def resize(source: NDArray[np.uint8], target: NDArray[np.uint8], *, fit: str) -> None:
    """Pictures brought to another size, antialiased, on floats in [0, 1], truncated to bytes.

    Args:
        source: uint8, shape (T, h, w, 3), C-contiguous.
        target: written; uint8, shape (T, H, W, 3), C-contiguous.
        fit: "cover" (bilinear, scaled until it covers, cut at the centre) or "stretch" (bicubic).

    Raises:
        InputError: wrong shape, layout or fit, or a read-only target.
    """

def resize_windows(
    source: tuple[int, int], target: tuple[int, int], *, fit: str
) -> tuple[tuple[list[int], list[int], list[float]], tuple[list[int], list[int], list[float]]]:
    """What :func:`resize` sums, for whoever does the sums on a device.

    Args:
        source: h, w.
        target: H, W.
        fit: as for :func:`resize`.

    Returns:
        Of the columns and of the rows, which come after them: for each output position its first
        input; how many of its terms, from the first on, are rounded after the product too; and the
        weights of all, one position after the other, of one length each, zeros behind the last.

    Raises:
        InputError: a side that is empty or beyond 1048576, or an unknown fit.
    """

@final
class ProcessLimits:
    """What a child process may use. 0 leaves processor time or memory unlimited."""

    def __new__(
        cls,
        *,
        seconds: float,
        cpu_seconds: int = 0,
        memory_bytes: int = 0,
        file_bytes: int | None = None,
    ) -> Self:
        """
        Args:
            seconds: how long the process may make the caller wait: in all where it is read from,
                for each frame where it is written to.
            cpu_seconds: processor time, all threads together.
            memory_bytes: address space.
            file_bytes: size of any file that it writes; None leaves that unlimited.

        Raises:
            InputError: ``seconds`` is negative or no number.
        """

def inspect(fd: int) -> tuple[str, int, bool, int]:
    """What an open file is, by its content.

    Returns:
        Kind ("jpeg", "png", "webp", "mp4", "matroska" or "avi"), EXIF orientation (1 to 8),
        whether it is a picture with more than 8 bits a sample, and the number of bytes that belong
        to it; others may follow.

    Raises:
        MediaError: another kind, a cut file, or no regular file.
    """

def capture(
    argv: Sequence[str], *, limits: ProcessLimits, most_bytes: int, source: int | None = None
) -> bytes:
    """What a program prints; ``source`` is the descriptor that becomes its standard input.

    Raises:
        MediaError: it cannot be started, fails, takes too long or prints more than ``most_bytes``.
    """

@final
class Decoder:
    """A program that prints PPM or PAM pictures, running beside the caller."""

    def __new__(
        cls,
        argv: Sequence[str],
        *,
        source: int,
        max_side: int,
        max_pixels: int,
        limits: ProcessLimits,
    ) -> Decoder:
        """Starts it.

        Args:
            argv: its command line.
            source: descriptor that becomes its standard input; the caller may close it then.
            max_side: longest side of a picture that is accepted.
            max_pixels: pixels of a picture that is accepted.
            limits: what it may use.

        Raises:
            MediaError: it cannot be started.
        """

    def finish(self, target: NDArray[np.uint8], *, fit: str, orientation: int) -> int:
        """Waits for its end and fits the last of its pictures into ``target``; once.

        Args:
            target: written; uint8, shape (T, H, W, 3), C-contiguous.
            fit: "cover" or "stretch".
            orientation: EXIF orientation by which each picture is turned before it is fitted.

        Returns:
            How many pictures there were; ``target`` is untouched where they are fewer than T.

        Raises:
            InputError: an argument is wrong, or it has been finished or stopped.
            MediaError: it fails, takes too long, or prints something else.
        """

    def stop(self) -> None:
        """Ends it now; does nothing where it has ended."""

@final
class Encoder:
    """A program that takes raw frames, running beside the caller."""

    def __new__(
        cls,
        argv: Sequence[str],
        *,
        output: int,
        size: tuple[int, int],
        pixels: str,
        ring: int,
        limits: ProcessLimits,
    ) -> Self:
        """
        Args:
            argv: the program's command line.
            output: descriptor that becomes its standard output.
            size: height and width.
            pixels: "yuv420p" (BT.709, limited range, even sides) or "rgb24": what it is sent.
            ring: frames that may wait for it before the caller does.
            limits: what it may use.

        Raises:
            InputError: an argument is wrong.
        """

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Queues frames, uint8 (n, H, W, 3), C-contiguous; waits where the ring is full.

        Raises:
            InputError: wrong shape or layout.
            MediaError: the program has failed.
        """

    def finish(self) -> None:
        """Waits until the program has taken every frame and ended well.

        Raises:
            MediaError: it fails, ends early or takes too long.
        """

    def stop(self) -> None:
        """Ends the program now; does nothing where it has ended."""

@final
class MemoryPlan:
    """A finished plan of :func:`plan_memory`."""

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, bytes and nanoseconds; holdings and places per block."""

    def actions(self, stage: int, passes: int | None = None) -> list[tuple[str, int, int | None]]:
        """Everything to do in a stage, in order: (kind, block, place).

        Args:
            stage: index of the stage.
            passes: how often its blocks are used; None: as often as was planned.

        "alloc" and "copy" go to the copy stream; "ready" (the block has arrived), "use" and "free"
        to the compute stream. "alloc" waits for the last "free" of its place.

        Raises:
            InputError: no such stage.
        """

    def timeline(
        self, stage: int
    ) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int, int, int]]]:
        """Copies and uses of a stage in virtual time: (block, place, start, end), nanoseconds."""

def plan_memory(request: Any) -> MemoryPlan:
    """The fastest plan within the budget; of several, the one that copies least.

    Args:
        request: ``cosmos_fast.memory.request.Request``, or anything with its attributes.

    Raises:
        InputError: values that make no sense.
        MemoryPlanError: the budget is below the smallest, which the message names.
    """

def smallest_memory(request: Any) -> tuple[int, int]:
    """The least device bytes and host bytes for which there is a plan.

    Raises:
        InputError: values that make no sense.
    """

def safetensors_header(
    path: str | PathLike[str],
) -> tuple[list[tuple[str, str, list[int], int, int]], dict[str, str]]:
    """What a safetensors file holds, checked to the official crate's limits.

    Returns:
        Tensors in the order of their bytes, each (name, dtype as the file calls it, shape, first
        byte in the file, byte behind the last), and the metadata.

    Raises:
        CheckpointError: not a regular file, damaged, cut, or hostile.
    """

def archive_directory(path: str | PathLike[str]) -> list[tuple[str, int, int]]:
    """Entries of a ``.pt`` archive: (name, first byte in the file, byte behind the last).

    Nothing is unpacked or run; torch's storages are called ``<root>/data/<key>``.

    Raises:
        CheckpointError: not a regular file, damaged, cut, compressed, or entries overlap.
    """

@final
class WeightReader:
    """Stretches of a file on their way to addresses in memory, read by several threads."""

    def __new__(
        cls,
        path: str | PathLike[str],
        transfers: list[tuple[int, int, int, bool, int]],
        owner: object,
        *,
        threads: int,
        piece_bytes: int,
        direct: bool = False,
    ) -> Self:
        """Starts to read, in the order of the list.

        Args:
            transfers: (first byte in the file, bytes in the file, address, whether float32 is
                rounded to bfloat16 on the way, how many transfers must have been released before
                this one may be written).
            owner: what owns the memory behind the addresses; held until this object goes. The
                addresses must be valid, aligned, and touched by nobody else until they have landed.
            threads: 1 to 64.
            piece_bytes: what a thread reads at a time: 64 KiB to 256 MiB, a multiple of 4096.
            direct: past the page cache, where the file system can.

        Raises:
            InputError: unreasonable numbers.
            CheckpointError: not a regular file, or shorter than a transfer.
        """

    def wait(self, transfer: int) -> None:
        """Waits, without the interpreter lock, until a transfer has landed.

        Raises:
            CheckpointError: the file was cut or cannot be read.
            Cancelled: :meth:`stop` was called.
        """

    def release(self, transfers: int) -> None:
        """The memory of the first ``transfers`` of the list may be written to again."""

    def stop(self) -> None:
        """Ends what is under way; no byte is written afterwards."""

    @property
    def direct(self) -> bool:
        """Whether bytes are read past the page cache."""

@final
class Journal:
    """Records that several processes append to one file, and locks that end with their holder.

    Safe between threads. What a killed writer left unfinished is ignored, and cut off by the next
    writer; damage elsewhere costs the records it hit.
    """

    def __new__(cls, path: str | PathLike[str], *, fresh: bool) -> Self:
        """Opens a journal, or starts an empty one.

        Args:
            path: no symbolic link is followed.
            fresh: there must be none yet.

        Raises:
            InputError: the file cannot be opened, is none of ours, or of another version.
            CosmosFastError: the file system offers no locks.
        """

    def read(self) -> list[bytes]:
        """Records that were appended, by anyone, since the last call; in order."""

    def append(self, records: list[bytes], *, sync: bool = True) -> None:
        """Appends records, all in one write; ``sync`` waits until they are on disk.

        Raises:
            InputError: a record is empty or longer than 64 KiB, or the journal is closed.
            CosmosFastError: the disk is full, or another process hangs with the journal locked.
        """

    def lock(self) -> None:
        """Keeps other processes from appending, until :meth:`unlock`."""

    def unlock(self) -> None:
        """Ends :meth:`lock`; does nothing where there is none."""

    def lease(self, item: int) -> bool:
        """Takes item number ``item``; False where another opening of the journal has it.

        The kernel gives it back when this one is closed or its process ends, in whatever way.
        """

    def release(self, item: int) -> None:
        """Gives an item back."""

    @property
    def damaged(self) -> int:
        """Bytes so far that belonged to no whole record."""

    def close(self) -> None:
        """Closes the file and ends its leases."""
