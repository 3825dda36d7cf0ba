"""What commands print on stdout: one path, one listing, or with ``--json`` one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout, in UTF-8 whatever the locale."""
    text = json.dumps(document, ensure_ascii=True, default=str)
    print(text, flush=True)


def print_rows(rows: Iterable[tuple[str, ...]]) -> None:
    """Rows of text in aligned columns on stdout."""
    table = [tuple(row) for row in rows]
    if not table:
        return
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    sys.stdout.flush()
