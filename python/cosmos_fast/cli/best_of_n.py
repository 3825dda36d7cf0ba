"""``cosmos-fast best-of-n``: several videos of one prompt, judged, the best first."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from cosmos_fast.cli.exits import ExitCode, MissingPartError, UsageError
from cosmos_fast.cli.flags import Choice, Flag, Integer, Location, Word, parse_flags, takes
from cosmos_fast.cli.launch import is_first, refuse_torchrun, sharing
from cosmos_fast.cli.output import print_json
from cosmos_fast.cli.paths import local_model
from cosmos_fast.cli.video2world import (
    dry_run,
    load,
    options_of,
    read_settings,
    refuse_bad_paths,
)
from cosmos_fast.cli.video2world_flags import OF_LISTS, SHARED_GPUS, VIDEO2WORLD_FLAGS

if TYPE_CHECKING:
    from cosmos_fast.cli.launch import Place
    from cosmos_fast.cli.progress import Display
    from cosmos_fast.cli.settings import Settings
    from cosmos_fast.errors import GuardrailBlocked
    from cosmos_fast.jobs import Candidate, Critic

_PANEL: Final = "Best of N"
_OWN: Final = (
    Flag("num_generations", Integer(1), "Videos, with seeds that count up. Default: 2.", _PANEL),
    Flag("num_critic_trials", Integer(1), "Answers for each video. Default: 5.", _PANEL),
    Flag(
        "critic",
        Word(metavar="MODULE:NAME"),
        "What judges the videos: a function (frames, *, trials, seed) that returns a "
        "cosmos_fast.jobs.Judgement. Default: nvidia/Cosmos-Reason1-7B, below --checkpoint_dir or "
        "from the hub.",
        _PANEL,
    ),
    Flag("skip_generation", None, "Judge the videos that lie in --save_path already.", _PANEL),
    Flag("prompt_prefix", Word(metavar="TEXT"), "Text before the prompt.", _PANEL),
    Flag("gr00t_variant", Choice(("gr1", "droid")), "GR00T's weights (not yet).", _PANEL),
)
BEST_OF_N_FLAGS: Final = (
    *_OWN,
    SHARED_GPUS,
    *(
        Flag(flag.name, Location(), "Folder of the videos. Default: output/best-of-n.", flag.panel)
        if flag.name == "save_path"
        else flag
        for flag in VIDEO2WORLD_FLAGS
        if flag.name not in OF_LISTS | {"video_save_name", "video_save_folder"}
    ),
)


@takes(BEST_OF_N_FLAGS)
def best_of_n(**given: object) -> int:
    """Make several videos of one prompt and let a critic put them in order, the best first.

    Takes the flags of video2world; --save_path is a folder. Videos are called
    {input}_seed{seed}.mp4; beside each appear {video}_score{percent}.json and .html, and
    best_of_n.html shows all of them side by side. Prints the videos, the best first. A video that
    the guardrail blocks is left out, and the exit code is 4. --checkpoint_dir may be the folder of
    the critic itself, as in the later tool. Several GPUs (--num_gpus, or torchrun) share
    each video; the critic has the first of them.
    """
    flags = parse_flags(BEST_OF_N_FLAGS, given)
    order = _order(flags)
    if order.flags.get("dry_run"):
        return _dry_run(order, as_json=bool(flags.get("json")))
    first = is_first()  # the process that will judge looks for the critic before any video is made
    critic = _function(order.own["critic"]) if first and "critic" in order.own else None
    refused: dict[str, str] = {}
    if order.own.get("skip_generation"):
        videos, seed = _made_before(order), order.flags.get("seed", 0)
        critic = critic or _reasoning_critic(order, local=False)
    else:
        settings = _placed(read_settings(order.flags), order)
        if first and critic is None:
            critic = _reasoning_critic(order, local=local_model(settings) is not None)
        refuse_bad_paths(settings)
        videos, seed = _shared(settings, order, flags, refused), settings.seed
    if critic is None:
        return ExitCode.OK
    ranking = _judge(videos, critic, order.own, seed)
    code = ExitCode.PART_OF_BATCH_FAILED if refused else ExitCode.OK
    if flags.get("json"):
        told = [
            {
                "video": str(one.video),
                "score": one.judgement.score,
                "percent": one.percent,
                "tally": one.judgement.tally,
            }
            for one in ranking
        ]
        best = str(ranking[0].video)
        blocked = {"blocked": refused} if refused else {}
        status = {"status": code.name.lower(), "exit_code": int(code)}
        print_json({**status, "best": best, "ranking": told, **blocked})
    else:
        for one in ranking:
            print(one.video)
    return code


@dataclass(frozen=True)
class _Order:
    """The flags of the command, taken apart."""

    own: dict[str, Any]
    flags: dict[str, Any]
    """Those of each video."""
    folder: Path
    critic: Path | None
    """The critic's own folder, where --checkpoint_dir names it."""


