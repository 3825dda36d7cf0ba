"""pyarrow, imported where it is needed, and its errors in our words."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from cosmos_fast.errors import InputError
from cosmos_fast.imports import install_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def pyarrow() -> Any:
    """The module, ``pyarrow.parquet`` loaded.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"LeRobot datasets need pyarrow: {install_extra('lerobot')}") from error
    return pyarrow


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """What goes wrong with a Parquet file, as an InputError that names it."""
    arrow = pyarrow()
    try:
        yield
    except (OSError, KeyError, arrow.ArrowException) as error:
        raise InputError(f"{path}: no Parquet file as expected: {error}") from error


def read_rows(path: Path, columns: Sequence[str], **filters: int) -> dict[str, list[Any]]:
    """Some columns of a Parquet file, where others have given values.

    Raises:
        InputError: it cannot be read, or has no such columns.
    """
    arrow = pyarrow()
    with explained(path):
        table = arrow.parquet.read_table(
            path,
            columns=list(columns),
            filters=[(name, "=", value) for name, value in filters.items()] or None,
            partitioning=None,
        )
    if missing := [name for name in columns if name not in table.column_names]:
        raise InputError(f"{path}: column {', '.join(missing)} is missing")
    return {name: table.column(name).to_pylist() for name in columns}


def column_names(path: Path) -> list[str]:
    """
    Raises:
        InputError: it cannot be read.
    """
    with explained(path):
        names: list[str] = pyarrow().parquet.read_schema(path).names
    return names
