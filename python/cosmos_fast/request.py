"""One call of ``generate``, every ``None`` resolved against the checkpoint's profile."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from cosmos_fast.config import check_size, finite_number, round_size, whole_number
from cosmos_fast.errors import InputError
from cosmos_fast.media import Fit
from cosmos_fast.sampling.noise import check_seed
from cosmos_fast.sampling.schedule import sigmas
from cosmos_fast.types import (
    LatentFrames,
    NoText,
    Prompt,
    Size,
    TextEmbedding,
    latent_frames,
)

if TYPE_CHECKING:
    from cosmos_fast.config import Profile

logger = logging.getLogger(__name__)

Recipe = Literal["lossless"]
UNTRAINED_CONDITIONING = (9,)
"""Accepted with a warning: it runs, but no released checkpoint was trained with it."""


def no_engine(given: object, example: str) -> InputError:
    """What to raise for ``given`` in an engine's place: most often it is a checkpoint's name.

    Args:
        example: a checkpoint to name where ``given`` names none.
    """
    source = fspath(given) if isinstance(given, str | PathLike) else example
    return InputError(
        f"engine = {given!r}: a Video2World is needed; make one with "
        f"Video2World.from_pretrained({source!r})"
    )


class Options(TypedDict, total=False):
    """The keyword options that ``generate``, ``generate_to`` and ``stream`` share."""

    size: tuple[int, int] | None
    num_frames: int | None
    fps: float | None
    num_conditional_frames: int | None
    num_steps: int | None
    guidance: float | None
    seed: int
    fit: Fit
    recipe: Recipe
    upsample: bool


@dataclass(frozen=True)
class Request:
    """What will be made. Every field is final; ``notes`` says what was changed or stands out."""

    prompt: Prompt
    negative_prompt: Prompt
    size: Size
    num_frames: int
    fps: float
    num_conditional_frames: int
    num_steps: int
    guidance: float
    seed: int
    fit: Fit
    recipe: Recipe
    notes: tuple[str, ...]
    upsample: bool = True
    """Have the prompt rewritten, where the engine has an upsampler."""

    @property
    def num_latent_frames(self) -> LatentFrames:
        return latent_frames(self.num_frames)

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        height, width = self.size
        return 1, 16, self.num_latent_frames, height // 8, width // 8

    @property
    def uses_guidance(self) -> bool:
        """Whether the unconditional branch runs at all."""
        return self.guidance != 0 and self.negative_prompt != ""

    def prompts(self, worded: Prompt | None = None) -> list[Prompt]:
        """What the conditional and, with guidance, the unconditional branch attend to.

        Args:
            worded: the prompt as an upsampler has rewritten it; None: as it was given.
        """
        prompt = self.prompt if worded is None else worded
        return [prompt, self.negative_prompt][: 1 + self.uses_guidance]

    @property
    def sigmas(self) -> tuple[float, ...]:
        return sigmas(self.num_steps)

    def arguments(self) -> dict[str, Any]:
        """The resolved arguments as plain values, for the manifest."""
        return {
            "prompt": _describe(self.prompt),
            "negative_prompt": _describe(self.negative_prompt),
            "height": self.size.height,
            "width": self.size.width,
            "num_frames": self.num_frames,
            "fps": self.fps,
            "num_conditional_frames": self.num_conditional_frames,
            "num_steps": self.num_steps,
            "guidance": self.guidance,
            "seed": self.seed,
            "fit": self.fit,
            "recipe": self.recipe,
        }


def resolve(
    profile: Profile,
    prompt: Prompt,
    negative_prompt: Prompt | None,
    *,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    num_conditional_frames: int | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    fit: Fit = "cover",
    recipe: Recipe = "lossless",
    upsample: bool = True,
) -> Request:
    """A request in which ``None`` has become the profile's value.

    Raises:
        InputError: a value is of the wrong type or out of range.
    """
    notes: list[str] = []
    if profile.actions is not None:
        raise InputError(
            f"{profile.name} predicts what follows actions: use cosmos_fast.World and its step()"
        )
    if recipe != "lossless":
        raise InputError(f'{recipe = }: only "lossless" exists in this version')
    if fit not in get_args(Fit):
        raise InputError(f"{fit = }: one of {', '.join(get_args(Fit))} is needed")
    request = Request(
        prompt=_checked_prompt("prompt", prompt),
        negative_prompt=_checked_prompt(
            "negative_prompt",
            profile.negative_prompt if negative_prompt is None else negative_prompt,
        ),
        size=_checked_size(profile, size, notes),
        num_frames=profile.num_frames
        if num_frames is None
        else whole_number("num_frames", num_frames),
        fps=_positive("fps", profile.fps if fps is None else fps),
        num_conditional_frames=_checked_conditioning(profile, num_conditional_frames, notes),
        num_steps=profile.num_steps if num_steps is None else whole_number("num_steps", num_steps),
        guidance=finite_number("guidance", profile.guidance if guidance is None else guidance),
        seed=check_seed(seed),
        fit=fit,
        recipe=recipe,
        notes=(),
        upsample=bool(upsample),
    )
    _check_lengths(profile, request, notes)
    sigmas(request.num_steps)
    if request.guidance != 0 and request.negative_prompt == "":
        notes.append(
            "empty negative prompt: the unconditional branch is skipped and guidance has no effect"
        )
    for note in notes:
        logger.info(note)
    return Request(**{**request.__dict__, "notes": tuple(notes)})


def _describe(prompt: Prompt) -> str:
    if isinstance(prompt, TextEmbedding):
        return f"<embedding of {prompt.length} rows>"
    return "<no text>" if isinstance(prompt, NoText) else prompt


def _checked_prompt(name: str, prompt: object) -> Prompt:
    if not isinstance(prompt, str | NoText | TextEmbedding):
        raise InputError(
            f"{name} is a {type(prompt).__name__}: text, NO_TEXT or a TextEmbedding is needed"
        )
    return prompt


def _checked_size(profile: Profile, size: tuple[int, int] | None, notes: list[str]) -> Size:
    if size is None:
        return profile.size
    rounded = round_size(size)
    if rounded != tuple(size):
        notes.append(f"size {Size(*size)} was rounded up to {rounded}, multiples of 16")
    check_size(rounded, profile.dit)
    return rounded


def _checked_conditioning(profile: Profile, frames: int | None, notes: list[str]) -> int:
    if frames is None:
        return profile.conditional_frames[0]
    frames = whole_number("num_conditional_frames", frames)
    if frames in profile.conditional_frames:
        return frames
    if frames not in UNTRAINED_CONDITIONING:
        legal = ", ".join(map(str, profile.conditional_frames))
        raise InputError(f"num_conditional_frames = {frames}: {profile.name} takes {legal}")
    notes.append(
        f"{frames} conditioning frames: it runs, but the checkpoint was not trained with it"
    )
    logger.warning(notes[-1])
    return frames


def _check_lengths(profile: Profile, request: Request, notes: list[str]) -> None:
    latents, longest = request.num_latent_frames, profile.dit.max_size[0]
    if latents > longest:
        raise InputError(
            f"num_frames = {request.num_frames} is {latents} latent frames; the position table "
            f"has {longest}, {4 * (longest - 1) + 1} frames"
        )
    if request.num_conditional_frames >= request.num_frames:
        raise InputError(
            f"num_frames = {request.num_frames}: more than the {request.num_conditional_frames} "
            f"conditioning frames are needed"
        )
    if request.num_frames != profile.num_frames:
        notes.append(
            f"{request.num_frames} frames: the checkpoint was trained for {profile.num_frames}"
        )


def _positive(name: str, value: float) -> float:
    if finite_number(name, value) <= 0:
        raise InputError(f"{name} = {value!r}: a number above 0 is needed")
    return float(value)
