"""A TOML file of flags: same names, refused in the same words; the command line overrides it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from cosmos_fast.cli.exits import UsageError
from cosmos_fast.cli.flags import Flag, nearest, parse_flags

LARGEST: Final = 1 << 20
"""Bytes; a longer file is not a list of flags."""
_NOT_IN_A_FILE: Final = frozenset({"config"})


def read_config(path: Path, table: Iterable[Flag]) -> dict[str, Any]:
    """The values of the flags that the file sets.

    Args:
        path: a TOML file of ``name = value`` lines; ``-`` and ``_`` are alike.
        table: the flags of the command.

    Raises:
        UsageError: unreadable, not TOML, an unknown or doubled name, or a wrong value.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise UsageError(f"--config: {str(path)!r} is over {LARGEST} bytes long")
        document = tomllib.loads(raw.decode())
    except OSError as error:
        raise UsageError(f"--config: {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        reason = "it is no text; a TOML file of flags is expected"
        raise UsageError(f"--config: {str(path)!r} cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config: {_not_toml(path, str(error))}") from None
    rows = tuple(flag for flag in table if flag.name not in _NOT_IN_A_FILE)
    given: dict[str, object] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in {flag.name for flag in rows}:
            near = nearest(name, rows)
            ending = f"; {near}" if near else "; --help lists them"
            raise UsageError(f"--config: {str(path)!r} sets {key!r}, which is no flag here{ending}")
        if name in given:
            raise UsageError(f"--config: {str(path)!r} sets {name!r} twice")
        given[name] = value
    try:
        return parse_flags(rows, given)
    except UsageError as error:
        raise UsageError(f"--config: {str(path)!r}: {error}") from None


def _not_toml(path: Path, finding: str) -> str:
    """What tomllib found, with the line in front and an example behind."""
    if place := re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", finding, re.DOTALL):
        finding, where = place[1], f"line {place[2]}"
    else:
        finding, where = finding.removesuffix(" (at end of document)"), "at its end"
    return (
        f"{str(path)!r} cannot be read, {where}: {finding}; a line reads num_steps = 35, "
        f'prompt = "text in quotes" or disable_guardrail = true'
    )


def merge(
    config: Mapping[str, Any], flags: Mapping[str, Any], groups: Iterable[tuple[str, ...]]
) -> dict[str, Any]:
    """``flags`` over ``config``: a flag also displaces what says the same in other words.

    Args:
        config: values that a config file sets.
        flags: values that the command line sets.
        groups: names that say the same thing.
    """
    displaced = {name for group in groups if any(flag in flags for flag in group) for name in group}
    return {**{k: v for k, v in config.items() if k not in displaced}, **flags}
