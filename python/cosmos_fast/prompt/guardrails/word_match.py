"""Finding listed words in a text: in disguise, word by word, and nearly.

The disguises are those of the matcher that the reference uses (better-profanity 0.7): letters that
look like others, and words torn apart. Found by key, so that the length of the list costs nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

LOOKALIKES: Final = {
    "a": "a@*4", "e": "e*3", "i": "i*l1", "l": "l1", "o": "o*0@", "s": "s$5", "t": "t7", "u": "u*v",
    "v": "v*u",
}  # fmt: skip
"""What may stand in a text for a letter of a listed word."""

# One letter for each set of letters that some look-alike connects: equal keys may match.
_KEY: Final = str.maketrans("@*4e3il1o0uv$57", "aaaaaaaaaaaasst")
_WORD: Final = re.compile(r"""[A-Za-z0-9@$*'"]+""")
_QUOTES: Final = "'\""
_EDGES: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


class Found(NamedTuple):
    """A listed word and what stands for it in the text."""

    listed: str
    text: str


class DisguisedWords:
    """Listed words and phrases, found through look-alike letters and across spaces."""

    def __init__(self, listed: Iterable[str], allowed: Collection[str]) -> None:
        """
        Args:
            listed: words or phrases, in any case.
            allowed: words, in lower case, that are never found.
        """
        self._allowed = frozenset(allowed)
        self._by_key: dict[str, list[str]] = defaultdict(list)
        gaps = 1
        for entry in {_one_space(entry).lower() for entry in listed} - self._allowed:
            if entry:
                self._by_key[entry.translate(_KEY)].append(entry)
                gaps = max(gaps, len(_WORD.sub("", entry)))
        self._longest = gaps + 1

    def find(self, text: str) -> Found | None:
        """The first listed word in ``text``, or None."""
        text = _one_space(text)
        words = list(_WORD.finditer(text))
        for first in range(len(words)):
            for last in range(first, min(first + self._longest, len(words))):
                span = text[words[first].start() : words[last].end()]
                parts = [word[0] for word in words[first : last + 1]]
                for candidate in (span, "".join(parts)):
                    listed = self._listed(candidate) or self._listed(candidate.strip(_QUOTES))
                    if listed is not None and not self._is_allowed(span, parts):
                        return Found(listed, span)
        return None

    def _listed(self, candidate: str) -> str | None:
        candidate = candidate.lower()
        for entry in self._by_key.get(candidate.translate(_KEY), ()):
            letters = zip(candidate, entry, strict=True)
            if all(seen in LOOKALIKES.get(letter, letter) for seen, letter in letters):
                return entry
        return None

    def _is_allowed(self, span: str, parts: list[str]) -> bool:
        plain = [part.strip(_EDGES).lower() for part in parts]
        return span.strip(_EDGES).lower() in self._allowed or all(
            part in self._allowed for part in plain
        )


class WholeWords:
    """Listed words and phrases, found as whole words and, where they are long, nearly."""

    def __init__(
        self, listed: Iterable[str], *, fuzzy_from: int = 6, forgiven_letters: float = 0.4
    ) -> None:
        """
        Args:
            listed: words or phrases, in any case.
            fuzzy_from: letters from which a near match counts.
            forgiven_letters: a near match has a difflib ratio of (letters - forgiven) / letters at
                least. The reference's 0.4 forgives no letter: one wrong letter costs a whole one.
        """
        entries = sorted({_one_space(entry).lower() for entry in listed} - {""})
        self._any = re.compile("|".join(rf"\b{re.escape(entry)}\b" for entry in entries) or r"(?!)")
        self._long = [
            (entry, (len(entry) - forgiven_letters) / len(entry))
            for entry in entries
            if len(entry) >= fuzzy_from
        ]

    def find(self, text: str) -> Found | None:
        """The first listed word in ``text``, or None."""
        text = _one_space(text).lower()
        if whole := self._any.search(text):
            return Found(whole[0], whole[0])
        words = text.split()
        for entry, least in self._long:
            for window in _windows(words, entry.count(" ") + 1):
                if _ratio_reaches(window, entry, least):
                    return Found(entry, window)
        return None


class ForeignWords:
    """Listed words and phrases of other scripts, which the readings in ASCII leave out."""

    def __init__(self, listed: Iterable[str]) -> None:
        """
        Args:
            listed: words or phrases, spelled out; those in ASCII are passed over.
        """
        entries = sorted({_one_space(entry) for entry in listed if not entry.isascii()} - {""})
        self._any = re.compile("|".join(map(_set_apart, entries)) or r"(?!)")

    def find(self, text: str) -> Found | None:
        """The first listed word in ``text``, which is spelled out as well, or None."""
        found = self._any.search(_one_space(text))
        return None if found is None else Found(found[0], found[0])


def _set_apart(entry: str) -> str:
    """A pattern of ``entry`` as a whole word; as a part of one where its script, as those without
    capitals may, sets no spaces between words."""
    before, after = (
        "" if unicodedata.category(letter) == "Lo" else edge
        for letter, edge in ((entry[0], r"(?<!\w)"), (entry[-1], r"(?!\w)"))
    )
    return f"{before}{re.escape(entry)}{after}"


def _windows(words: list[str], length: int) -> Iterator[str]:
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length])


def _ratio_reaches(one: str, other: str, least: float) -> bool:
    """Whether difflib's ratio of the two is ``least`` or more; most are told by their length."""
    if 2 * min(len(one), len(other)) / (len(one) + len(other)) < least:
        return False
    matcher = SequenceMatcher(None, one, other)
    return matcher.quick_ratio() >= least and matcher.ratio() >= least


def _one_space(text: str) -> str:
    return " ".join(text.split())
