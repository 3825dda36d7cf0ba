"""Word lists: what a prompt must not say, and what it may say all the same.

Three passes, as the reference's: the custom list through disguises, the same over dictionary forms,
and the exact list as whole words or nearly. An empty prompt is refused. Parity with the reference's
verdicts is unverified; where the two differ on purpose this one finds more: through quotation
marks, any white space, capitals of inflected words, foreign letters that look like plain ones,
what is invisible, and entries in other scripts.
"""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING, Final

from cosmos_fast.errors import CheckpointError
from cosmos_fast.prompt.guardrail import Verdict
from cosmos_fast.prompt.guardrails.lemmas import Lemmatizer
from cosmos_fast.prompt.guardrails.plain_text import ascii_only, readings, spelled_out
from cosmos_fast.prompt.guardrails.word_match import DisguisedWords, ForeignWords, WholeWords

if TYPE_CHECKING:
    from pathlib import Path

_TOKEN: Final = re.compile(r"""[A-Za-z0-9@$*]+(?:'[A-Za-z]+)?|\S""")
_READABLE: Final = re.compile(r"[\w@$*]")
"""Without one of these an entry is never found."""
_LIST_LIMIT: Final = 64 << 20
_LONGEST: Final = 20_000
"""Characters of a prompt; T5 reads 512 tokens. Longer ones would take the lists minutes."""


class Blocklist:
    """Checks prompts against the word lists of a folder."""

    name = "blocklist"

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: ``custom``, ``exact_match`` and ``whitelist`` in it are folders of text files,
                an entry a line; ``nltk_data`` holds WordNet.
        """
        self._folder = folder
        self._custom: DisguisedWords | None = None
        self._exact: WholeWords | None = None
        self._foreign: ForeignWords | None = None
        self._lemmas: Lemmatizer | None = None

    def load(self) -> None:
        """
        Raises:
            CheckpointError: a list is missing, no text, or without an entry that can be found; an
                empty whitelist is fine.
        """
        custom = _entries(self._folder / "custom")
        exact = _entries(self._folder / "exact_match")
        allowed = {
            entry.lower() for entry in _entries(self._folder / "whitelist", may_be_empty=True)
        }
        forbidden = {entry.lower() for entry in custom} - allowed
        if not forbidden:
            raise CheckpointError(
                f"{self._folder}: its whitelist allows every entry of the custom list; fetch the "
                f"folder again"
            )
        self._lemmas = Lemmatizer.from_folder(self._folder / "nltk_data")
        self._custom = DisguisedWords(custom, allowed)
        self._exact = WholeWords(exact)
        self._foreign = ForeignWords(forbidden.union(exact))

    def check(self, prompt: str) -> Verdict:
        """Refuses an empty prompt, one too long to look through, and one that says what a list
        names."""
        if len(prompt) > _LONGEST:
            return Verdict(False, f"{len(prompt)} characters; at most {_LONGEST} are checked")
        assert self._foreign is not None
        seen = spelled_out(prompt)
        if not seen.strip():
            return Verdict(False, "the text is empty")
        if found := self._foreign.find(seen):
            return Verdict(False, f"{found.text!r} is on a list")
        refused = (verdict for text in readings(prompt) if not (verdict := self._read(text)).safe)
        return next(refused, Verdict(True))

    def _read(self, text: str) -> Verdict:
        assert self._custom is not None
        assert self._exact is not None
        assert self._lemmas is not None
        if found := self._custom.find(text):
            return Verdict(False, f"{found.text!r} is on the custom list")
        lemmas = self._lemmas
        forms = " ".join(lemmas.lemma(token) for token in _TOKEN.findall(text))
        if found := self._custom.find(forms):
            return Verdict(False, f"a form of {found.text!r} is on the custom list")
        if found := self._exact.find(text):
            return Verdict(False, f"{found.text!r} is on the list of exact words")
        return Verdict(True)


def _entries(folder: Path, *, may_be_empty: bool = False) -> list[str]:
    """The lines of every file in ``folder``.

    Raises:
        CheckpointError: it is missing, a file in it is no text, or there is no entry.
    """
    entries: list[str] = []
    try:
        for file in sorted(folder.iterdir()):
            if file.is_dir() or file.name.startswith("."):
                continue
            found = file.stat()  # a link into nowhere fails here
            if not stat.S_ISREG(found.st_mode):  # a pipe would be read for ever
                raise CheckpointError(f"{file}: no file; fetch the folder again")
            if found.st_size > _LIST_LIMIT:
                raise CheckpointError(f"{file}: too large for a word list")
            text = file.read_text("utf-8-sig")
            if "\0" in text:
                raise CheckpointError(f"{file}: no text in UTF-8; fetch the folder again")
            entries += [line.strip() for line in text.splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: its word lists cannot be read: {error}") from error
    entries = [_as_read(entry) for entry in entries if entry]
    if not may_be_empty and not any(map(_READABLE.search, entries)):
        raise CheckpointError(
            f"{folder}: its word lists hold no entry that could be found; fetch the folder again"
        )
    return entries


def _as_read(entry: str) -> str:
    """``entry`` as prompts are read: one that kept its accents or dashes would never be found."""
    if entry.isascii():
        return entry
    seen = spelled_out(entry)
    return seen if any(c.isalnum() and not c.isascii() for c in seen) else ascii_only(seen)
