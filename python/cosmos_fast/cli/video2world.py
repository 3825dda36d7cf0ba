"""``cosmos-fast video2world``: one video from one picture or video and a prompt."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.config_file import merge, read_config
from cosmos_fast.cli.exits import ExitCode, UsageError
from cosmos_fast.cli.flags import parse_flags, takes
from cosmos_fast.cli.launch import is_first, sharing
from cosmos_fast.cli.output import print_json, print_rows
from cosmos_fast.cli.video2world_flags import EXCLUSIVE_FLAGS, VIDEO2WORLD_FLAGS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cosmos_fast import Clip, Profile, PromptUpsampler, Video2World
    from cosmos_fast.cli.launch import Place
    from cosmos_fast.cli.progress import Display
    from cosmos_fast.cli.settings import Settings
    from cosmos_fast.memory.budget import Memory
    from cosmos_fast.prompt import GuardrailChoice
    from cosmos_fast.request import Options

NO_GUARDRAIL_REASON: Final = "--disable_guardrail"
BENCHMARK_RUNS: Final = 3
"""After the one that writes the video, which is not timed; as in the reference."""


@takes(VIDEO2WORLD_FLAGS)
def video2world(**given: object) -> int:
    """Make one video from a picture or a video and a prompt.

    The flags of both generations of the reference work, with _ or - alike. The flags marked
    (original) with a path or a name choose the original generation, which sets the defaults
    named "original" below: seed 1, 24 frames a second, CRF 25, stretch, and a sidecar that holds
    the prompt alone. Without them the later generation holds: seed 0, the model's rate, CRF 15,
    cover, and a sidecar with labelled sections. Numbers are free in both. With the toy worlds that
    ship with the package, the model's own values stand in for either, and upsampler and guardrail
    do not apply. Existing files are replaced, but never the .txt and .json of another video.
    """
    flags = parse_flags(VIDEO2WORLD_FLAGS, given)
    settings = read_settings(flags)
    if settings.batch is not None:
        from cosmos_fast.cli.batch import run_list

        return run_list(settings, given)
    if settings.dry_run:
        return dry_run(settings, as_json=bool(flags.get("json")))
    refuse_bad_paths(settings)
    with sharing(_share, flags, settings) as place:
        clip, seconds = make_video(settings, place)
    if not place.first:
        return ExitCode.OK
    if flags.get("json"):
        print_json(result(settings, clip, seconds))
    else:
        print(settings.output)
    return ExitCode.OK


def _share(flags: dict[str, Any], place: Place) -> tuple[Clip, tuple[float, ...]]:
    return make_video(read_settings(flags), place)


def read_settings(flags: dict[str, Any], *, follows_text: bool = True) -> Settings:
    """The settings of a command: its config file, its flags, and the model's place and profile.

    Args:
        follows_text: False: neither an input nor a prompt is required.

    Raises:
        UsageError: contradicting or missing flags, or a part that does not exist yet.
    """
    from cosmos_fast.cli.paths import model_problems
    from cosmos_fast.cli.resolve import resolve
    from cosmos_fast.cli.settings import Origin
    from cosmos_fast.cli.settings_checks import require_prompt
    from cosmos_fast.cli.settings_of_profile import with_profile

    config = read_config(flags["config"], VIDEO2WORLD_FLAGS) if "config" in flags else {}
    values = merge(config, flags, EXCLUSIVE_FLAGS)
    origins: dict[str, Origin] = {
        name: "command line" if name in flags else "config file" for name in values
    }
    _refuse_folder(values.get("save_path"))
    settings = resolve(values, origins, follows_text=follows_text)
    profile = local_profile(settings)
    if profile is not None:
        settings = with_profile(settings, profile)
    settings.refuse_missing(*model_problems(settings))
    if settings.input is not None and follows_text:
        require_prompt(settings)
    return settings


def _refuse_folder(path: Path | None) -> None:
    """A name without an ending gets .mp4, but not where it is a folder's."""
    if path is not None and path.is_dir():
        cure = f"name the file in it, as in {str(path / 'video.mp4')!r}"
        raise UsageError(f"--save_path: {str(path)!r} is a folder; {cure}")


