"""``cosmos-fast batch``: every video of a list, the models loaded once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.exits import ExitCode, UsageError
from cosmos_fast.cli.flags import Flag, Location, parse_flags, takes
from cosmos_fast.cli.launch import refuse_torchrun
from cosmos_fast.cli.output import print_json
from cosmos_fast.cli.video2world import (
    dry_run,
    load,
    local_profile,
    options_of,
    read_settings,
)
from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS

if TYPE_CHECKING:
    from cosmos_fast import Profile
    from cosmos_fast.cli.progress import Display
    from cosmos_fast.cli.settings import Settings
    from cosmos_fast.jobs import BatchSummary, Defaults, Row
    from cosmos_fast.jobs.worker import Jobs

_OF_ONE_VIDEO: Final = frozenset(
    {"input_path", "input_image_or_video_path", "save_path", "video_save_name", "benchmark"}
)
BATCH_FLAGS: Final = (
    Flag("jobs", Location(), "The list, in either form.", "List"),
    Flag("out", Location(), "Folder of the videos. Default: outputs.", "List"),
    *(flag for flag in VIDEO2WORLD_FLAGS if flag.name not in _OF_ONE_VIDEO),
)


@takes(BATCH_FLAGS)
def batch(**given: object) -> int:
    """Make every video of a list, the models loaded once.

    The list is JSON lines ({"visual_input": "a.jpg", "prompt": "..."}) or a JSON array
    ({"input_video": "a.jpg", "prompt": "...", "output_video": "a.mp4"}); its content says which.
    An entry may set every argument of its video: negative_prompt, height, width, num_frames, fps,
    num_conditional_frames, num_steps, guidance, seed, fit, crf, upsample (true or false). Videos
    without a name are called 0.mp4, 1.mp4 and so on (array: output_0.mp4). Inputs stay below
    --input_root, videos below --out. A job that fails costs that job: the exit code is 4, and
    {list}.summary.json says why.

    Killed at any moment, the same command with --resume makes what is left and repeats nothing
    that is whole. Several commands with --resume may share one folder, on one machine or on several
    with a shared disk; --num_gpus N starts one worker for each GPU.
    """
    flags = parse_flags(BATCH_FLAGS, given)
    lists = [name for name in ("jobs", "batch_input_path", "batch_input_json") if name in flags]
    if len(lists) != 1:
        raise UsageError("one list is needed: give --jobs, with JSON lines or a JSON array")
    if "jobs" in flags:
        given = {**given, "batch_input_json": given["jobs"], "jobs": None}
        if flags.get("out") is None and "video_save_folder" not in flags:
            given["out"] = "outputs"
    return run_list(read_settings(parse_flags(BATCH_FLAGS, given)), given)


def run_list(settings: Settings, given: Mapping[str, object]) -> int:
    """Makes the videos of ``settings.batch``.

    Args:
        given: the raw flags, for workers in processes of their own.
    """
    assert settings.batch is not None
    refuse_torchrun("batch", "give --num_gpus N, which starts one worker for each GPU")
    if settings.dry_run:
        return _dry_run(settings, as_json=bool(given.get("json")))
    _check(settings)
    if settings.num_gpus is not None and settings.num_gpus > 1:
        from cosmos_fast.cli.workers import run_workers

        summary = run_workers(settings, given)
    else:
        summary = run_here(settings)
    return _tell(settings, summary, as_json=bool(given.get("json")))


def run_here(settings: Settings, *, join: int | None = None, quiet: bool = False) -> BatchSummary:
    """Loads the engine and works on the list in this process.

    Args:
        join: number of the run that another process has begun.
        quiet: tell of jobs, not of their stages and steps.
    """
    from cosmos_fast.cli.progress import PlainDisplay, showing
    from cosmos_fast.jobs import run_batch

    assert settings.batch is not None
    assert settings.batch_folder is not None
    with showing() as display:
        for note in settings.notes if join is None else ():
            display.say(f"note: {note}")
        teller: Display = PlainDisplay() if quiet else display
        engine = load(settings, teller)
        return run_batch(
            engine,
            settings.batch,
            settings.batch_folder,
            resume=settings.resume,
            join=join,
            input_root=settings.input_root,
            defaults=defaults_of(settings, engine.profile),
            model=identity_of(settings),
            on_row=_rows_to(teller),
            on_step=None if quiet else display.step,
            on_stage=None if quiet else display.stage,
        )


def defaults_of(settings: Settings, profile: Profile | None) -> Defaults:
    """What the command says for entries that say nothing."""
    from cosmos_fast.cli.settings_of_profile import with_profile
    from cosmos_fast.jobs import Defaults

    if profile is not None:
        settings = with_profile(settings, profile)
    return Defaults(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        options=options_of(settings),
        crf=settings.crf,
        sidecar=settings.sidecar,
        needs_prompt=settings.upsampler != "on",
    )


def identity_of(settings: Settings) -> str:
    """The model, and what of its loading changes a video."""
    from cosmos_fast.cli.paths import upsampler_model

    parts = (
        settings.source, settings.variant, settings.revision, settings.vae, settings.text_encoder,
        settings.precision, settings.rope_table, "ema" if settings.load_ema else None,
        "bf16 text" if settings.downcast_text_encoder else None,
        f"upsampler {upsampler_model(settings)}" if settings.upsampler == "on" else None,
    )  # fmt: skip
    return " ".join(str(part) for part in parts if part is not None)


def plan_of(settings: Settings, listed: Any, profile: Profile | None) -> Jobs:
    """What the list means under these settings."""
    from cosmos_fast.jobs.engines import identity
    from cosmos_fast.jobs.roots import Root
    from cosmos_fast.jobs.worker import Jobs

    assert settings.batch_folder is not None
    return Jobs(
        listed,
        defaults_of(settings, profile),
        inputs=Root(settings.input_root, "give a folder above it with --input_root"),
        outputs=Root(settings.batch_folder, "give a folder above it with --out"),
        model=identity(identity_of(settings), guardrail_identity(settings, profile)),
    )


def guardrail_identity(settings: Settings, profile: Profile | None) -> str:
    """As the engine that the settings load tells of itself."""
    from cosmos_fast.cli.video2world import guardrail
    from cosmos_fast.jobs.engines import NO_GUARDRAIL
    from cosmos_fast.prompt import NoGuardrail

    choice = guardrail(settings)
    toy = profile is not None and profile.toy
    is_none = isinstance(choice, NoGuardrail) or (choice == "default" and toy)
    return NO_GUARDRAIL if is_none else "default"


def _check(settings: Settings) -> None:
    """What can be known to be wrong before anything heavy is loaded."""
    from cosmos_fast.jobs.batch import check_batch

    if problems := _problems(settings):
        raise UsageError("; ".join(problems))
    assert settings.batch is not None
    assert settings.batch_folder is not None
    check_batch(settings.batch, settings.batch_folder, resume=settings.resume)


def _problems(settings: Settings) -> list[str]:
    from cosmos_fast.cli.media_paths import folder_problems
    from cosmos_fast.cli.paths import loading_problems

    assert settings.batch_folder is not None
    problems = loading_problems(settings)
    problems += folder_problems(settings.flag("batch_folder"), settings.batch_folder)
    if not settings.input_root.is_dir():
        problems.append(f"--input_root: {str(settings.input_root)!r} is not a folder; name one")
    return problems


def _dry_run(settings: Settings, *, as_json: bool) -> ExitCode:
    """The settings, and every entry that cannot be a job; exit code 2 if there is one."""
    from cosmos_fast.jobs.job_list import JobList

    assert settings.batch is not None
    with JobList(settings.batch) as listed:
        profile = local_profile(settings)
        if profile is not None and profile.actions is not None:
            profile = None  # no list is for such a model, which is said once
        wrong = [
            f"{settings.batch}:{line}: {problem}"
            for line, problem in plan_of(settings, listed, profile).problems(profile)
        ]
        print(f"{len(listed)} jobs, {len(wrong)} of them wrong", file=sys.stderr)
    return dry_run(settings, as_json=as_json, problems=_problems(settings) + wrong)


def _rows_to(display: Display) -> Any:
    def on_row(row: Row, settled: int, total: int) -> None:
        if row.status != "kept":
            display.say(f"{settled}/{total} {row}")

    return on_row


def _tell(settings: Settings, summary: BatchSummary, *, as_json: bool) -> ExitCode:
    from cosmos_fast.jobs.batch import summary_of

    assert settings.batch is not None
    assert settings.batch_folder is not None
    code = ExitCode.OK if summary.ok else ExitCode.PART_OF_BATCH_FAILED
    path = summary_of(Path(settings.batch_folder), settings.batch)
    print(f"{summary}", file=sys.stderr)
    if as_json:
        print_json(
            {
                "status": code.name.lower(),
                "exit_code": int(code),
                "folder": str(settings.batch_folder),
                "summary_file": str(path),
                "summary": summary.as_dict(),
            }
        )
    else:
        print(path)
    return code
