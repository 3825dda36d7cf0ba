"""Flags as data: one table a command is what its parser, its help and its config file read."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import typer
from rich.markup import escape

from cosmos_fast.cli.exits import UsageError


class Kind(Protocol):
    """How the text of a flag becomes a value."""

    @property
    def metavar(self) -> str:
        """What stands for the value in --help."""

    @property
    def expected(self) -> str:
        """What a right value is, to finish the sentence "expected ..."."""

    def parse(self, text: str) -> Any:
        """The value that ``text`` means.

        Raises:
            ValueError: it means none.
        """


@dataclass(frozen=True)
class Text:
    """Any text."""

    metavar: str = "TEXT"
    expected: str = "a text"

    def parse(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Word:
    """Text that says something: not empty, without a NUL."""

    metavar: str = "NAME"
    expected: str = "a name that is not empty"

    def parse(self, text: str) -> str:
        if not text.strip() or "\0" in text:
            raise ValueError
        return text


@dataclass(frozen=True)
class Location:
    """A path; whether something lies there is for the command to check."""

    metavar: str = "PATH"
    expected: str = "a path that is not empty"

    def parse(self, text: str) -> Path:
        if not text.strip() or "\0" in text:
            raise ValueError
        return Path(text).expanduser()


@dataclass(frozen=True)
class Target(Location):
    """A path of a file to write."""

    expected: str = "the name of a file to write, as in outputs/mine.mp4"

    def parse(self, text: str) -> Path:
        if text.rstrip().endswith("/"):
            raise ValueError
        return super().parse(text)


@dataclass(frozen=True)
class Integer:
    """A whole number from ``least`` to ``most``."""

    least: int = 0
    most: int | None = None
    metavar: str = "N"

    @property
    def expected(self) -> str:
        if self.most is None:
            return f"a whole number of at least {self.least}"
        return f"a whole number from {self.least} to {self.most}"

    def parse(self, text: str) -> int:
        number = int(text)
        if number < self.least or (self.most is not None and number > self.most):
            raise ValueError
        return number


@dataclass(frozen=True)
class FrameCount(Integer):
    """A number of frames that a clip can have: 1 and then groups of 4."""

    least: int = 1

    @property
    def expected(self) -> str:
        return "1 more than a multiple of 4, as in 61, 77, 81, 93 or 121"

    def parse(self, text: str) -> int:
        number = super().parse(text)
        if number % 4 != 1:
            raise ValueError
        return number


@dataclass(frozen=True)
class Number:
    """A finite number of at least (or, if ``above``, above) ``least``."""

    least: float = 0.0
    above: bool = False
    metavar: str = "X"

    @property
    def expected(self) -> str:
        return f"a number {'above' if self.above else 'of at least'} {self.least:g}"

    def parse(self, text: str) -> float:
        number = float(text)
        low = number <= self.least if self.above else number < self.least
        if low or not math.isfinite(number):
            raise ValueError
        return number


@dataclass(frozen=True)
class Choice:
    """One of a few words or numbers; upper and lower case are alike."""

    choices: tuple[str, ...]
    convert: Callable[[str], Any] = str
    name: str = ""
    """What stands for a long list of choices in --help."""

    @property
    def metavar(self) -> str:
        return self.name or "[" + "|".join(self.choices) + "]"

    @property
    def expected(self) -> str:
        *front, last = self.choices
        return f"{', '.join(front)} or {last}" if front else last

    def parse(self, text: str) -> Any:
        for choice in self.choices:
            if choice.casefold() == text.strip().casefold():
                return self.convert(choice)
        raise ValueError


@dataclass(frozen=True)
class Pattern:
    """Text of a certain form."""

    form: str
    """A regular expression that the whole text must match; upper and lower case are alike."""
    expected: str
    metavar: str

    def parse(self, text: str) -> str:
        if not re.fullmatch(self.form, text.strip(), re.IGNORECASE):
            raise ValueError
        return text.strip()


AMOUNT: Final = r"\d+(\.\d+)?\s*([KMGT]i?B)?"
"""The form of an amount of memory, for a :class:`Pattern`."""


@dataclass(frozen=True)
class Flag:
    """One flag of a command."""

    name: str
    """As the reference spells it, without dashes; ``-`` is accepted for ``_`` everywhere."""
    kind: Kind | None
    """None for a switch, which takes no value."""
    help: str
    panel: str = "Options"
    several: bool = False
    """Takes one or more values: ``--model_sizes 2B 14B``."""

    @property
    def spelling(self) -> str:
        return f"--{self.name}"

    def value(self, given: object) -> Any:
        """The value of ``given``: the text of a command line, or a value of a TOML file.

        Raises:
            UsageError: it is not a value of this flag.
        """
        if self.several:
            texts = given if isinstance(given, list) else [given]
            return tuple(self._one(text) for text in texts)
        return self._one(given)

    def _one(self, given: object) -> Any:
        if self.kind is None:
            if isinstance(given, bool):
                return given
            raise UsageError(f"{self.spelling}: {given!r} is not expected; it is true or false")
        try:
            if isinstance(given, bool) or not isinstance(given, str | int | float):
                raise ValueError
            return self.kind.parse(str(given))
        except ValueError:
            expected = self.kind.expected
            if isinstance(self.kind, Choice):
                fault = f"one of its choices; expected {expected}"
            elif given == "":
                fault = f"enough; expected {expected}"
            else:
                fault = expected
            raise UsageError(f"{self.spelling}: {given!r} is not {fault}") from None


def parse_flags(table: Iterable[Flag], given: Mapping[str, object]) -> dict[str, Any]:
    """The values of those flags of ``table`` that were given (not None, not an empty list)."""
    return {
        flag.name: flag.value(given[flag.name])
        for flag in table
        if given.get(flag.name) not in (None, [], ())
    }


def takes(table: Iterable[Flag]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command function that accepts ``**given`` the signature of ``table``, for Typer.

    Values arrive as text, so that a flag and a line of a config file are read by the same code and
    refused in the same words.
    """
    rows = tuple(table)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        options = [
            inspect.Parameter(
                flag.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_annotation(flag),
            )
            for flag in rows
        ]
        command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        # Paragraphs of one line each, which Typer would break where the source does.
        command.__doc__ = re.sub(r"(?<!\n)\n(?![\n ])", " ", inspect.getdoc(command) or "")
        return command

    return decorate