def local_profile(settings: Settings) -> Profile | None:
    """What a checkpoint on this machine implies; None where it is not, or not all, here.

    Raises:
        CheckpointError: it is here and cannot be used.
    """
    from cosmos_fast.cli.paths import local_checkpoint

    files = local_checkpoint(settings)
    return None if files is None else files.profile


def dry_run(
    settings: Settings,
    *,
    as_json: bool,
    problems: list[str] | None = None,
    more: Mapping[str, object] = MappingProxyType({}),
) -> ExitCode:
    """Prints what would be done, and everything that is wrong.

    Args:
        problems: what is wrong; None looks at the paths of one video.
        more: what the command was given beyond the settings.

    Returns:
        2 if anything is wrong, 3 if only the guardrail is.
    """
    from cosmos_fast.cli.paths import fetch_notes, guardrail_problems, path_problems

    problems = path_problems(settings) if problems is None else problems
    settings = replace(settings, notes=(*settings.notes, *fetch_notes(settings)))
    code = ExitCode.USAGE if problems else ExitCode.OK
    if blocked := guardrail_problems(settings):
        code = code or ExitCode.BLOCKED
        problems += blocked
    if not is_first():
        return code
    plain = settings.as_dict() | dict(more)
    if as_json:
        report = {"status": code.name.lower(), "exit_code": int(code)}
        print_json({**report, "settings": plain, "problems": problems})
    else:
        origins, notes = plain.pop("origins"), plain.pop("notes")
        del plain["missing"], plain["dry_run"]
        if settings.batch is None:
            for name in ("batch", "batch_folder", "input_root", "resume"):
                del plain[name]
        print_rows(
            (name, origins.get(name, ""), "-" if value is None else str(value))
            for name, value in plain.items()
        )
        print_rows(("note", note) for note in notes)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return code


def refuse_bad_paths(settings: Settings) -> None:
    """
    Raises:
        UsageError: a path is wrong.
    """
    from cosmos_fast.cli.paths import path_problems

    problems = path_problems(settings)
    if problems:
        raise UsageError("; ".join(problems))


def make_video(settings: Settings, place: Place | None = None) -> tuple[Clip, tuple[float, ...]]:
    """Loads the model and makes the video, with progress on stderr; of several ranks on the first.

    Returns:
        The clip, and the seconds of each further run of a benchmark.

    Raises:
        UsageError: a path is wrong.
        CosmosFastError: whatever loading or generating raises.
    """
    from cosmos_fast.cli.media_paths import no_empty_folder
    from cosmos_fast.cli.progress import showing

    refuse_bad_paths(settings)
    with showing(place is None or place.first) as display:
        for note in settings.notes:
            display.say(f"note: {note}")
        engine = load(settings, display, place)
        with no_empty_folder(settings.output):
            clip = generate(engine, settings, display)
        for note in clip.report.notes:
            display.say(f"note: {note}")
        display.say(clip.report.table())
        for path in written(settings.output):
            display.say(f"wrote {path}")
        seconds = timed(engine, settings) if settings.benchmark else ()
        if seconds:
            each = ", ".join(f"{one:.3f}" for one in seconds)
            display.say(f"benchmark: {statistics.mean(seconds):.3f} s, the mean of {each}")
    return clip, seconds


def load(settings: Settings, display: Display, place: Place | None = None) -> Video2World:
    """The engine that the settings ask for, for this rank where there are several."""
    from cosmos_fast import Video2World

    return Video2World.from_pretrained(
        settings.source,
        variant=settings.variant,
        revision=settings.revision,
        local_files_only=settings.local_files_only,
        checkpoint_root=settings.checkpoint_root,
        vae=settings.vae,
        text_encoder=settings.text_encoder,
        text_precision="bf16" if settings.downcast_text_encoder else "stored",
        tokenizer=settings.tokenizer,
        ema=settings.load_ema,
        device=place.device if place is not None else settings.device,
        parallel=place.parallel if place is not None else None,
        precision=settings.precision,
        memory=memory(settings),
        offload=settings.offload,
        rope_table=settings.rope_table,
        guardrail=guardrail(settings),
        upsampler=upsampler(settings),
        on_stage=display.stage,
    )