def _order(flags: dict[str, Any]) -> _Order:
    names = {flag.name for flag in _OWN}
    own = {name: value for name, value in flags.items() if name in names}
    rest = {name: value for name, value in flags.items() if name not in names}
    if "gr00t_variant" in own:
        raise MissingPartError(
            "--gr00t_variant needs the GR00T part, which does not exist yet; leave it out, or give "
            "the weights with --dit_path"
        )
    folder = Path(rest.pop("save_path", "output/best-of-n"))
    critic = None
    # The later tool's --checkpoint_dir is the critic's own folder; the original's a root.
    if "checkpoint_dir" in rest and (rest["checkpoint_dir"] / "config.json").is_file():
        critic = rest.pop("checkpoint_dir")
    return _Order(own, rest, folder, critic)


def _placed(settings: Settings, order: _Order) -> Settings:
    """``settings`` with the first video in the place of the one that video2world would write."""
    from cosmos_fast.jobs.best_of_n import name_of

    assert settings.input is not None
    output = order.folder / name_of(settings.input.stem, settings.seed)
    spelling = MappingProxyType({**settings.spelling, "output": "save_path"})
    return replace(settings, output=output, spelling=spelling)


def _dry_run(order: _Order, *, as_json: bool) -> ExitCode:
    """The settings, and what is wrong with them; nothing is made, and nothing judged."""
    from cosmos_fast.cli.paths import path_problems

    if order.own.get("skip_generation"):
        videos = _made_before(order)
        if as_json:
            print_json({"status": "ok", "exit_code": 0, "videos": [str(one) for one in videos]})
        else:
            print(*videos, sep="\n")
        return ExitCode.OK
    settings = _placed(read_settings(order.flags), order)
    problems = path_problems(settings)
    try:
        if "critic" in order.own:
            _function(order.own["critic"])
        elif local_model(settings) is not None:  # else the critic may come from the hub as well
            _reasoning_critic(order, local=True)
    except UsageError as error:
        problems.append(str(error))
    return dry_run(settings, as_json=as_json, problems=problems)


def _made_before(order: _Order) -> list[Path]:
    """The videos of ``--skip_generation``."""
    if order.flags.get("num_gpus", 1) > 1:
        raise UsageError(
            f"--num_gpus {order.flags['num_gpus']}: GPUs share the making of videos, and "
            f"--skip_generation makes none; leave it out"
        )
    from cosmos_fast.jobs.best_of_n import refuse_foreign

    refuse_torchrun("best-of-n --skip_generation", "one process judges")
    videos = sorted(order.folder.glob("*.mp4"))
    if not videos:
        raise UsageError(f"--skip_generation: there is no .mp4 in {str(order.folder)!r}")
    refuse_foreign(videos)
    return videos


