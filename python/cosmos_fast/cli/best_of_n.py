"""``cosmos-fast best-of-n``: several videos of one prompt, judged, the best first."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from cosmos_fast.cli.exits import ExitCode, MissingPartError, UsageError
from cosmos_fast.cli.flags import Choice, Flag, Integer, Location, Word, parse_flags, takes
from cosmos_fast.cli.launch import refuse_torchrun
from cosmos_fast.cli.output import print_json
from cosmos_fast.cli.paths import local_model
from cosmos_fast.cli.video2world import dry_run, load, options_of, read_settings
from cosmos_fast.cli.video2world_flags import OF_LISTS, VIDEO2WORLD_FLAGS

if TYPE_CHECKING:
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
    the critic itself, as in the later tool.
    """
    flags = parse_flags(BEST_OF_N_FLAGS, given)
    refuse_torchrun("best-of-n", "it makes its videos on one GPU, one after the other")
    own = {name: flags.pop(name) for name in [flag.name for flag in _OWN] if name in flags}
    folder = Path(flags.pop("save_path", "output/best-of-n"))
    if "gr00t_variant" in own:
        raise MissingPartError(
            "--gr00t_variant needs the GR00T part, which does not exist yet; leave it out, or give "
            "the weights with --dit_path"
        )
    named = _function(own["critic"]) if "critic" in own else None
    judging = _critic_folder(flags)
    refused: dict[str, str] = {}
    if own.get("skip_generation"):
        videos = sorted(folder.glob("*.mp4"))
        if not videos:
            raise UsageError(f"--skip_generation: there is no .mp4 in {str(folder)!r}")
        seed = flags.get("seed", 0)
        critic = named or _critic(judging, flags, local=False)
    else:
        settings = read_settings(flags)
        if settings.dry_run:
            return dry_run(settings, as_json=bool(flags.get("json")))
        critic = named or _critic(judging, flags, local=local_model(settings) is not None)
        videos, seed = _generate(settings, folder, own, refused), settings.seed
    ranking = _judge(videos, critic, own, seed)
    code = ExitCode.PART_OF_BATCH_FAILED if refused else ExitCode.OK
    if flags.get("json"):
        told = [
            {"video": str(one.video), "score": one.judgement.score, "percent": one.percent}
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


def _critic_folder(flags: dict[str, Any]) -> Path | None:
    """The later tool's --checkpoint_dir is the critic's own folder; the original's a root."""
    given = flags.get("checkpoint_dir")
    if given is None or not (given / "config.json").is_file():
        return None
    folder: Path = flags.pop("checkpoint_dir")
    return folder


def _critic(folder: Path | None, flags: dict[str, Any], *, local: bool) -> Critic:
    """The reference's critic; looked for before any video is made, read from disk afterwards.

    Args:
        local: the model lies on this machine: then so must the critic.

    Raises:
        UsageError: it is not there.
        GatedRepoError: the hub refuses the repository.
    """
    from cosmos_fast.errors import CheckpointError, GatedRepoError
    from cosmos_fast.jobs import ReasoningCritic
    from cosmos_fast.weights.companions import REASON1

    try:
        return ReasoningCritic(
            REASON1 if folder is None else folder.resolve(),
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


def _generate(
    settings: Settings, folder: Path, own: dict[str, Any], refused: dict[str, str]
) -> list[Path]:
    """The videos; their engine is gone when this returns, so that a critic has the device.

    Args:
        refused: gets the videos that the guardrail blocked, and why.
    """
    from cosmos_fast.cli.media_paths import no_empty_folder
    from cosmos_fast.cli.paths import path_problems
    from cosmos_fast.cli.progress import showing
    from cosmos_fast.cli.settings import with_profile
    from cosmos_fast.jobs import generate_candidates
    from cosmos_fast.jobs.best_of_n import NUM_GENERATIONS

    problems = path_problems(settings)
    if problems:
        raise UsageError("; ".join(problems))
    with showing() as display:
        for note in settings.notes:
            display.say(f"note: {note}")
        engine = load(settings, display)
        settings = with_profile(settings, engine.profile)

        def block(path: Path, error: GuardrailBlocked) -> None:
            refused[str(path)] = str(error)
            display.say(f"blocked: {path}: {error}")

        with no_empty_folder(folder / "video.mp4"):
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

    with showing() as display:
        return judge(
            videos,
            critic,
            num_trials=own.get("num_critic_trials", NUM_TRIALS),
            seed=seed,
            on_candidate=lambda one: tell(display, one),
        )