def _annotation(flag: Flag) -> Any:
    option = typer.Option(
        flag.spelling,
        help=escape(flag.help),
        metavar=" " if flag.kind is None else flag.kind.metavar,
        rich_help_panel=flag.panel,
        show_default=False,
        autocompletion=_completion(flag.kind) if isinstance(flag.kind, Choice) else None,
    )
    if flag.kind is None:
        return Annotated[bool | None, option]
    return Annotated[list[str] | None, option] if flag.several else Annotated[str | None, option]


def _completion(kind: Choice) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in kind.choices if choice.startswith(incomplete)]

    return complete


def nearest(name: str, table: Iterable[Flag]) -> str:
    """A question that names the flags most like ``name``; empty where none is like it."""
    names = {flag.name: flag.spelling for flag in table}
    near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), names, 2)
    return f"did you mean {' or '.join(names[one] for one in near)}?" if near else ""


def in_flags(message: str, table: Iterable[Flag]) -> str:
    """A message of the library in the words of a command: ``variant=`` as ``--variant``."""
    for flag in table:
        if flag.kind is None:
            message = message.replace(f"{flag.name}=True", flag.spelling)
        else:
            message = re.sub(rf"(?<![\w-]){flag.name}=(?=[\s,.)]|$)", flag.spelling, message)
    return message


def spread_values(arguments: list[str], several: Iterable[str]) -> list[str]:
    """Repeat flags that take several values: ``--sizes 2B 14B`` as ``--sizes 2B --sizes 14B``.

    Args:
        arguments: a command line.
        several: names of the flags that take one or more values.
    """
    names = {name.replace("_", "-") for name in several}
    spread: list[str] = []
    current: str | None = None
    wants_first = False
    for argument in arguments:
        if argument.startswith("-"):
            name = argument.lstrip("-").partition("=")[0].replace("_", "-")
            current = argument.partition("=")[0] if name in names else None
            wants_first = current is not None and "=" not in argument
            spread.append(argument)
        elif current is not None and not wants_first:
            spread += [current, argument]
        else:
            wants_first = False
            spread.append(argument)
    return spread
