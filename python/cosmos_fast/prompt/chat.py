"""A prompt upsampler behind an OpenAI-compatible endpoint, such as vLLM's or SGLang's server."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmos_fast.errors import CosmosFastError, InputError
from cosmos_fast.imports import install_extra
from cosmos_fast.prompt.upsampler import INSTRUCTION

if TYPE_CHECKING:
    from cosmos_fast.types import Frames

_NEW_TOKENS = 512


@dataclass(frozen=True)
class ChatUpsampler:
    """Posts prompt and frames to ``{base_url}/chat/completions`` and takes the first choice.

    The pictures leave this process: for whom, you decide.
    """

    base_url: str
    """Up to and with the version, as in http://localhost:8000/v1."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    instruction: str = INSTRUCTION
    temperature: float = 0.0
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"{self.base_url = }: an http:// or https:// address is needed")
        if not self.timeout_s > 0:
            raise InputError(f"{self.timeout_s = } seconds: a number above 0 is needed")

    @property
    def name(self) -> str:
        return f"{self.model} at {self.base_url}"

    def __call__(self, prompt: str, frames: Frames, *, seed: int) -> str:
        """
        Raises:
            CosmosFastError: the endpoint cannot be reached, refuses, or answers something else.
        """
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            response = httpx.post(
                f"{self.base_url.rstrip('/')}/chat/completions",
                json=self._question(prompt, frames, seed),
                headers=headers,
                timeout=self.timeout_s,
            )
            response.raise_for_status()
            answer: Any = response.json()
            text = answer["choices"][0]["message"]["content"]
        except httpx.HTTPError as error:
            raise CosmosFastError(f"{self.name}: {type(error).__name__}: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise CosmosFastError(
                f"{self.name}: its answer is not that of a chat completion: {error!r}"
            ) from error
        if not isinstance(text, str):
            raise CosmosFastError(f"{self.name}: its answer holds no text")
        return text

    def _question(self, prompt: str, frames: Frames, seed: int) -> dict[str, Any]:
        pictures = [
            {"type": "image_url", "image_url": {"url": _as_url(picture)}}
            for picture in np.asarray(frames)
        ]
        return {
            "model": self.model,
            "seed": seed,
            "temperature": self.temperature,
            "max_tokens": _NEW_TOKENS,
            "messages": [
                {"role": "system", "content": self.instruction},
                {"role": "user", "content": [{"type": "text", "text": prompt}, *pictures]},
            ],
        }


def _as_url(picture: np.ndarray) -> str:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"sending pictures needs Pillow: {install_extra('upsampler')}") from error
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "PNG")
    return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"
