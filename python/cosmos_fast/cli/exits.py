"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns to its caller."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BLOCKED = 3
    PART_OF_BATCH_FAILED = 4
    INTERRUPTED = 130
    TERMINATED = 143


class UsageError(Exception):
    """The command line or the config file asks for something that cannot be.

    The message names the flag, the value, what was expected, and the cure.
    """


class MissingPartError(UsageError):
    """A flag needs a part of cosmos-fast that does not exist yet; the message names the part."""


class ToldByFirst(Exception):
    """Another process of this command tells the user why it ends, and what it returns."""

    def __init__(self, exit_code: ExitCode) -> None:
        super().__init__(exit_code.name)
        self.exit_code = exit_code


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that ``error`` ends the process with."""
    from cosmos_fast.errors import GuardrailBlocked, InputError

    if isinstance(error, UsageError | InputError):
        return ExitCode.USAGE
    if isinstance(error, GuardrailBlocked):
        return ExitCode.BLOCKED
    return ExitCode.FAILED


def message_of(error: BaseException) -> str:
    """What to tell the user of ``error``, on one line."""
    from cosmos_fast.errors import CosmosFastError

    text = " ".join(str(error).split())
    if isinstance(error, UsageError | CosmosFastError):
        return text
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"out of memory: {text or type(error).__name__}; "
            "ask for a smaller size, fewer frames or a smaller model"
        )
    return f"unexpected {type(error).__name__}: {text}; run again with --debug for the traceback"
