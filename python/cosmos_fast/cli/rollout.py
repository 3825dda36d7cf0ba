"""``cosmos-fast rollout``: a long video, clip after clip, or a world that follows actions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.exits import ExitCode, MissingPartError
from cosmos_fast.cli.flags import Choice, Flag, Integer, Location, parse_flags, takes
from cosmos_fast.cli.launch import sharing
from cosmos_fast.cli.output import print_json
from cosmos_fast.cli.video2world import (
    dry_run,
    load,
    options_of,
    read_settings,
    refuse_bad_paths,
    written,
)
from cosmos_fast.cli.video2world_flags import OF_LISTS, SHARED_GPUS, VIDEO2WORLD_FLAGS
from cosmos_fast.cli.world_rollout import is_of_worlds, world_rollout
from cosmos_fast.cli.world_rollout_flags import WORLD_FLAGS

if TYPE_CHECKING:
    from cosmos_fast import Video2World
    from cosmos_fast.cli.launch import Place
    from cosmos_fast.cli.progress import Display
    from cosmos_fast.cli.settings import Settings
    from cosmos_fast.jobs import Rollout
    from cosmos_fast.jobs.rollout import Handover

_PANEL: Final = "Long video"
ROLLOUT_FLAGS: Final = (
    Flag("num_chunks", Integer(1), "Clips that make up the video. Default: 6.", _PANEL),
    Flag(
        "handover",
        Choice(("memory", "file", "both")),
        "How the last frames of a clip reach the next: memory as they are, file through JPEG or "
        "H.264 as the reference does, both for comparison. Default: memory.",
        _PANEL,
    ),
    Flag("batch_input_json", Location(), "List of long videos to make (not yet).", _PANEL),
    SHARED_GPUS,
    *WORLD_FLAGS,
    *(flag for flag in VIDEO2WORLD_FLAGS if flag.name not in OF_LISTS),
)
_FILE_ROUTE: Final = "_file_route"


@takes(ROLLOUT_FLAGS)
def rollout(**given: object) -> int:
    """Make a long video: clips that each begin with the last frames of the one before.

    Takes the flags of video2world; the clip's length is --num_video_frames. Clip number c has the
    seed --seed plus c. Prints how the picture drifts from clip to clip: how well each clip
    reproduces the frames it was given, and how brightness, contrast, saturation and sharpness
    compare with the first clip's. Several GPUs (--num_gpus, or torchrun) share each clip.

    With --actions or --policy an action-conditioned model carries out recorded actions, or those of
    a policy, from the first frame of --input_path on: one frame an action, every frame once. No
    text is followed. Size, rate, steps and guidance are the model's own unless given. A world steps
    on one GPU.
    """
    flags = parse_flags(ROLLOUT_FLAGS, given)
    if "batch_input_json" in flags:
        raise MissingPartError(
            "--batch_input_json needs the lists-of-long-videos part, which does not exist yet; "
            "give the entries one by one with --input_path, --prompt and --save_path"
        )
    if is_of_worlds(flags):
        return world_rollout(flags)
    settings = _settings(flags)
    if settings.dry_run:
        return dry_run(settings, as_json=bool(flags.get("json")))
    refuse_bad_paths(settings)
    with sharing(_share, flags, settings) as place:
        made = _make(settings, flags, place)
    if not place.first:
        return ExitCode.OK
    if flags.get("json"):
        print_json(
            {
                "status": "ok",
                "exit_code": 0,
                "settings": settings.as_dict(),
                "videos": [_result(path, one) for path, one in made.items()],
            }
        )
    else:
        for path in made:
            print(path)
    return ExitCode.OK


def _settings(flags: dict[str, Any]) -> Settings:
    return read_settings({k: v for k, v in flags.items() if k not in ("num_chunks", "handover")})


def _share(flags: dict[str, Any], place: Place) -> object:
    return _make(_settings(flags), flags, place)


def _make(settings: Settings, flags: dict[str, Any], place: Place) -> dict[Path, Rollout]:
    """The long videos, by where they were written; of several ranks the first writes."""
    from cosmos_fast.cli.progress import showing

    handover: str = flags.get("handover", "memory")
    made: dict[Path, Rollout] = {}
    with showing(place.first) as display:
        for note in settings.notes:
            display.say(f"note: {note}")
        engine = load(settings, display, place)
        ways: tuple[Handover, ...] = {
            "memory": ("memory",),
            "file": ("file",),
            "both": ("memory", "file"),
        }[handover]  # type: ignore[assignment]
        for way in ways:
            path = settings.output
            if handover == "both" and way == "file":
                path = path.with_name(f"{path.stem}{_FILE_ROUTE}{path.suffix}")
            long = _one(engine, settings, flags.get("num_chunks"), way, display)
            if not place.first:
                continue
            long.save(path, crf=settings.crf, sidecar=settings.sidecar)
            made[path] = long
            print(f"handed over by {way}:\n{long.drift_table()}", file=sys.stderr, flush=True)
            for file in written(path):
                display.say(f"wrote {file}")
    return made


def _one(
    engine: Video2World,
    settings: Settings,
    num_chunks: int | None,
    way: Handover,
    display: Display,
) -> Rollout:
    from cosmos_fast.cli.settings_of_profile import with_profile
    from cosmos_fast.jobs import rollout as run
    from cosmos_fast.jobs.rollout import NUM_CHUNKS

    settings = with_profile(settings, engine.profile)
    return run(
        engine,
        settings.input,
        settings.prompt or "",
        settings.negative_prompt,
        num_chunks=num_chunks or NUM_CHUNKS,
        handover=way,
        on_chunk=lambda row, total: display.say(f"clip {row.chunk + 1} of {total} is made"),
        on_step=display.step,
        on_stage=display.stage,
        **options_of(settings),
    )


def _result(path: Path, long: Rollout) -> dict[str, Any]:
    video, sidecar, manifest = written(path)
    return {
        "video": str(video),
        "sidecar": str(sidecar),
        "manifest": str(manifest),
        "frames": len(long.frames),
        "drift": [row.as_dict() for row in long.drift],
        "report": long.report.as_dict(),
    }
