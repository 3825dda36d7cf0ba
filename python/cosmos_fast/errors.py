"""Everything cosmos-fast raises on purpose.

One base class and a handful of children, so that a host program can catch all of them with
``except CosmosFastError`` and still tell a blocked prompt from a broken file. Every message names
the offending value, what was expected, and the cure.
"""

from typing import Any


class CosmosFastError(Exception):
    """Base of every error that cosmos-fast raises on purpose."""


class InputError(CosmosFastError, ValueError):
    """An argument has the wrong value, shape, dtype or combination."""


class MediaError(CosmosFastError):
    """A picture or video could not be read or written. Also raised by the Rust core."""


class CheckpointError(CosmosFastError):
    """A checkpoint is missing, ambiguous, incomplete, misshapen, not finite or unknown."""


class GatedRepoError(CheckpointError):
    """The hub refused a repository.

    Attributes:
        status: 401 (no token, or a token the hub does not know) or 403 (the token is known but the
            repository's terms have not been accepted by its owner).
        repo_id: the repository that refused.
    """

    def __init__(self, message: str, *, status: int, repo_id: str) -> None:
        super().__init__(message)
        self.status = status
        self.repo_id = repo_id


class GuardrailBlocked(CosmosFastError):
    """A guardrail refused a prompt or a video, or could not tell that it is safe.

    Nothing was published.

    Attributes:
        cause: why: "verdict" (a check said no), "missing" (files of the guardrail are not there),
            "error" (a check failed) or "timeout" (a check did not answer in time).
        check: the check that blocked; None where none was reached.
        subject: what was looked at, such as "prompt" or "video"; None while loading.
        record: the guardrail's part of the report so far, as plain values.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str = "verdict",
        check: str | None = None,
        subject: str | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.check = check
        self.subject = subject
        self.record = record or {}


class MemoryPlanError(CosmosFastError):
    """The requested memory budget cannot hold the run.

    Attributes:
        plan: the ``cosmos_fast.Plan`` for the smallest budget that can, where one was made.
    """

    plan: Any = None


class DeviceLost(CosmosFastError):
    """The accelerator's context is beyond repair; the process must be started again."""


class RankLost(CosmosFastError):
    """Another rank of a parallel run died, failed or fell silent.

    Attributes:
        agreed: rank 0 failed and raises what happened, every rank knows, and all can go on; else
            the ranks must start again.
        interrupted: a signal, or somebody at the keyboard, ended the other rank's work.
    """

    def __init__(self, message: str, *, agreed: bool = False, interrupted: bool = False) -> None:
        super().__init__(message)
        self.agreed = agreed
        self.interrupted = interrupted


class Cancelled(CosmosFastError):
    """The caller's ``cancel`` was set; nothing was written."""
