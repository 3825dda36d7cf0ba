"""What may read or change a prompt or a finished video before anybody sees it."""

from cosmos_fast.prompt.guardrail import (
    DefaultGuardrail,
    FrameCheck,
    Guardrail,
    GuardrailChoice,
    NoCheck,
    NoGuardrail,
    PromptCheck,
    Verdict,
)
from cosmos_fast.prompt.inspection import (
    Gate,
    GuardrailRecord,
    Inspection,
    choose_gate,
    grouped,
    joined,
)

__all__ = [
    "DefaultGuardrail",
    "FrameCheck",
    "Gate",
    "Guardrail",
    "GuardrailChoice",
    "GuardrailRecord",
    "Inspection",
    "NoCheck",
    "NoGuardrail",
    "PromptCheck",
    "Verdict",
    "choose_gate",
    "grouped",
    "joined",
]
