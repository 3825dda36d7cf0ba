"""The bars an evaluation has to clear, and its figures as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tools.pusherworld.measures import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_SPEARMAN: Final = 0.85
LEAST_SHARE_OF_MUJOCO: Final = 0.7
LEAST_DISAGREEMENT: Final = 0.5
MOST_PIXELS: Final = {4: 3.0, 12: 5.0}
MOST_SHARE_OF_STILL: Final = 0.5


class Bar(NamedTuple):
    """A figure, and the side of a number it has to be on."""

    name: str
    figure: Figure
    side: str
    """"<=" or ">="."""
    limit: float

    @property
    def met(self) -> bool:
        value = self.figure.value
        return value <= self.limit if self.side == "<=" else value >= self.limit


def bars(found: dict[str, Any]) -> Iterator[Bar]:
    """Of the parts that were run."""
    if part := found.get("accuracy"):
        for name in ("from the start", "pushes"):
            for frame, limit in MOST_PIXELS.items():
                figure = part[name]["world"][str(frame)]
                yield Bar(f"block error at frame {frame}, {name}, px", figure, "<=", limit)
        yield Bar(
            "block error after the last chunk over a still picture's",
            part["share_of_still"], "<=", MOST_SHARE_OF_STILL,
        )  # fmt: skip
    if part := found.get("disagreement"):
        yield Bar("disagreement ranks error (Spearman)", part["spearman"], ">=", LEAST_DISAGREEMENT)
    if part := found.get("policies"):
        yield Bar("policies are ranked (Spearman)", part["spearman"], ">=", LEAST_SPEARMAN)
    if part := found.get("planning"):
        share = part["share_of_mujoco"]
        yield Bar("planning, share of MuJoCo's success", share, ">=", LEAST_SHARE_OF_MUJOCO)


def page(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines = [
        "# Pusher world: figures of a toy model",
        "",
        f"{found['model']} on {found['device']}, {found['num_steps']} solver steps. Brackets: 95 % "
        "bootstrap intervals.",
        "",
        "| bar | measured | needed | |",
        "|---|---|---|---|",
    ]
    for bar in bars(found):
        met = "met" if bar.met else "**missed**"
        lines.append(f"| {bar.name} | {bar.figure} | {bar.side} {bar.limit:g} | {met} |")
    for name, write in (
        ("accuracy", _accuracy), ("disagreement", _disagreement), ("policies", _policies),
        ("planning", _planning), ("released_cost", _cost), ("seconds", _seconds),
    ):  # fmt: skip
        if part := found.get(name):
            lines += ["", *write(part)]
    return "\n".join(lines) + "\n"


def _accuracy(part: dict[str, Any]) -> Iterator[str]:
    yield f"## Block error, {part['episodes']} held-out episodes, median, px"
    yield ""
    yield "| windows | frame | world | still picture |"
    yield "|---|---|---|---|"
    for name in ("from the start", "pushes"):
        both = part[name]
        for frame, figure in both["world"].items():
            yield f"| {name} | {frame} | {figure} | {both['still'][frame]} |"


def _disagreement(part: dict[str, Any]) -> Iterator[str]:
    yield f"## Disagreement of {part['samples']} samples, {part['windows']} windows"
    yield ""
    yield f"Spearman with the block's error: {part['spearman']}."


def _policies(part: dict[str, Any]) -> Iterator[str]:
    yield f"## {part['policies']} policies, {part['episodes']} episodes each"
    yield ""
    yield "| policy | success in MuJoCo | in the world |"
    yield "|---|---|---|"
    for number, (theirs, ours) in enumerate(zip(part["mujoco"], part["world"], strict=True)):
        yield f"| {number} | {theirs:.0%} | {ours:.0%} |"
    yield ""
    yield (
        f"Pearson {part['pearson']}, Spearman {part['spearman']}, mean maximum rank violation "
        f"{part['max_rank_violation']}; the same outcome in {part['same_outcome']:.0%} of episodes."
    )


def _planning(part: dict[str, Any]) -> Iterator[str]:
    yield (
        f"## Planning, {part['problems']} problems, {part['candidates']} candidates, "
        f"{part['rounds']} rounds, horizon {part['horizon']}, at most {part['decisions']} decisions"
    )
    yield ""
    yield "| searches in | success |"
    yield "|---|---|"
    for name in ("world", "mujoco", "random"):
        yield f"| {name} | {part[name]} |"
    yield ""
    yield (
        f"{part['seconds_per_decision']:.3g} s a decision, up to {part['problems_at_a_time']} "
        f"problems at a time, acting in MuJoCo included."
    )


def _cost(part: dict[str, Any]) -> Iterator[str]:
    yield f"## One such decision at released size ({part['label']})"
    yield ""
    yield (
        f"The 2B at 480 x 640, 13 frames: {part['tflop_a_forward']} TFLOP a forward, one branch, "
        f"{part['futures']} futures; at the {part['measured_tflop_per_second']:g} TFLOP/s of one "
        f"H200 in BENCHMARKS.md. Encoding and decoding come on top."
    )
    yield ""
    yield "| solver steps | forwards | PFLOP | seconds |"
    yield "|---|---|---|---|"
    for name, each in part.items():
        if isinstance(each, dict):
            steps = name.removesuffix("_steps")
            yield f"| {steps} | {each['forwards']} | {each['pflop']} | {each['seconds']} |"


def _seconds(part: dict[str, Any]) -> Iterator[str]:
    yield "## Seconds"
    yield ""
    yield ", ".join(f"{name} {seconds:.0f}" for name, seconds in part.items())
