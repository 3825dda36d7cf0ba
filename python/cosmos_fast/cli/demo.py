"""``cosmos-fast demo``: a short video on any machine, in one command, through every real stage."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cosmos_fast.cli.flags import Choice, Flag, Integer, Location, Word, parse_flags, takes
from cosmos_fast.cli.output import print_json

if TYPE_CHECKING:
    import numpy as np

    from cosmos_fast.ballworld import Scenes

PROMPT: Final = (
    "A red ball moves quickly to the right and a blue ball moves quickly upwards under gravity."
)
SCENE: Final = 1
GRAMMAR: Final = (
    "A {red|green|blue|yellow|purple|orange|white} ball {is at rest|moves {slowly|quickly} "
    "{to the left|to the right|upwards|downwards}} [and a ... ball ...] {under|with no} gravity."
)
TOLD_FRAMES: Final = (8, 16, 32)
"""Frames whose tracking error is printed."""

DEMO_FLAGS: Final = (
    Flag(
        "prompt",
        Word("TEXT", "a text that is not empty"),
        f"Any text. Understood is: {GRAMMAR.replace('|', ' | ')}",
    ),
    Flag("scene", Integer(0), "What the prompt leaves open: places, sizes, light. Default: 1."),
    Flag("video_save_folder", Location(), "Folder of the files. Default: outputs."),
    Flag("seed", Integer(0, 2**32 - 1), "Of the noise. Default: 0."),
    Flag("num_steps", Integer(1, 1000), "Solver steps. Default: the model's."),
    Flag("device", Choice(("auto", "cpu", "cuda")), "Default: auto."),
    Flag("json", None, "Print one JSON object on stdout."),
    Flag("debug", None, "Show the traceback of an error."),
)


@takes(DEMO_FLAGS)
def demo(**given: object) -> None:
    """Make a short video: no weights to fetch, no GPU needed.

    Draws a start picture of the ball world, lets the small model that ships with the package
    continue it as the prompt says, and writes demo.mp4 with its prompt (.txt) and manifest (.json),
    the start picture and a contact sheet. Where the prompt is one that the simulator understands,
    the simulated video is drawn below and the distance between the balls is printed. Prints the
    video2world command that it ran.
    """
    from cosmos_fast.cli.settings import TOY_SOURCE
    from cosmos_fast.cli.video2world import make_video, read_settings, result
    from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS

    flags = parse_flags(DEMO_FLAGS, given)
    folder: Path = flags.get("video_save_folder", Path("outputs"))
    folder.mkdir(parents=True, exist_ok=True)
    scene = _stage(flags.get("prompt", PROMPT), flags.get("scene", SCENE))
    picture = _draw_start(scene, folder / "demo_start.png")
    words: dict[str, object] = {
        "model": TOY_SOURCE,
        "input_path": str(picture),
        "prompt": scene.prompt,
        "save_path": str(folder / "demo.mp4"),
        **{name: str(flags[name]) for name in ("seed", "num_steps", "device") if name in flags},
    }
    command = shlex.join(
        ["cosmos-fast", "video2world", *(w for k, v in words.items() for w in (f"--{k}", str(v)))]
    )
    _say(command)
    settings = read_settings(parse_flags(VIDEO2WORLD_FLAGS, words))
    clip, _ = make_video(settings)
    generated = clip.frames.to("np")
    sheet = _write_sheet(generated, scene, folder / "demo_frames.png")
    _say(f"wrote {sheet}")
    error = _tracking_error(generated, scene)
    _say(_tell(error))
    if flags.get("json"):
        extra: dict[str, Any] = {
            "command": command,
            "start": str(picture),
            "contact_sheet": str(sheet),
            "tracking_error": error,
        }
        print_json({**result(settings, clip), **extra})
    else:
        print(settings.output)


class _Stage(NamedTuple):
    """What the model is asked to continue."""

    prompt: str
    scenes: Scenes
    """One scene."""
    understood: bool
    """The prompt describes the scene, so that the simulation is what should come out."""


def _stage(prompt: str, seed: int) -> _Stage:
    """The scene that ``prompt`` describes; for a text beyond the grammar, the default one."""
    from cosmos_fast.ballworld import parse, say, stage

    sentence = parse(prompt)
    if sentence is not None:
        return _Stage(say(sentence), stage(sentence, seed), understood=True)
    _say(f"the prompt is none that the simulator understands, which is: {GRAMMAR}")
    default = parse(PROMPT)
    assert default is not None
    return _Stage(prompt, stage(default, seed), understood=False)


def _draw_start(scene: _Stage, path: Path) -> Path:
    from cosmos_fast.ballworld import render
    from cosmos_fast.media import write_png

    write_png(path, render(scene.scenes, 1)[0, 0])
    return path


def _write_sheet(generated: np.ndarray, scene: _Stage, path: Path) -> Path:
    """Generated frames above simulated ones."""
    from cosmos_fast.ballworld import draw_sheet, render
    from cosmos_fast.media import write_png

    rows = {"generated": generated}
    if scene.understood:
        rows["simulated"] = render(scene.scenes, len(generated))[0]
    write_png(path, draw_sheet(rows))
    return path


def _tracking_error(generated: np.ndarray, scene: _Stage) -> dict[str, float] | None:
    """Mean distance, in pixels, of the balls from the simulated ones, at some frames."""
    from cosmos_fast.ballworld import compare_tracks, render, track

    if not scene.understood:
        return None
    simulated = render(scene.scenes, len(generated))
    score = compare_tracks(
        track(generated[None], scene.scenes), track(simulated, scene.scenes), scene.scenes
    )
    return {f"frame_{n}": round(float(score.error[:, n].mean()), 2) for n in TOLD_FRAMES}


def _tell(error: dict[str, float] | None) -> str:
    if error is None:
        return "no simulation to compare with: the prompt is beyond the grammar"
    told = ", ".join(f"{pixels} at frame {n}" for n, pixels in zip(TOLD_FRAMES, error.values(),
                                                                   strict=True))  # fmt: skip
    return f"balls off the simulation by {told}, in pixels (toy model)"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
