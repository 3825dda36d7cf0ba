"""What only the checkpoint knows, put into the settings of a command."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from cosmos_fast.cli.settings import Origin, Settings

if TYPE_CHECKING:
    from cosmos_fast.config import Profile

_T = TypeVar("_T")


def with_profile(settings: Settings, profile: Profile) -> Settings:
    """``settings`` for the checkpoint that ``profile`` describes: what is None becomes its value.

    A toy model is neither the original's nor the later tool's: its profile replaces every default
    of a generation, and upsampler and guardrail do not apply to it. What the user gave stays.
    """
    if profile.toy:
        settings = _as_toy(settings)
    negative = profile.negative_prompt

    def filled(value: _T | None, own: _T) -> _T:
        return own if value is None else value

    return replace(
        settings,
        negative_prompt=filled(settings.negative_prompt, negative)
        if isinstance(negative, str)
        else settings.negative_prompt,
        height=filled(settings.height, profile.size.height),
        width=filled(settings.width, profile.size.width),
        num_frames=filled(settings.num_frames, profile.num_frames),
        fps=filled(settings.fps, profile.fps),
        num_steps=filled(settings.num_steps, profile.num_steps),
        guidance=filled(settings.guidance, profile.guidance),
    )


def _as_toy(settings: Settings) -> Settings:
    """``settings`` without the defaults of a generation, and without upsampler and guardrail."""
    origins: dict[str, Origin] = dict(settings.origins)

    def unless_given(name: str, value: _T) -> _T | None:
        if origins.get(name) in ("command line", "config file"):
            return value
        origins[name] = "profile"
        return None

    return replace(
        without_upsampler(settings),
        height=unless_given("height", settings.height),
        width=unless_given("width", settings.width),
        num_frames=unless_given("num_frames", settings.num_frames),
        fps=unless_given("fps", settings.fps),
        guardrail="required" if settings.guardrail == "required" else "not applicable",
        origins=MappingProxyType(origins),
    )


def without_upsampler(settings: Settings) -> Settings:
    return replace(settings, upsampler="not applicable")
