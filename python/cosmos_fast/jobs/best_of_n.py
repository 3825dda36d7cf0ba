"""Several videos of one prompt, judged by a critic, the best first.

As NVIDIA's ``video2world_bestofn``: seeds count up, every video is judged by the share of a
critic's answers that find nothing wrong with it.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Unpack

from cosmos_fast.clip import DEFAULT_CRF
from cosmos_fast.errors import GuardrailBlocked, InputError
from cosmos_fast.files import write_atomically
from cosmos_fast.jobs.engines import check_engine
from cosmos_fast.jobs.page import Shown, page
from cosmos_fast.media import read_frames
from cosmos_fast.types import Size

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from cosmos_fast.clip import Sidecar
    from cosmos_fast.engine import Video2World
    from cosmos_fast.report import StageCallback
    from cosmos_fast.request import Options
    from cosmos_fast.sampling.solver import CancelToken, StepCallback
    from cosmos_fast.types import Frames, Prompt

logger = logging.getLogger(__name__)

NUM_GENERATIONS: Final = 2
NUM_TRIALS: Final = 5
REPORT_NAME: Final = "best_of_n.html"
_FOR_EVERY_SEED: Final = ("prompt", "negative prompt")
"""What the guardrail looks at that no seed changes."""
_ANSWER: Final = re.compile(r"<answer>\s*(yes|no)\s*</answer>", re.IGNORECASE)


@dataclass(frozen=True)
class Judgement:
    """What a critic thinks of a video."""

    score: float
    """0 to 1, more is better."""
    answers: tuple[str, ...] = ()
    """What it said, where it says something."""
    verdicts: tuple[bool | None, ...] = ()
    """What each answer means, where the score is a count of them: True is no fault found, None is
    an answer that cannot be read."""

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise InputError(f"{self.score = }: a critic's score is a number from 0 to 1")
        if self.verdicts and len(self.verdicts) != len(self.answers):
            raise InputError(
                f"{len(self.verdicts)} verdicts of {len(self.answers)} answers: one of each or none"
            )

    @property
    def tally(self) -> dict[str, int]:
        """How many answers found no fault, a fault, or cannot be read; empty where none counts."""
        if not self.verdicts:
            return {}
        kinds = {"no fault": True, "fault": False, "unreadable": None}
        return {name: self.verdicts.count(kind) for name, kind in kinds.items()}


class Critic(Protocol):
    """Anything that can be called with a video and judges it."""

    def __call__(self, frames: Frames, *, trials: int, seed: int) -> Judgement:
        """
        Args:
            frames: the whole video, as it was written.
            trials: how often to ask, where asking twice can give two answers.
            seed: of whatever is drawn at random.
        """


@dataclass(frozen=True)
class Candidate:
    """One of the videos."""

    video: Path
    judgement: Judgement

    @property
    def percent(self) -> int:
        """The score in whole percent, as it stands in the names of the critic's files."""
        # Of 0.29 the product is 28.999999999999996.
        return int(round(100 * self.judgement.score, 9))


def judgement_of(answers: Sequence[str]) -> Judgement:
    """The reference's score: answers "No" (no anomaly found) among those that can be read.

    An answer that cannot be read drops out of the count; 0 where none can be.
    """
    found = [_ANSWER.search(text) for text in answers]
    verdicts = tuple(None if match is None else match[1].lower() == "no" for match in found)
    read = len(verdicts) - verdicts.count(None)
    return Judgement(verdicts.count(True) / read if read else 0.0, tuple(answers), verdicts)


def name_of(stem: str, seed: int) -> str:
    """Name of the video of a seed."""
    return f"{stem}_seed{seed}.mp4"


