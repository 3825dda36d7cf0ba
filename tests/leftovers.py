"""What the kernel is still putting away is not a leak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_EXITING: Final = 0x4
"""PF_EXITING of ``linux/sched.h``, in the ninth field of ``stat``."""
_KILL: Final = 1 << 8
"""SIGKILL in the masks of ``status``."""


def is_dying(task: Path) -> bool:
    """Whether a process or thread is dead, on its way out, or has been sent SIGKILL.

    It stands in ``/proc`` until a processor is free to take it off; on a busy machine that can be
    seen. Whatever ends by itself, or was only asked to, counts as alive.

    Args:
        task: its folder in ``/proc``, or in a process's ``task`` folder.
    """
    try:
        # In this order: what was pending is forgotten only after the exit has begun.
        status = (task / "status").read_text()
        # "pid (name) state parent ...", and the name may hold anything.
        state, *fields = (task / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = 0
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd"):
            pending |= int(value, 16)
    return state in "ZX" or bool(int(fields[5]) & _EXITING) or bool(pending & _KILL)
