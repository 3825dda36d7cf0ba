"""What may read or change a prompt or a finished video before anybody sees it."""

from cosmos_fast.prompt.guardrail import Guardrail, GuardrailRecord, NoGuardrail, choose_guardrail

__all__ = ["Guardrail", "GuardrailRecord", "NoGuardrail", "choose_guardrail"]
