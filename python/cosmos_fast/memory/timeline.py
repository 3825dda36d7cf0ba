"""The first passes of a stage as a picture: what is in each slot, and what the engines do."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from xml.sax.saxutils import escape

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    from cosmos_fast.memory.schedule import StagePlan

Span = tuple[int, int, int, int]
"""(block, place, start, end) in nanoseconds."""

_WIDTH: Final = 1200
_LEFT: Final = 110
_ROW: Final = 26
_COPY: Final = "#3f7fbf"
_USE: Final = "#4c9f70"
_HELD: Final = "#dfe7ef"
_INK: Final = "#000000"
_GRID: Final = "#cccccc"
_TICKS: Final = 8
_GAP: Final = 1
"""Between one box of a row and the next, where they are wide enough to spare it."""
_FINER: Final = 2
"""Pixels of a PNG a unit of length, so that small letters can be read."""
_LETTER: Final = 6
"""Width of a letter, about."""


class Box(NamedTuple):
    """A rectangle, in pixels."""

    left: float
    top: float
    width: float
    height: float
    colour: str
    tip: str = ""
    """What is told of it where the form of the picture can."""


class Label(NamedTuple):
    """Text whose line starts, is centred or ends at (x, y)."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    size: int = 11


class Drawing(NamedTuple):
    """A picture as shapes, drawn in this order, labels last."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    labels: tuple[Label, ...]

    def under(self, text: str) -> Drawing:
        """The picture with a line of text below it."""
        line = Label(8, self.height + 6, text)
        return self._replace(height=self.height + 18, labels=(*self.labels, line))

    def svg(self) -> str:
        """The picture as SVG."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
            f'height="{self.height}" font-family="sans-serif">',
            f'<rect width="{self.width}" height="{self.height}" fill="white"/>',
        ]
        parts += [
            f'<rect x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" '
            f'height="{box.height:.1f}" fill="{box.colour}"><title>{escape(box.tip)}</title></rect>'
            for box in self.boxes
        ]
        parts += [
            f'<text x="{label.x:.1f}" y="{label.y:.1f}" font-size="{label.size}" '
            f'text-anchor="{label.anchor}">{escape(label.text)}</text>'
            for label in self.labels
        ]
        return "\n".join([*parts, "</svg>\n"])

    def png(self) -> bytes:
        """The picture as PNG.

        Raises:
            InputError: Pillow is not installed.
        """
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ImportError as error:
            raise InputError(
                "a PNG picture needs Pillow: pip install pillow, or ask for an .svg file"
            ) from error
        image = Image.new("RGB", (_FINER * self.width, _FINER * self.height), "white")
        draw = ImageDraw.Draw(image)
        for box in self.boxes:
            left, top = _FINER * box.left, _FINER * box.top
            right = max(left + _FINER * box.width - 1, left)
            bottom = max(top + _FINER * box.height - 1, top)
            draw.rectangle((left, top, right, bottom), fill=box.colour)
        anchors = {"start": "ls", "middle": "ms", "end": "rs"}
        for label in self.labels:
            place = (_FINER * label.x, _FINER * label.y)
            font = ImageFont.load_default(_FINER * label.size)
            draw.text(place, label.text, fill=_INK, anchor=anchors[label.anchor], font=font)
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return stream.getvalue()


def timeline(stage: StagePlan, copies: Sequence[Span], uses: Sequence[Span]) -> Drawing:
    """
    Args:
        stage: what the spans belong to.
        copies, uses: what the engines do, in order.

    Returns:
        One row an engine, one row a slot, time to the right, two passes at most.
    """
    shown = uses[: 2 * len(stage.blocks)]
    end = max(span[3] for span in shown)
    copies = [span for span in copies if span[2] < end]
    scale = (_WIDTH - _LEFT - 10) / max(end, 1)
    rows = ["copy", "compute", *(f"slot {index}" for index in range(stage.slots))]
    slots = "1 slot" if stage.slots == 1 else f"{stage.slots} slots"
    through = f"through {slots} of {stage.slot_bytes / 2**20:.0f} MiB"
    title = (
        f"{stage.name}, {stage.shape}: {stage.streamed} of {len(stage.blocks)} blocks are streamed"
        + (f" {through}" if stage.streamed else "")
        + ("; the first two passes" if stage.passes > 2 else "")
    )
    bars = [(0, _COPY, span) for span in copies] + [(1, _USE, span) for span in shown]
    bars += [
        (2 + span[1], _HELD, (*span[:3], min(span[3], end)))
        for span in _tenures(copies, shown)
        if span[1] < stage.slots
    ]
    boxes = [*_grid(len(rows), end, scale)]
    labels = [Label(8, 20, title, size=14)]
    labels += [Label(8, _top(row) + 15, name) for row, name in enumerate(rows)]
    labels += _ticks(len(rows), end, scale)
    for row, colour, (block, _, start, until) in bars:
        name = stage.blocks[block]
        box = Box(
            _LEFT + start * scale,
            _top(row),
            max((until - start) * scale - _GAP, 0.5),
            _ROW - 6,
            colour,
            f"{name}: {_moment(start, end)} to {_moment(until, end)}",
        )
        boxes.append(box)
        short = name.rpartition(".")[2]
        if box.width >= _LETTER * len(short) + 3:
            labels.append(Label(box.left + 3, _top(row) + 14, short))
    return Drawing(_WIDTH, 40 + _ROW * len(rows) + 30, tuple(boxes), tuple(labels))


def _top(row: int) -> int:
    return 34 + _ROW * row


def _tenures(copies: Sequence[Span], uses: Sequence[Span]) -> Iterator[Span]:
    """From the start of each copy to the end of the use that it was for."""
    for block, place, start, arrived in copies:
        later = (span[3] for span in uses if span[0] == block and span[2] >= arrived)
        yield block, place, start, next(later, 1 << 62)


def _grid(rows: int, end: int, scale: float) -> Iterator[Box]:
    for tick in range(_TICKS + 1):
        yield Box(_LEFT + end * tick / _TICKS * scale, 30, 0.5, _top(rows) - 30, _GRID)


def _ticks(rows: int, end: int, scale: float) -> Iterator[Label]:
    for tick in range(_TICKS + 1):
        moment = end * tick / _TICKS
        anchor = "end" if tick == _TICKS else "middle"
        place = _LEFT + moment * scale
        yield Label(place, _top(rows) + 14, _moment(moment, end), anchor)


def _moment(nanos: float, end: int) -> str:
    """In a unit that suits a picture of ``end`` nanoseconds."""
    return f"{nanos / 1e9:.2f} s" if end >= 10**10 else f"{nanos / 1e6:.1f} ms"
