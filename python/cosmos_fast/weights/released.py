"""The checkpoints that NVIDIA released: what their names say about them, and pinned revisions.

Every resolution and rate of one model size is one architecture with one set of RoPE ratios; the
weights differ. No tensor tells the ratios, the resolution or the rate: names do, and this table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cosmos_fast.config import DiTConfig, Profile
from cosmos_fast.errors import CheckpointError
from cosmos_fast.types import Size
from cosmos_fast.weights.action_files import ACTIONS, RELEASED_ACTIONS
from cosmos_fast.weights.architecture import differences, same_network

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.types import ActionSpec

NEGATIVE_PROMPT: Final = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion "
    "blur, over-saturation, shaky footage, low resolution, grainy texture, pixelated images, "
    "poorly lit areas, underexposed and overexposed scenes, poor color balance, washed out colors, "
    "choppy sequences, jerky movements, low frame rate, artifacting, color banding, unnatural "
    "transitions, outdated special effects, fake elements, unconvincing visuals, poorly edited "
    "content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality."
)
"""The reference's default negative prompt, byte for byte: another text makes another video."""

ARCHITECTURES: Final = {
    "2B": DiTConfig(num_layers=28, num_heads=16, rope_scale=(1.0, 3.0, 3.0)),
    "14B": DiTConfig(num_layers=36, num_heads=40, rope_scale=(20 / 24, 2.0, 2.0)),
}
ORIGINAL_VARIANT: Final = "model"
"""``model.pt``, the one file a model had before resolutions and rates were released apart."""
DIFFUSERS_VARIANT: Final = "diffusers"
"""The transformer in a diffusers folder; the released ones are the 720p, 16 fps weights."""

_DREAMS: Final = "nvidia/Cosmos-Predict2-14B-Sample-GR00T-Dreams"
REVISIONS: Final = {
    "nvidia/Cosmos-Predict2-2B-Video2World": "f50c09f5d8ab133a90cac3f4886a6471e9ba3f18",
    "nvidia/Cosmos-Predict2-14B-Video2World": "03b03a377fede782647afac998f674d9f358e319",
    f"{_DREAMS}-GR1": "926f34dd83860c5406ab4b400e156c3fd6fe6c0d",
    f"{_DREAMS}-DROID": "ebc29d30a3fab504bcc779a85bca073d14ad39f9",
    "google-t5/t5-11b": "90f37703b3334dfe9d2b009bfcbfbf1ac9d28ea3",
    "nvidia/Cosmos-Guardrail1": "d6d4bfa899a71454a700907664f3e88f503950cf",
    "meta-llama/Llama-Guard-3-8B": "7327bd9f6efbbe6101dc6cc4736302b3cbb6e425",
    "nvidia/Cosmos-Reason1-7B": "8fe96c1fa10db9e666b6fa6a87fea57dd9635649",
    "Qwen/Qwen2.5-VL-7B-Instruct": "cc594898137f460bfe9f0759e9844b3ce807cfb5",
}
"""The commits that the reference itself fetches (the last one: the newest when it was written);
nothing else is used unless asked for."""

_FAMILY = re.compile(r"Cosmos-Predict2-(?P<size>[\d.]+B)-(?P<kind>[A-Za-z0-9-]+)")
ACTION_KIND: Final = "Sample-Action-Conditioned"
_SUPPORTED = {ACTION_KIND, "Video2World", "Sample-GR00T-Dreams-GR1", "Sample-GR00T-Dreams-DROID"}
PLAIN_VARIANT: Final = re.compile(r"(?P<rows>480|720)p-(?P<fps>4|10|16)fps(?P<sparse>-natten)?")


@dataclass(frozen=True)
class Family:
    """A released model, known by its name."""

    name: str
    size: str
    kind: str


