"""The reference's guardrail from its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cosmos_fast.prompt.guardrail import DEFAULT_TIMEOUT, Guardrail, Placement
from cosmos_fast.prompt.guardrails import face_blur, llama_guard, video_filter
from cosmos_fast.prompt.guardrails.blocklist import Blocklist
from cosmos_fast.prompt.guardrails.face_blur import FaceBlur
from cosmos_fast.prompt.guardrails.llama_guard import LlamaGuard
from cosmos_fast.prompt.guardrails.video_filter import VideoFilter
from cosmos_fast.prompt.needs import Need

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from cosmos_fast.prompt.needs import WeightBytes
    from cosmos_fast.prompt.networks import ReadTensors


class GuardrailFolders(NamedTuple):
    """Where the parts of the guardrail lie."""

    blocklist: Path
    classifier: Path
    siglip: Path
    faces: Path
    llama_guard: Path


def cosmos_guardrail(
    folders: GuardrailFolders,
    device: torch.device,
    read: ReadTensors,
    *,
    placement: Placement = "device",
    timeout_s: float = DEFAULT_TIMEOUT,
) -> Guardrail:
    """Word lists and Llama Guard for prompts; the video filter, then face blur, for frames.

    Nothing is read yet.

    Args:
        folders: where the parts lie.
        device: where the networks run.
        read: reads the tensors of a file or folder.
        placement: where the networks stay between uses.
        timeout_s: seconds that loading a check, or one answer of it, may take.
    """
    return Guardrail(
        prompt_checks=(
            Blocklist(folders.blocklist),
            LlamaGuard(folders.llama_guard, device, read, placement),
        ),
        frame_checks=(
            VideoFilter(folders.siglip, folders.classifier, device, read, placement),
            FaceBlur(folders.faces, device, read, placement),
        ),
        timeout_s=timeout_s,
    )


def guardrail_needs(
    folders: GuardrailFolders,
    device: torch.device,
    weigh: WeightBytes,
    *,
    size: tuple[int, int],
    placement: Placement = "device",
) -> tuple[Need, ...]:
    """What the networks of :func:`cosmos_guardrail` will take of the device; reads no weights.

    Args:
        folders: where the parts lie.
        device: where the networks will run.
        weigh: counts the weights of a file or folder.
        size: (height, width) of the frames.
        placement: where the networks stay between uses.
    """
    tower = weigh(folders.siglip, prefix="vision_model.", dtype=video_filter.dtype_on(device))
    filtering = video_filter.working_bytes(folders.siglip, device, *size)
    guarding = llama_guard.working_bytes(folders.llama_guard)
    return (
        Need(LlamaGuard.name, weigh(folders.llama_guard), guarding, placement),
        Need(VideoFilter.name, tower + weigh(folders.classifier), filtering, placement),
        Need(FaceBlur.name, weigh(folders.faces), face_blur.working_bytes(*size), placement),
    )
