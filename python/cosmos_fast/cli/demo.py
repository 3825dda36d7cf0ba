"""``cosmos-fast demo``: a short video on any machine, in one command, through every real stage."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.flags import Choice, Flag, Integer, Location, parse_flags, takes
from cosmos_fast.cli.output import print_json

if TYPE_CHECKING:
    from cosmos_fast import Clip

TRAINED_WORLD: Final = "ballworld"
SCENE_SEED: Final = 7

DEMO_FLAGS: Final = (
    Flag("video_save_folder", Location(), "Folder of the files. Default: outputs."),
    Flag("seed", Integer(0, 2**32 - 1), "Default: 0."),
    Flag("num_steps", Integer(1), "Solver steps. Default: the model's."),
    Flag("device", Choice(("auto", "cpu", "cuda")), "Default: auto."),
    Flag("json", None, "Print one JSON object on stdout."),
    Flag("debug", None, "Show the traceback of an error."),
)


@takes(DEMO_FLAGS)
def demo(**given: object) -> None:
    """Make a short video: no weights to fetch, no GPU needed.

    Draws a start picture of the ball world, lets the small model that ships with the package
    continue it, and writes demo.mp4 with its prompt (.txt) and manifest (.json), the start picture
    and a contact sheet. Prints the video2world command that it ran.
    """
    from cosmos_fast.cli.video2world import make_video, read_settings, result
    from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS

    flags = parse_flags(DEMO_FLAGS, given)
    folder: Path = flags.get("video_save_folder", Path("outputs"))
    folder.mkdir(parents=True, exist_ok=True)
    model = _model(folder)
    picture = folder / "demo_start.png"
    words: dict[str, object] = {
        "model": str(model),
        "input_path": str(picture),
        "prompt": _draw_start(picture),
        "save_path": str(folder / "demo.mp4"),
        **{name: str(flags[name]) for name in ("seed", "num_steps", "device") if name in flags},
    }
    command = shlex.join(
        ["cosmos-fast", "video2world", *(w for k, v in words.items() for w in (f"--{k}", str(v)))]
    )
    _say(command)
    settings = read_settings(parse_flags(VIDEO2WORLD_FLAGS, words))
    clip = make_video(settings)
    sheet = _write_sheet(clip, folder / "demo_frames.png")
    _say(f"wrote {sheet}")
    if model != TRAINED_WORLD:
        _say("the weights are small and random: the video shows noise, made by every real stage")
    if flags.get("json"):
        extra: dict[str, Any] = {
            "command": command,
            "start": str(picture),
            "contact_sheet": str(sheet),
            "trained": model == TRAINED_WORLD,
        }
        print_json({**result(settings, clip), **extra})
    else:
        print(settings.output)


def _model(folder: Path) -> str:
    """The trained world where the package has it, else random weights made on the spot."""
    from cosmos_fast.cli.random_world import make_random_world
    from cosmos_fast.weights import packaged_worlds

    if TRAINED_WORLD in packaged_worlds():
        return TRAINED_WORLD
    _say("no trained world in this package: making small random weights")
    return str(make_random_world(folder / "random_world"))


def _draw_start(path: Path) -> str:
    """Draws the first frame of a scene and returns the scene's prompt."""
    from cosmos_fast.ballworld import describe, render, sample
    from cosmos_fast.media import write_png

    scene = sample(1, SCENE_SEED, "held-out")
    write_png(path, render(scene, 1)[0, 0])
    return describe(scene)[0]


def _write_sheet(clip: Clip, path: Path) -> Path:
    from cosmos_fast.cli.contact_sheet import contact_sheet
    from cosmos_fast.media import write_png

    write_png(path, contact_sheet(clip.frames.to("np")))
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