def _reasoning_critic(order: _Order, *, local: bool) -> Critic:
    """The reference's critic; looked for now, read from disk when it judges.

    Args:
        local: the model lies on this machine: then so must the critic.

    Raises:
        UsageError: it is not there.
        GatedRepoError: the hub refuses the repository.
    """
    from cosmos_fast.errors import CheckpointError, GatedRepoError
    from cosmos_fast.jobs import ReasoningCritic
    from cosmos_fast.weights.companions import REASON1

    flags = order.flags
    try:
        return ReasoningCritic(
            REASON1 if order.critic is None else order.critic.resolve(),
            checkpoint_root=flags.get("checkpoint_dir", "checkpoints"),
            device=flags.get("device", "auto"),
            local_files_only=local or bool(flags.get("local_files_only")),
        )
    except GatedRepoError:
        raise
    except CheckpointError as error:
        raise UsageError(str(error)) from error


def _function(name: str) -> Critic:
    """The function that ``--critic`` names.

    Raises:
        UsageError: there is none of that name.
    """
    module, _, attribute = name.partition(":")
    try:
        sys.path.insert(0, "")  # a file in the working directory, as ``python -m`` finds it
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--critic: {name!r}: {error}; MODULE:NAME is expected") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise UsageError(f"--critic: {name!r} is not callable; name a function")
    return cast("Critic", found)


def _shared(
    settings: Settings, order: _Order, flags: dict[str, Any], refused: dict[str, str]
) -> list[Path]:
    """:func:`_generate` by all ranks; the others are gone when this returns."""
    with sharing(_share, flags, settings) as place:
        return _generate(settings, order, place, refused)


def _share(flags: dict[str, Any], place: Place) -> object:
    order = _order(flags)
    return _generate(_placed(read_settings(order.flags), order), order, place, {})


def _generate(
    settings: Settings, order: _Order, place: Place, refused: dict[str, str]
) -> list[Path]:
    """The videos; their engine is gone when this returns, so that a critic has the device.

    Args:
        refused: gets the videos that the guardrail blocked, and why.
    """
    from cosmos_fast.cli.media_paths import no_empty_folder
    from cosmos_fast.cli.progress import showing
    from cosmos_fast.cli.settings_of_profile import with_profile
    from cosmos_fast.jobs import generate_candidates
    from cosmos_fast.jobs.best_of_n import NUM_GENERATIONS

    own, folder = order.own, order.folder
    with showing(place.first) as display:
        for note in settings.notes:
            display.say(f"note: {note}")
        engine = load(settings, display, place)
        settings = with_profile(settings, engine.profile)

        def block(path: Path, error: GuardrailBlocked) -> None:
            refused[str(path)] = str(error)
            display.say(f"blocked: {path}: {error}")

        with no_empty_folder(settings.output):
            return generate_candidates(
                engine,
                settings.input,
                own.get("prompt_prefix", "") + (settings.prompt or ""),
                settings.negative_prompt,
                out=folder,
                num_generations=own.get("num_generations", NUM_GENERATIONS),
                crf=settings.crf,
                sidecar=settings.sidecar,
                on_blocked=block,
                on_video=lambda path, total: display.say(f"wrote {path}, of {total}"),
                on_step=display.step,
                on_stage=display.stage,
                **options_of(settings),
            )


def _judge(videos: list[Path], critic: Critic, own: dict[str, Any], seed: int) -> list[Candidate]:
    from cosmos_fast.cli.progress import showing
    from cosmos_fast.jobs import judge
    from cosmos_fast.jobs.best_of_n import NUM_TRIALS

    def tell(display: Display, one: Candidate) -> None:
        display.say(f"{one.percent:3d} %  {one.video}")
        tally = one.judgement.tally
        if tally and tally["unreadable"] == len(one.judgement.answers):
            display.say("warning: none of the critic's answers can be read; the score says nothing")

    with showing() as display:
        return judge(
            videos,
            critic,
            num_trials=own.get("num_critic_trials", NUM_TRIALS),
            seed=seed,
            on_candidate=lambda one: tell(display, one),
        )
