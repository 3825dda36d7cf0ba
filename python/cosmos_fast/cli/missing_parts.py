"""What flags need that does not exist yet, and flags that have nothing to act on.

A flag that needs a missing part refuses the command and names the part; a flag that only turns off
or moves away a part that is not there is accepted and reported as without effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class MissingPart:
    """A part of cosmos-fast that a command needs and that does not exist yet."""

    asked_by: str
    """The flag, or the default, that needs it."""
    part: str
    cure: str

    def __str__(self) -> str:
        return f"{self.asked_by} needs the {self.part}, which does not exist yet; {self.cure}"


def _given(value: Any) -> bool:
    return value not in (None, False)


_NEEDS: Final[tuple[tuple[str, Callable[[Any], bool], str, str], ...]] = (
    ("natten", _given, "sparse-attention part", "leave --natten out"),
)


def is_batch(given: Mapping[str, Any]) -> bool:
    """Whether these flags are those of a list of videos, which GPUs share one by one."""
    return "batch_input_path" in given or "batch_input_json" in given


def missing_parts(given: Mapping[str, Any]) -> tuple[MissingPart, ...]:
    """The parts that these flags need and that do not exist yet."""
    parts = [
        MissingPart(f"--{name}", part, cure)
        for name, needed, part, cure in _NEEDS
        if needed(given.get(name))
    ]
    if is_batch(given) and given.get("benchmark"):
        cure = "leave --benchmark out; every manifest has stage times"
        parts.append(MissingPart("--benchmark", "benchmark-of-lists part", cure))
    return tuple(parts)


_IDLE: Final[tuple[tuple[str, str], ...]] = (
    (
        "use_cuda_graphs",
        "short clips are replayed as CUDA graphs by themselves, on others it is no gain",
    ),
    ("tokenizer_dir", "the VAE comes from the checkpoint"),
    ("image_save_name", "no picture is made"),
    ("image_save_folder", "no picture is made"),
)
_IDLE_WITHOUT_LIST: Final = ("resume", "input_root")
_IDLE_WITHOUT_GUARDRAIL: Final = ("offload_guardrail_models", "offload_guardrail")
_IDLE_WITHOUT_UPSAMPLER: Final = (
    "offload_prompt_upsampler",
    "offload_prompt_refiner",
    "prompt_upsampler_dir",
)


def idle_notes(given: Mapping[str, Any], *, upsampler_is_off: bool) -> tuple[str, ...]:
    """One line for each flag that was given and has nothing to act on."""
    notes = [f"--{name} has no effect: {why}" for name, why in _IDLE if _given(given.get(name))]
    if not is_batch(given):
        notes += [
            f"--{name} has no effect: it belongs to a list of videos"
            for name in _IDLE_WITHOUT_LIST
            if _given(given.get(name))
        ]
    if given.get("disable_guardrail"):
        notes += [
            f"--{name} has no effect: the guardrail is off"
            for name in _IDLE_WITHOUT_GUARDRAIL
            if _given(given.get(name))
        ]
    if upsampler_is_off:
        notes += [
            f"--{name} has no effect: the prompt upsampler is off"
            for name in _IDLE_WITHOUT_UPSAMPLER
            if _given(given.get(name))
        ]
    return tuple(notes)
