"""What may read or change a prompt or a finished video before anybody sees it."""

from cosmos_fast.prompt.guardrail import (
    DefaultGuardrail,
    FrameCheck,
    Guardrail,
    GuardrailChoice,
    NoCheck,
    NoGuardrail,
    PromptCheck,
    Sleeper,
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
    "Sleeper",
    "Verdict",
    "choose_gate",
    "grouped",
    "joined",
]
