"""Lines of a list that cannot be jobs: over twenty kinds, and a word of what is said of each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

LONG: Final = 1 << 20


def job(**entry: Any) -> bytes:
    """A line that is right, but for what is given."""
    line = {"visual_input": "start.png", "prompt": "A grey heron.", **entry}
    return json.dumps({key: value for key, value in line.items() if value is not ...}).encode()


def prepare(root: Path) -> None:
    """What the lines below refer to."""
    (root / "folder").mkdir()
    (root / "empty.png").touch()
    (root / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    (root / "link.png").symlink_to(root / "start.png")
    (root / "elsewhere").symlink_to("/usr")
    os.mkfifo(root / "pipe.png")


BAD: Final[dict[str, tuple[bytes, str]]] = {
    "cut off": (job()[:-9], "not valid JSON"),
    "not JSON": (b"start.png, A grey heron.", "not valid JSON"),
    "an array": (b'["start.png"]', "object in braces"),
    "a number": (b"12", "object in braces"),
    "not UTF-8": (b'{"visual_input": "start.png", "prompt": "\xff"}', "not UTF-8"),
    "half a surrogate": (job(prompt="\ud800"), "no valid Unicode"),
    "too deep": (b"[" * 100_000, "too deep"),
    "too long": (job(prompt="a" * LONG), "at most"),
    "a huge number": (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "not a number": (job()[:-1] + b', "guidance": NaN}', "no number"),
    "a key twice": (job()[:-1] + b', "prompt": "B"}', "given twice"),
    "an unknown key": (job(promt="A"), "prompt is one"),
    "two inputs": (job(input_video="start.png"), "same thing"),
    "no input": (job(visual_input=...), "no input"),
    "no prompt": (job(prompt=...), "no prompt"),
    "a blank prompt": (job(prompt="  "), "no prompt"),
    "an input of the wrong type": (job(visual_input=3), "a text is needed"),
    "an empty input": (job(visual_input=""), "not empty"),
    "a null character": (job(visual_input="a\0.png"), "not empty"),
    "a missing file": (job(visual_input="gone.png"), "No such file"),
    "a folder": (job(visual_input="folder"), "no file"),
    "a pipe": (job(visual_input="pipe.png"), "no file"),
    "an empty file": (job(visual_input="empty.png"), "file is empty"),
    "a torn picture": (job(visual_input="torn.png"), "torn.png"),
    "a way out": (job(visual_input="../start.png"), "leads out"),
    "an absolute path": (job(visual_input="/etc/hostname"), "not below"),
    "a symbolic link": (job(visual_input="link.png"), "symbolic link"),
    "a linked folder": (job(visual_input="elsewhere/bin/env"), "symbolic link"),
    "a video elsewhere": (job(output_video="../a.mp4"), "leads out"),
    "a video that is none": (job(output_video="a.avi"), ".mp4 file"),
    "a seed as text": (job(seed="1"), "whole number"),
    "a seed as a truth": (job(seed=True), "whole number"),
    "a negative seed": (job(seed=-1), "seed"),
    "a switch as a number": (job(upsample=0), "true or false"),
    "steps in halves": (job(num_steps=1.5), "whole number"),
    "no steps": (job(num_steps=0), "step"),
    "a length of 6": (job(num_frames=6), "6 frames"),
    "half a size": (job(height=32), "give both"),
    "a side of no pixels": (job(height=0, width=0), "size"),
    "an unknown fit": (job(fit="crop"), "fit"),
    "a quality beyond": (job(crf=52), "crf"),
    "a rate of 0": (job(fps=0), "fps"),
    "a text as a number": (job(guidance="7"), "a number is needed"),
}
