"""Nouns in their dictionary form, after WordNet's own rules (morphy), from WordNet's files.

Only two files are read, as text: ``index.noun`` (every known noun) and ``noun.exc`` (irregular
forms). NLTK's reader does the same from the same files; it looks for them by settings of the whole
process and refuses the links of which the hub's cache is made.
"""

from __future__ import annotations

import io
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from cosmos_fast.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

_ENDINGS: Final = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"),
    ("shes", "sh"), ("men", "man"), ("ies", "y"),
)  # fmt: skip
"""Rules of detachment for nouns, from morphy(7WN)."""
_LIMIT: Final = 64 << 20


class Lemmatizer:
    """``Knives`` to ``knife``; what is no known noun stays as it is, in lower case."""

    def __init__(self, nouns: Collection[str], irregular: Mapping[str, tuple[str, ...]]) -> None:
        """
        Args:
            nouns: every known one, in lower case, ``_`` for a space.
            irregular: forms to what they are forms of.
        """
        self._nouns, self._irregular = frozenset(nouns), dict(irregular)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """
        Args:
            folder: an NLTK data folder: ``corpora/wordnet/`` or ``corpora/wordnet.zip`` in it.

        Raises:
            CheckpointError: no WordNet there, or one that is damaged or empty.
        """
        try:
            nouns = {
                line.split(" ", 1)[0]
                for line in _lines(folder, "index.noun")
                if line.strip() and not line.startswith(" ")  # the licence is indented
            }
            irregular = {
                form: tuple(lemmas)
                for form, *lemmas in map(str.split, _lines(folder, "noun.exc"))
                if lemmas
            }
        except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: WordNet's index.noun and noun.exc cannot be read below corpora/wordnet "
                f"or in corpora/wordnet.zip: {error}"
            ) from error
        if not nouns:
            raise CheckpointError(f"{folder}: WordNet's index.noun holds no noun")
        return cls(nouns, irregular)

    def lemma(self, word: str) -> str:
        """The dictionary form of ``word``, in lower case; the shortest where there are several."""
        word = word.lower()
        forms = [word, *self._irregular.get(word, ())]
        if len(forms) == 1:
            forms += [
                word.removesuffix(ending) + replaced
                for ending, replaced in _ENDINGS
                if word.endswith(ending)
            ]
        return min((form for form in forms if form in self._nouns), key=len, default=word)


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[io.TextIOBase]:
    plain = folder / "corpora" / "wordnet" / name
    if plain.is_file():
        if plain.stat().st_size > _LIMIT:
            raise ValueError(f"{plain} has {plain.stat().st_size} bytes")
        with plain.open(encoding="utf-8") as file:
            yield file
        return
    with zipfile.ZipFile(folder / "corpora" / "wordnet.zip") as archive:
        entry = archive.getinfo(f"wordnet/{name}")
        if entry.file_size > _LIMIT:
            raise ValueError(f"{name} in it has {entry.file_size} bytes")
        with archive.open(entry) as packed:
            yield io.TextIOWrapper(packed, "utf-8")


def _lines(folder: Path, name: str) -> list[str]:
    with _opened(folder, name) as file:
        return file.read().splitlines()
