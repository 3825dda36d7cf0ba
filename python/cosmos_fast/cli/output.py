"""What commands print on stdout: one path, one listing, or with ``--json`` one JSON object."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout, in UTF-8 whatever the locale."""
    text = json.dumps(document, ensure_ascii=True, default=str)
    print(text, flush=True)


def print_rows(rows: Iterable[tuple[str, ...]]) -> None:
    """Rows of text in aligned columns on stdout.

    The last column takes what room there is: on a terminal it goes on below itself, elsewhere each
    row stays one line.
    """
    table = [tuple(" ".join(cell.splitlines()) for cell in row) for row in rows]
    if not table:
        return
    widths = [max(map(len, column)) for column in zip(*table, strict=True)][:-1]
    indent = sum(widths) + 2 * len(widths)
    room = _columns() - indent
    for *front, last in table:
        cells = "".join(f"{cell:<{width}}  " for cell, width in zip(front, widths, strict=True))
        lines = [last] if room < _LEAST_ROOM else textwrap.wrap(last, room) or [""]
        text = f"\n{' ' * indent}".join(lines)
        sys.stdout.write(f"{cells}{text}".rstrip() + "\n")
    sys.stdout.flush()


_LEAST_ROOM = 20
"""Characters of the last column below which wrapping makes nothing easier to read."""


def _columns() -> int:
    """Width of the terminal; 0 where stdout is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