def generate_candidates(
    engine: Video2World,
    source: Any,
    prompt: Prompt,
    negative_prompt: Prompt | None = None,
    *,
    out: str | os.PathLike[str],
    name: str | None = None,
    num_generations: int = NUM_GENERATIONS,
    crf: int = DEFAULT_CRF,
    sidecar: Sidecar | None = "later",
    on_video: Callable[[Path, int], None] | None = None,
    on_blocked: Callable[[Path, GuardrailBlocked], None] | None = None,
    on_step: StepCallback | None = None,
    on_stage: StageCallback | None = None,
    cancel: CancelToken | None = None,
    **options: Unpack[Options],
) -> list[Path]:
    """Writes ``{name}_seed{seed + i}.mp4`` into ``out`` for i below ``num_generations``.

    Of several ranks all make the same call and the first writes. They share every video, one after
    the other: the first is there as soon as it can be, a model that needs the memory of all ranks
    has it, guardrail and upsampler are there once, and all seeds go through the same arithmetic,
    so that their order is the critic's and not the devices'.

    Args:
        name: None is the source's own, without its ending, where it is a path, else "video".
        on_video: told (path, number of videos) after each.
        on_blocked: told (path, error) of each that the guardrail refuses; the others are made.
        negative_prompt, on_step, on_stage, cancel, options: as ``generate``'s.

    Returns:
        The videos that were written, at least one.

    Raises:
        InputError: ``engine`` is none, or there is nothing to generate.
        GuardrailBlocked: the prompt was refused, or every video.
    """
    check_engine(engine)
    if num_generations < 1:
        raise InputError(f"{num_generations = }: at least 1 is needed")
    first = options.get("seed", 0)
    stem = name or (Path(source).stem if isinstance(source, str | Path) else "video")
    videos: list[Path] = []
    blocked: GuardrailBlocked | None = None
    with engine.together(("best of n", num_generations)) as ranks:
        for seed in range(first, first + num_generations):
            path, own = Path(out, name_of(stem, seed)), options.copy()
            own["seed"] = seed
            try:
                engine.generate_to(
                    path, source, prompt, negative_prompt, crf=crf, sidecar=sidecar,
                    on_step=on_step, on_stage=on_stage, cancel=cancel, **own,
                )  # fmt: skip
            except GuardrailBlocked as error:
                if error.cause != "verdict" or error.subject in _FOR_EVERY_SEED:
                    raise
                blocked = error
                if ranks.first:
                    logger.warning("%s: %s", path, error)
                if on_blocked is not None:
                    on_blocked(path, error)
                continue
            videos.append(path)
            if on_video is not None:
                on_video(path, num_generations)
    if blocked is not None and not videos:
        raise blocked
    return videos


def judge(
    videos: Iterable[str | os.PathLike[str]],
    critic: Critic,
    *,
    num_trials: int = NUM_TRIALS,
    seed: int = 0,
    on_candidate: Callable[[Candidate], None] | None = None,
) -> list[Candidate]:
    """Judges videos that cosmos-fast wrote, best first; of equals the one that was named first.

    Beside each video appear ``{video}_score{NNN}.json`` with the answers and ``.html`` with the
    video in it, NNN in percent; in the folder of the first, ``best_of_n.html`` with all of them
    side by side.

    Raises:
        InputError: no video, or one without its manifest: before the critic is asked anything; or
            what it returns is no judgement.
    """
    candidates, paths = [], [Path(video) for video in videos]
    refuse_foreign(paths)
    for video in paths:
        judgement = critic(whole_video(video), trials=num_trials, seed=seed)
        if not isinstance(judgement, Judgement):
            raise InputError(
                f"the critic returned {judgement!r:.80} for {video}: a Judgement is needed, as in "
                f"cosmos_fast.jobs.Judgement(score=0.5)"
            )
        candidate = Candidate(video, judgement)
        _write_verdict(candidate)
        candidates.append(candidate)
        if on_candidate is not None:
            on_candidate(candidate)
    if not candidates:
        raise InputError("no video to judge: name at least one")
    candidates.sort(key=lambda one: -one.judgement.score)
    shown = [_shown(one) for one in candidates]
    best = page(f"Best of {len(candidates)}", shown, answers="folded")
    write_atomically(candidates[0].video.parent / REPORT_NAME, best.encode())
    return candidates