def memory(settings: Settings) -> Memory:
    """What the engine may take of device and host."""
    from cosmos_fast import Budget

    if settings.host_memory is None:
        return settings.memory
    device = None if settings.memory == "auto" else settings.memory
    return Budget(device, settings.host_memory)


def guardrail(settings: Settings) -> GuardrailChoice:
    """The guardrail that the settings ask for."""
    from cosmos_fast import DefaultGuardrail, NoGuardrail

    if settings.guardrail == "off":
        return NoGuardrail(reason=NO_GUARDRAIL_REASON)
    if settings.guardrail == "not applicable":
        return "default"
    if settings.guardrail == "default" and settings.guardrail_placement == "device":
        return "default"
    return DefaultGuardrail(placement=settings.guardrail_placement)


def upsampler(settings: Settings) -> PromptUpsampler | None:
    """The upsampler that the settings ask for."""
    from cosmos_fast import PromptUpsampler
    from cosmos_fast.cli.paths import upsampler_model

    if settings.upsampler != "on":
        return None
    return PromptUpsampler(upsampler_model(settings), settings.upsampler_placement)


def generate(engine: Video2World, settings: Settings, display: Display) -> Clip:
    """Makes the video of the settings and writes it with its sidecar and manifest."""
    from cosmos_fast.cli.settings_of_profile import with_profile

    settings = with_profile(settings, engine.profile)
    assert settings.input is not None
    return engine.generate_to(
        settings.output,
        settings.input,
        settings.prompt or "",
        settings.negative_prompt,
        crf=settings.crf,
        sidecar=settings.sidecar,
        on_step=display.step,
        on_stage=display.stage,
        **options_of(settings),
    )


def timed(engine: Video2World, settings: Settings) -> tuple[float, ...]:
    """Seconds of each of three more runs, as the reference counts them: everything from reading the
    input to the checked frames, but neither loading the model nor writing the file."""
    from cosmos_fast.cli.settings_of_profile import with_profile

    settings = with_profile(settings, engine.profile)
    assert settings.input is not None
    seconds = []
    for _ in range(BENCHMARK_RUNS):
        began = time.perf_counter()
        clip = engine.generate(
            settings.input, settings.prompt or "", settings.negative_prompt, **options_of(settings)
        )
        clip.frames.to("np")  # waits for the device
        seconds.append(time.perf_counter() - began)
    return tuple(seconds)


def options_of(settings: Settings) -> Options:
    """What ``generate`` is told of the settings; None is the profile's value."""
    size = None
    if settings.height is not None and settings.width is not None:
        size = (settings.height, settings.width)
    return {
        "size": size,
        "num_frames": settings.num_frames,
        "fps": settings.fps,
        "num_conditional_frames": settings.num_conditional_frames,
        "num_steps": settings.num_steps,
        "guidance": settings.guidance,
        "seed": settings.seed,
        "fit": settings.fit,
    }


def written(output: Path) -> list[Path]:
    """The files of a finished video."""
    from cosmos_fast.clip import companions

    return [output, *companions(output)]


def result(settings: Settings, clip: Clip, seconds: tuple[float, ...] = ()) -> dict[str, Any]:
    """What ``--json`` prints of a finished video, and of the further runs of a benchmark."""
    video, sidecar, manifest = written(settings.output)
    extra: dict[str, Any] = {}
    if seconds:
        extra["benchmark"] = {"mean_seconds": statistics.mean(seconds), "seconds": list(seconds)}
    return extra | {
        "status": "ok",
        "exit_code": 0,
        "video": str(video),
        "sidecar": str(sidecar),
        "manifest": str(manifest),
        "settings": settings.as_dict(),
        "report": clip.report.as_dict(),
    }
