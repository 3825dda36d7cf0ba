"""Short prompts become full ones: whoever does it, what comes back is cleaned and measured.

An upsampler is any callable of a prompt, the frames that the video continues, and a seed.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from cosmos_fast.errors import Cancelled, CosmosFastError, InputError
from cosmos_fast.prompt.guardrail import Placement, check_placement

if TYPE_CHECKING:
    from cosmos_fast.types import Frames

QWEN: Final = "Qwen/Qwen2.5-VL-7B-Instruct"

INSTRUCTION: Final = (
    "You rewrite short prompts for a model that predicts how a scene goes on. You are given a "
    "prompt, which may be empty, and the picture or the video that the prediction starts from. "
    "Write one paragraph of 80 to 100 words, in English whatever the language of the prompt. "
    "Begin with the scene as the picture shows it: the subjects with their number, look, posture "
    "and expression, what surrounds them, the light, the style, and where the camera stands. Then "
    "tell what happens, in plain verbs and in order: who or what moves, where to, how fast, and "
    "what stays still. Motion is what matters most; let it obey gravity, contact and inertia. Keep "
    "the meaning of the prompt, and every name, number, title and quoted word in it as it stands. "
    "Add only what the picture shows or what follows from it. Answer with the paragraph alone: no "
    "title, no list, no remark about the task.\n"
    'For example, the prompt "the robot puts the apple away" over a picture of a kitchen might '
    "become: A white robot arm with a two-fingered gripper stands at a wooden kitchen counter in "
    "soft morning light; a red apple lies beside an open drawer, seen from slightly above by a "
    "camera that does not move. The arm swings slowly to the left, lowers itself and closes its "
    "fingers around the apple. It lifts the apple straight up, carries it over the drawer and "
    "opens its fingers, so that the apple drops a short way and comes to rest. The arm then rises "
    "and stands still."
)
"""What the built-in upsamplers are asked. Our own words: the reference's are not reproduced."""

LEAST_WORDS: Final = 5
MOST_WORDS: Final = 250
"""T5 reads 512 tokens, about 350 English words."""


@runtime_checkable
class Upsampler(Protocol):
    """Writes the prompt that the model gets."""

    def __call__(self, prompt: str, frames: Frames, *, seed: int) -> str:
        """
        Args:
            prompt: the user's; may be empty.
            frames: what the video continues, as the model gets them: uint8 (1, 5 or 9, H, W, 3).
            seed: of the video; equal arguments must give an equal text.
        """
        ...


@dataclass(frozen=True)
class PromptUpsampler:
    """The built-in upsampler: a Qwen2.5-VL model, such as NVIDIA's Cosmos-Reason1-7B."""

    model: str = QWEN
    """A folder, by itself or below the checkpoint root, or a hub id."""
    placement: Placement = "device"

    def __post_init__(self) -> None:
        check_placement(self.placement)


UpsamplerChoice = str | PromptUpsampler | Upsampler | None
"""What ``from_pretrained(upsampler=...)`` takes; a text is ``PromptUpsampler(model=text)``."""


@dataclass(frozen=True)
class UpsamplerRecord:
    """What the report and the manifest say about the upsampling of a prompt."""

    requested: str | None
    """Name of the upsampler; None: prompts are taken as they are."""
    ran: bool = False
    reason: str | None = None
    """Why it did not run, although there is one."""
    prompt: str | None = None
    """What it wrote, cleaned."""
    raw: str | None = None
    """What it wrote, where cleaning changed it."""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def upsample(upsampler: Upsampler, prompt: str, frames: Frames, seed: int) -> tuple[str, str]:
    """What ``upsampler`` makes of a prompt: (cleaned, as it came).

    Raises:
        CosmosFastError: it fails, or what it writes is no prompt. The prompt is never used as it
            was instead: nobody would notice.
    """
    name = name_of(upsampler)
    cure = "write the prompt in full and turn the upsampler off"
    try:
        raw: object = upsampler(prompt, frames, seed=seed)
    except (InputError, Cancelled):
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise CosmosFastError(
            f"the prompt upsampler {name} failed: {type(error).__name__}: {told}; {cure}"
        ) from error
    if not isinstance(raw, str):
        raise CosmosFastError(
            f"the prompt upsampler {name} gave back a {type(raw).__name__} and no text; {cure}"
        )
    text = cleaned(raw)
    if len(text.split()) < LEAST_WORDS:
        raise CosmosFastError(
            f"the prompt upsampler {name} wrote {raw.strip()[:80]!r}: fewer than {LEAST_WORDS} "
            f"words of a prompt; {cure}"
        )
    return text, raw


def name_of(upsampler: object) -> str:
    """How the report calls an upsampler."""
    for place in (upsampler, type(upsampler)):
        for attribute in ("name", "__qualname__"):
            if isinstance(name := getattr(place, attribute, None), str):
                return name
    return repr(upsampler)


_THOUGHT: Final = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL | re.IGNORECASE)
_ANSWER: Final = re.compile(r"<answer>(.*?)(</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_LABEL: Final = re.compile(
    r"\A(?:(?:sure|certainly|here)\b[^.\n]{0,80}:|"
    r"(?:the )?(?:\w+ )?(?:prompt|description|answer|paragraph) ?:)\s*",
    re.IGNORECASE,
)
_MARKS: Final = re.compile(r"```\w*|\*\*|^\s*(?:#+|>|[-*\u2022])\s+", re.MULTILINE)
_SENTENCE_END: Final = re.compile(r"[.!?][\"'\u201d\u2019)]?(?=\s|\Z)")
_QUOTES: Final = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}


def cleaned(text: str) -> str:
    """The one paragraph in what a language model wrote.

    Thoughts, labels, quotation marks around the whole and marks of layout go; a sentence that
    breaks off at the end goes, and so does what is beyond :data:`MOST_WORDS` words.
    """
    text = _THOUGHT.sub(" ", text)
    if answer := _ANSWER.search(text):
        text = answer[1]
    text = _MARKS.sub(" ", text)
    text = _LABEL.sub("", text.strip())
    text = " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    words = text.split()
    if len(words) > MOST_WORDS:
        text = " ".join(words[:MOST_WORDS])
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text
