"""The first passes of a stage as a picture: what is in each slot, and what the engines do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

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
_TICKS: Final = 8


def timeline_svg(stage: StagePlan, copies: Sequence[Span], uses: Sequence[Span]) -> str:
    """
    Args:
        stage: what the spans belong to.
        copies, uses: what the engines do, in order.

    Returns:
        SVG: one row an engine, one row a slot, time to the right, two passes at most.
    """
    shown = uses[: 2 * len(stage.blocks)]
    end = max(span[3] for span in shown)
    copies = [span for span in copies if span[2] < end]
    scale = (_WIDTH - _LEFT - 10) / max(end, 1)
    rows = ["copy", "compute", *(f"slot {index}" for index in range(stage.slots))]
    height = 40 + _ROW * len(rows) + 30
    title = (
        f"{stage.name}: {stage.streamed} of {len(stage.blocks)} blocks through {stage.slots} "
        f"slots of {stage.slot_bytes / 2**20:.0f} MiB, {stage.shape}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>',
    ]
    for row, name in enumerate(rows):
        parts.append(f'<text x="8" y="{_top(row) + 15}">{escape(name)}</text>')
    parts += _bars(stage, 0, copies, _COPY, scale)
    parts += _bars(stage, 1, shown, _USE, scale)
    for block, place, start, until in _tenures(copies, shown):
        if place < stage.slots:
            parts.append(_bar(2 + place, start, min(until, end), _HELD, scale, stage.blocks[block]))
    parts += _axis(len(rows), end, scale)
    return "\n".join([*parts, "</svg>\n"])


def _top(row: int) -> int:
    return 34 + _ROW * row


def _bars(
    stage: StagePlan, row: int, spans: Sequence[Span], colour: str, scale: float
) -> Iterator[str]:
    for block, _, start, end in spans:
        yield _bar(row, start, end, colour, scale, stage.blocks[block])


def _bar(row: int, start: int, end: int, colour: str, scale: float, name: str) -> str:
    left, width = _LEFT + start * scale, max((end - start) * scale, 0.5)
    shape = (
        f'<rect x="{left:.1f}" y="{_top(row)}" width="{width:.1f}" height="{_ROW - 6}" '
        f'fill="{colour}" stroke="white" stroke-width="0.5"><title>{escape(name)}: '
        f"{start / 1e6:.2f} to {end / 1e6:.2f} ms</title></rect>"
    )
    short = name.rpartition(".")[2]
    if width < 6 * len(short) + 3:
        return shape
    return f'{shape}<text x="{left + 3:.1f}" y="{_top(row) + 14}">{escape(short)}</text>'


def _tenures(copies: Sequence[Span], uses: Sequence[Span]) -> Iterator[Span]:
    """From the start of each copy to the end of the use that it was for."""
    for block, place, start, arrived in copies:
        later = (span[3] for span in uses if span[0] == block and span[2] >= arrived)
        yield block, place, start, next(later, 1 << 62)


def _axis(rows: int, end: int, scale: float) -> Iterator[str]:
    for tick in range(_TICKS + 1):
        moment = end * tick / _TICKS
        left = _LEFT + moment * scale
        bottom = _top(rows)
        anchor = "end" if tick == _TICKS else "middle"
        yield (
            f'<line x1="{left:.1f}" y1="30" x2="{left:.1f}" y2="{bottom}" stroke="#ccc" '
            f'stroke-width="0.5"/><text x="{left:.1f}" y="{bottom + 14}" text-anchor="{anchor}">'
            f"{moment / 1e6:.1f} ms</text>"
        )