def best_of_n(
    engine: Video2World,
    source: Any,
    prompt: Prompt,
    negative_prompt: Prompt | None = None,
    *,
    critic: Critic | None = None,
    out: str | os.PathLike[str],
    num_generations: int = NUM_GENERATIONS,
    num_trials: int = NUM_TRIALS,
    **options: Unpack[Options],
) -> list[Candidate]:
    """:func:`generate_candidates` and :func:`judge` in one; the best video first.

    Of several ranks the first judges, and all get the ranking.

    Args:
        critic: None is :class:`ReasoningCritic`, on the engine's device; the engine sleeps while it
            judges. Other ranks than the first do not call theirs.
    """
    check_engine(engine)
    seed, judges = options.get("seed", 0), critic
    with engine.together(("judged", num_trials)) as ranks:
        if judges is None:
            from cosmos_fast.jobs.critic import ReasoningCritic

            judges = ranks.on_first(lambda: ReasoningCritic(device=engine.device))
        videos = generate_candidates(
            engine, source, prompt, negative_prompt,
            out=out, num_generations=num_generations, **options,
        )  # fmt: skip
        if critic is None and engine.device.type == "cuda":
            engine.sleep()
        ranking: list[Candidate] = []

        def told() -> list[tuple[str, float, Sequence[str], Sequence[bool | None]]]:
            assert judges is not None
            ranking.extend(judge(videos, judges, num_trials=num_trials, seed=seed))
            found = ((str(one.video), one.judgement) for one in ranking)
            return [(video, j.score, j.answers, j.verdicts) for video, j in found]

        rows = ranks.same(told)
        return ranking or [
            Candidate(Path(video), Judgement(score, tuple(answers), tuple(verdicts)))
            for video, score, answers, verdicts in rows
        ]


def whole_video(video: Path) -> Frames:
    """All frames of a video that cosmos-fast wrote; its manifest says how many there are.

    Raises:
        InputError: there is no manifest beside it.
        MediaError: the video cannot be read.
    """
    size, frames = _told_of(video)
    return read_frames(video, size=size, num_frames=frames)


def refuse_foreign(videos: Iterable[Path]) -> None:
    """
    Raises:
        InputError: one of them has no manifest beside it.
    """
    for video in videos:
        _told_of(video)


def _told_of(video: Path) -> tuple[Size, int]:
    """Size and number of frames, as the manifest has them."""
    try:
        told = json.loads(video.with_suffix(".json").read_bytes())["video"]
        return Size(told["height"], told["width"]), told["frames"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{video}: there is no manifest of cosmos-fast beside it ({error}); a video of another "
            "program cannot be judged: move it away"
        ) from error


def _write_verdict(candidate: Candidate) -> None:
    stem = candidate.video.with_suffix("")
    for old in stem.parent.glob(f"{_escaped(stem.name)}_score[0-9][0-9][0-9].*"):
        old.unlink()  # of an earlier judgement
    base = stem.parent / f"{stem.name}_score{candidate.percent:03d}"
    verdict = {
        "video": candidate.video.name,
        "score": candidate.judgement.score,
        **({"tally": tally} if (tally := candidate.judgement.tally) else {}),
        "answers": list(candidate.judgement.answers),
    }
    write_atomically(
        base.with_name(f"{base.name}.json"),
        f"{json.dumps(verdict, indent=2, ensure_ascii=False)}\n".encode(),
    )
    write_atomically(
        base.with_name(f"{base.name}.html"),
        page(candidate.video.name, [_shown(candidate)], answers="shown").encode(),
    )


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _shown(candidate: Candidate) -> Shown:
    arguments = json.loads(candidate.video.with_suffix(".json").read_bytes()).get("arguments", {})
    return Shown(
        video=candidate.video,
        percent=candidate.percent,
        answers=candidate.judgement.answers,
        verdicts=candidate.judgement.verdicts,
        tally=candidate.judgement.tally,
        seed=arguments.get("seed"),
        prompt=arguments.get("prompt", ""),
    )
