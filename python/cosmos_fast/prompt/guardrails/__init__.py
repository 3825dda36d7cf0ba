"""The reference's guardrail, check by check; :func:`cosmos_guardrail` puts it together."""

from cosmos_fast.prompt.guardrails.assembly import (
    GuardrailFolders,
    cosmos_guardrail,
    guardrail_needs,
)
from cosmos_fast.prompt.guardrails.blocklist import Blocklist
from cosmos_fast.prompt.guardrails.face_blur import FaceBlur
from cosmos_fast.prompt.guardrails.llama_guard import LlamaGuard
from cosmos_fast.prompt.guardrails.video_filter import VideoFilter

__all__ = [
    "Blocklist",
    "FaceBlur",
    "GuardrailFolders",
    "LlamaGuard",
    "VideoFilter",
    "cosmos_guardrail",
    "guardrail_needs",
]
