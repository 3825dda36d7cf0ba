"""``cosmos-fast rollout``: a long video, clip after clip, or a world that follows actions."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.exits import ExitCode, MissingPartError
from cosmos_fast.cli.flags import Choice, Flag, Integer, Location, parse_flags, takes
from cosmos_fast.cli.interrupt import leaving
from cosmos_fast.cli.kept import Keeping
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
    from cosmos_fast.jobs.kept import KeptClips
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
    Flag("resume", None, "Go on behind the clips that an interrupted run has kept.", _PANEL),
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

    Until the video is written its clips are kept, without loss, in a hidden folder beside it: ended
    at any moment, the same command with --resume goes on behind the last whole clip, and the video
    is the one that a single run would have made. Without --resume such clips are replaced.

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
    keeping = _keeping(settings, flags)
    with leaving(keeping.words), sharing(_share, flags, settings) as place:
        if place.parallel is None:
            keeping.refuse_taken()
        made = _make(settings, flags, place, keeping)
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
    own = ("num_chunks", "handover", "resume")
    settings = read_settings({name: flags[name] for name in flags if name not in own})
    return replace(settings, resume=bool(flags.get("resume")))


def _ways(settings: Settings, flags: dict[str, Any]) -> dict[Path, Handover]:
    """How frames are handed over in each video."""
    path, way = settings.output, flags.get("handover", "memory")
    if way != "both":
        return {path: way}
    return {path: "memory", path.with_name(f"{path.stem}{_FILE_ROUTE}{path.suffix}"): "file"}


def _num_chunks(flags: dict[str, Any]) -> int:
    from cosmos_fast.jobs.rollout import NUM_CHUNKS

    return flags.get("num_chunks") or NUM_CHUNKS


def _keeping(settings: Settings, flags: dict[str, Any]) -> Keeping:
    videos = list(_ways(settings, flags))
    return Keeping(videos, _num_chunks(flags), resume=settings.resume)


def _share(flags: dict[str, Any], place: Place) -> object:
    settings = _settings(flags)
    return _make(settings, flags, place, _keeping(settings, flags))


def _make(
    settings: Settings, flags: dict[str, Any], place: Place, keeping: Keeping
) -> dict[Path, Rollout]:
    """The long videos, by where they were written; of several ranks the first writes."""
    from cosmos_fast.cli.media_paths import no_empty_folder
    from cosmos_fast.cli.progress import showing

    made: dict[Path, Rollout] = {}
    with showing(place.first) as display:
        for note in settings.notes:
            display.say(f"note: {note}")
        engine = load(settings, display, place)
        ways = _ways(settings, flags)
        with no_empty_folder(settings.output), keeping.opened(engine, display.say) as folders:
            for (path, way), folder in zip(ways.items(), folders, strict=True):
                long = _one(engine, settings, _num_chunks(flags), way, folder, display)
                if not place.first:
                    continue
                long.save(path, crf=settings.crf, sidecar=settings.sidecar)
                made[path] = long
                for note in long.report.notes:
                    display.say(f"note: {note}")
                print(f"handed over by {way}:\n{long.drift_table()}", file=sys.stderr, flush=True)
                for file in written(path):
                    display.say(f"wrote {file}")
    return made


def _one(
    engine: Video2World,
    settings: Settings,
    num_chunks: int,
    way: Handover,
    folder: KeptClips | Path,
    display: Display,
) -> Rollout:
    from cosmos_fast.cli.settings_of_profile import with_profile
    from cosmos_fast.jobs import rollout as run

    settings = with_profile(settings, engine.profile)
    return run(
        engine,
        settings.input,
        settings.prompt or "",
        settings.negative_prompt,
        num_chunks=num_chunks,
        handover=way,
        keep=folder,
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
