"""A page that shows videos side by side: one file, nothing fetched, no script."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_FRAME: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; media-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fafafa }}
main {{ display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)) }}
figure {{ margin: 0; background: #fff; border: 1px solid #ddd; padding: 1rem }}
figure:first-child {{ border-color: #2a7d46; border-width: 2px }}
video {{ width: 100%; background: #000 }}
b {{ font-size: 1.3rem }}
h2 {{ font-size: 1rem; margin: 1rem 0 0 }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .5rem }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{prompt}</p>
<main>
{figures}
</main>
<p>AI-generated videos, made with cosmos-fast.</p>
</body>
</html>
"""


@dataclass(frozen=True)
class Shown:
    """A video and what is said about it."""

    video: Path
    percent: int
    answers: tuple[str, ...]
    verdicts: tuple[bool | None, ...]
    """What each answer means; empty where they are not counted."""
    tally: Mapping[str, int]
    seed: int | None
    prompt: str


def page(title: str, videos: Sequence[Shown], *, answers: Literal["shown", "folded"]) -> str:
    """The page as HTML, the videos inside it, and what the critic said.

    Args:
        videos: in their order; the first is marked.
        answers: at once, or behind a line to click on.
    """
    return _FRAME.format(
        title=html.escape(title),
        prompt=html.escape(videos[0].prompt),
        figures="\n".join(_figure(one, answers) for one in videos),
    )


def _figure(one: Shown, answers: Literal["shown", "folded"]) -> str:
    data = base64.b64encode(one.video.read_bytes()).decode("ascii")
    told = [f"<b>{one.percent} %</b>", html.escape(one.video.name)]
    told += [f"seed {one.seed}"] if one.seed is not None else []
    counts = ", ".join(f"{count} {kind}" for kind, count in one.tally.items())
    told += [f"{len(one.answers)} answers{f': {counts}' if counts else ''}"] if one.answers else []
    said = "".join(
        f"{_heading(number, one.verdicts)}<pre>{html.escape(text)}</pre>"
        for number, text in enumerate(one.answers)
    )
    if said and answers == "folded":
        said = f"<details><summary>What the critic says</summary>{said}</details>"
    return (
        f'<figure><video controls loop muted src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption>{'<br>'.join(told)}</figcaption>{said}</figure>"
    )


def _heading(number: int, verdicts: Sequence[bool | None]) -> str:
    if not verdicts:
        return ""
    meaning = {True: "no fault", False: "fault", None: "unreadable"}[verdicts[number]]
    return f"<h2>Answer {number + 1}: {meaning}</h2>"
