"""One job: what a list's entry and the shared defaults mean together."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.clip import DEFAULT_CRF, Sidecar
from cosmos_fast.errors import InputError
from cosmos_fast.jobs.roots import check_input
from cosmos_fast.request import Options

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.jobs.roots import Root

INPUT_KEYS: Final = ("visual_input", "input_video", "input_path")
"""The original's word, the later tool's, and its flag's."""
_WHOLE: Final = (
    "height",
    "width",
    "num_frames",
    "num_video_frames",
    "num_conditional_frames",
    "num_input_frames",
    "num_steps",
    "seed",
    "crf",
)
_NUMBERS: Final = ("fps", "guidance")
_SWITCHES: Final = ("upsample",)
_TEXTS: Final = (*INPUT_KEYS, "prompt", "negative_prompt", "output_video", "fit", "recipe")
_SAME: Final = (
    INPUT_KEYS,
    ("num_frames", "num_video_frames"),
    ("num_conditional_frames", "num_input_frames"),
)
"""Keys that say the same thing: one of each group."""
_KNOWN: Final = (*_TEXTS, *_WHOLE, *_NUMBERS, *_SWITCHES, "meta")


@dataclass(frozen=True)
class Defaults:
    """What holds for every job of a list that does not say otherwise."""

    prompt: str | None = None
    negative_prompt: str | None = None
    """None is the profile's."""
    options: Options = field(default_factory=Options)
    crf: int = DEFAULT_CRF
    sidecar: Sidecar | None = "later"
    needs_prompt: bool = True
    """A job without a prompt is an error; not where an upsampler writes one."""


@dataclass(frozen=True)
class Job:
    """One video to make."""

    index: int
    """From 0, in the order of the list."""
    line: int
    """From 1, in the file."""
    source: Path
    video: Path
    prompt: str
    negative_prompt: str | None
    options: Options
    crf: int
    sidecar: Sidecar | None

    def key(self, model: str) -> str:
        """Tells this job from every other: 32 hexadecimal digits of all that makes its video.

        Args:
            model: identity of the model.
        """
        what = {
            "model": model,
            "source": str(self.source),
            "video": str(self.video),
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "options": {name: value for name, value in self.options.items() if value is not None},
            "crf": self.crf,
            "sidecar": self.sidecar,
        }
        return digest(json.dumps(what, sort_keys=True).encode())


def digest(data: bytes) -> str:
    """32 hexadecimal digits that stand for ``data``."""
    return hashlib.sha256(data).hexdigest()[:32]


def make_job(
    entry: Mapping[str, Any],
    index: int,
    line: int,
    *,
    default_name: str,
    defaults: Defaults,
    inputs: Root,
    outputs: Root,
) -> Job:
    """The job of an entry, every value of the right type and every path below its root.

    Args:
        default_name: of the video where the entry names none.

    Raises:
        InputError: the entry cannot be a job; what its numbers mean to the model is the engine's
            to judge.
    """
    _check_keys(entry)
    _check_types(entry)
    input_key = next((key for key in INPUT_KEYS if key in entry), None)
    if input_key is None:
        raise InputError(f"no input: {' or '.join(INPUT_KEYS[:2])} must name a picture or video")
    prompt = entry.get("prompt", defaults.prompt)
    if not (prompt or "").strip():
        if defaults.needs_prompt:
            raise InputError("no prompt: each job needs one, since no prompt upsampler is on")
        if not entry.get("upsample", defaults.options.get("upsample", True)):
            raise InputError("no prompt: upsample = false leaves it as it is; write one")
    video = _video(entry.get("output_video", default_name), outputs)
    source = inputs.place(input_key, entry[input_key])
    check_input(input_key, source)
    if video == source:
        raise InputError(f"output_video = {str(video)!r}: it would replace its own input")
    return Job(
        index=index,
        line=line,
        source=source,
        video=video,
        prompt=prompt or "",
        negative_prompt=entry.get("negative_prompt", defaults.negative_prompt),
        options=_options(entry, defaults.options),
        crf=_crf(entry.get("crf", defaults.crf)),
        sidecar=defaults.sidecar,
    )


def _check_keys(entry: Mapping[str, Any]) -> None:
    for key in entry:
        if key not in _KNOWN:
            close = difflib.get_close_matches(key, _KNOWN, 1)
            cure = f"{close[0]} is one" if close else 'put data of your own under "meta"'
            raise InputError(f"{key!r:.80} is no key of a job; {cure}")
    for group in _SAME:
        given = [key for key in group if key in entry]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} say the same thing; give one of them")


def _check_types(entry: Mapping[str, Any]) -> None:
    for key, value in entry.items():
        if key in _TEXTS:
            _check_text(key, value)
        elif key in _WHOLE and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"{key} = {value!r:.80}: a whole number is needed")
        elif key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{key} = {value!r:.80}: a number is needed")
        elif key in _SWITCHES and not isinstance(value, bool):
            raise InputError(f"{key} = {value!r:.80}: true or false is needed")


def _check_text(key: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{key} = {value!r:.80}: a text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{key} is no valid Unicode text: {error.reason}") from error


def _video(given: str, outputs: Root) -> Path:
    video = outputs.place("output_video", given)
    if video.suffix != ".mp4" or video.name.startswith("."):
        raise InputError(f"output_video = {given!r:.200}: the name of an .mp4 file is needed")
    if video.exists() and not video.is_file():
        raise InputError(f"output_video = {given!r:.200}: something that is no file is there")
    return video


def _options(entry: Mapping[str, Any], shared: Options) -> Options:
    options: Options = {**shared}
    if "height" in entry or "width" in entry:
        height, width = shared.get("size") or (None, None)
        height, width = entry.get("height", height), entry.get("width", width)
        if height is None or width is None:
            raise InputError("height and width belong together: give both")
        options["size"] = (height, width)
    for name, keys in (
        ("num_frames", ("num_frames", "num_video_frames")),
        ("num_conditional_frames", ("num_conditional_frames", "num_input_frames")),
        *(
            (key, (key,))
            for key in ("fps", "num_steps", "guidance", "seed", "fit", "recipe", *_SWITCHES)
        ),
    ):
        for key in keys:
            if key in entry:
                options[name] = entry[key]  # type: ignore[literal-required]
    return options


def _crf(value: int) -> int:
    if not 0 <= value <= 51:
        raise InputError(f"crf = {value}: 0 (best) to 51 is possible")
    return value
