"""Which guardrail stands between a prompt, a video, and the world.

No guardrail exists yet in this version: ``"default"`` runs without one, warns once and says so in
every report and manifest; :class:`NoGuardrail` does the same on purpose, with the reason on record.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from cosmos_fast.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoGuardrail:
    """The auditable way to run without a guardrail.

    The licence of NVIDIA's weights asks for a guardrail, or a substantially similar one, in
    products; whoever opts out says why, and every manifest repeats it.
    """

    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not self.reason.strip():
            raise InputError(
                f"NoGuardrail(reason={self.reason!r}): say in a few words why none is needed"
            )


Guardrail = Literal["default"] | NoGuardrail
"""What ``from_pretrained(guardrail=...)`` takes."""


@dataclass(frozen=True)
class GuardrailRecord:
    """What the report and the manifest say about the guardrail of a run."""

    requested: str
    ran: bool
    verdict: str
    reason: str | None = None


def choose_guardrail(guardrail: Guardrail, *, toy: bool) -> GuardrailRecord:
    """The record of the guardrail that will run.

    Args:
        toy: the checkpoint is a small model that ships with the package; nothing it can show needs
            a guardrail.

    Raises:
        InputError: neither ``"default"`` nor a :class:`NoGuardrail`.
    """
    if isinstance(guardrail, NoGuardrail):
        return GuardrailRecord("none", False, "not checked", guardrail.reason)
    if guardrail != "default":
        raise InputError(
            f'{guardrail = }: "default" or NoGuardrail(reason="...") are possible in this version'
        )
    if toy:
        return GuardrailRecord("default", False, "not applicable", "toy model")
    logger.warning(
        "no guardrail is available in this version: prompts and videos are not checked; "
        "pass NoGuardrail(reason=...) to say that this is intended"
    )
    return GuardrailRecord("default", False, "not checked", "none available")