def family_of(path: Path) -> Family | None:
    """The released model whose name ``path`` carries: in its folders, nearest first.

    Raises:
        CheckpointError: it is one that is not supported; named.
    """
    for part in (path.name, *(parent.name for parent in path.parents[:4])):
        if match := _FAMILY.search(part):
            family = Family(match[0], match["size"], match["kind"])
            if family.kind not in _SUPPORTED or family.size not in ARCHITECTURES:
                raise CheckpointError(
                    f"{path}: {family.name} is not supported; Video2World 2B and 14B, the two "
                    f"GR00T-Dreams samples and the action-conditioned one are"
                )
            return family
    return None


def released_profile(
    path: Path,
    variant: str,
    inferred: DiTConfig,
    family: Family | None,
    actions: ActionSpec | None = None,
) -> Profile | None:
    """The profile of a released file, or None where its names say too little.

    Args:
        path: the transformer's file, for messages.
        variant: which of the released ones it is, such as ``480p-16fps``.
        inferred: what its tensors say.
        family: what its folder says.
        actions: what a file beside it says of its actions; None: those of the released network.

    Raises:
        CheckpointError: name and tensors contradict each other, or the variant is not supported.
    """
    if family is not None:
        expected = ARCHITECTURES[family.size]
        if family.kind == ACTION_KIND:
            expected = replace(expected, action_inputs=(actions or RELEASED_ACTIONS).inputs)
        if found := "; ".join(differences(inferred, expected)):
            raise CheckpointError(
                f"{path}: its folder says {family.name}, its tensors say otherwise ({found}). "
                f"Rename the folder, or describe the model in cosmos_fast.json beside it"
            )
        size = family.size
    else:
        plain = replace(inferred, action_inputs=0)
        sizes = [name for name, known in ARCHITECTURES.items() if same_network(plain, known)]
        if not sizes:
            return None
        size = sizes[0]
    kind = ACTION_KIND if inferred.action_inputs else "Video2World"
    name = family.name if family else f"Cosmos-Predict2-{size}-{kind}"
    if inferred.action_inputs:
        return _action_profile(f"{name}/{variant}", size, inferred, actions, path)
    clip = _clip_of(variant, family, path)
    if clip is None:
        return None
    resolution, num_frames, fps = clip
    return Profile(
        name=f"{name}/{variant}",
        size=resolution,
        num_frames=num_frames,
        fps=fps,
        dit=ARCHITECTURES[size],
        negative_prompt=NEGATIVE_PROMPT,
    )


def _action_profile(
    name: str, size: str, inferred: DiTConfig, actions: ActionSpec | None, path: Path
) -> Profile:
    """480 x 640, one frame given, no text and one branch, as the sample was trained."""
    spec = actions or RELEASED_ACTIONS
    if spec.inputs != inferred.action_inputs:
        raise CheckpointError(
            f"{path}: {inferred.action_inputs} numbers of action enter the network, which "
            f"{spec.chunk} x {spec.dim} are not; describe its actions in {ACTIONS} beside it"
        )
    return Profile(
        name=name,
        size=Size(480, 640),
        num_frames=spec.num_frames,
        fps=spec.fps,
        dit=replace(ARCHITECTURES[size], action_inputs=inferred.action_inputs),
        guidance=0.0,
        conditional_frames=(1,),
        actions=spec,
    )


def _clip_of(variant: str, family: Family | None, path: Path) -> tuple[Size, int, float] | None:
    if match := PLAIN_VARIANT.fullmatch(variant):
        if match["fps"] == "4":
            raise CheckpointError(
                f"{path}: {variant!r} is the action-conditioned network, and no action MLPs are in "
                f"the file"
            )
        if match["sparse"]:
            raise CheckpointError(
                f"{path}: tuned for sparse (NATTEN) attention, which is not supported; take "
                f"{variant.removesuffix('-natten')!r}"
            )
        rows = Size(432, 768) if match["rows"] == "480" else Size(704, 1280)
        return rows, 93 if match["fps"] == "16" else 61, float(match["fps"])
    if family is None:
        return None
    if variant == DIFFUSERS_VARIANT:
        return _clip_of(
            "720p-16fps" if family.kind == "Video2World" else "480p-16fps", family, path
        )
    if variant == ORIGINAL_VARIANT and family.kind == "Video2World":
        return Size(704, 1280), 121, 24.0
    return None
