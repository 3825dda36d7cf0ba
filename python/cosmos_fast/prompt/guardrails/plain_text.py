"""A text as the eye reads it, in plain letters: what a word list is compared with.

The reference turns every character that is not ASCII into a space, so that a listed word passes in
wide letters, in Cyrillic ones that look the same, or with something invisible in the middle.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_FOREIGN: Final = re.compile(r"[^\x00-\x7F]+")
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Me", "Mn"})
"""Categories of what has no width of its own: controls, joiners, accents."""
_LOOK: Final = {
    "a": "\u0430\u03b1\u0251\u1d00",
    "b": "\u0431\u0432\u044c\u03b2\u0299",
    "c": "\u0441\u1d04",
    "d": "\u0501\u0111\u00f0\u1d05",
    "e": "\u0435\u03b5\u1d07",
    "f": "\ua730",
    "g": "\u0261\u0262",
    "h": "\u04bb\u043d\u0127\u029c",
    "i": "\u0456\u03b9\u0131\u0269\u026a",
    "j": "\u0458\u1d0a",
    "k": "\u043a\u03ba\u1d0b",
    "l": "\u04cf\u0142\u029f",
    "m": "\u043c\u1d0d",
    "n": "\u043f\u03b7\u0274",
    "o": "\u043e\u03bf\u00f8\u1d0f",
    "p": "\u0440\u03c1\u1d18",
    "q": "\u051b",
    "r": "\u0433\u0280",
    "s": "\u0455\ua731",
    "t": "\u0442\u03c4\u0167\u1d1b",
    "u": "\u03c5\u1d1c",
    "v": "\u0475\u03bd\u1d20",
    "w": "\u051d\u03c9\u1d21",
    "x": "\u0445\u03c7",
    "y": "\u0443\u04af\u03b3\u028f",
    "z": "\u03b6\u1d22",
}
"""Cyrillic, Greek and other letters by the plain one that they look like without being it. As
numbers: here, too, they would look alike."""
_TWINS: Final = str.maketrans({twin: plain for plain, twins in _LOOK.items() for twin in twins})


def ascii_only(text: str) -> str:
    """``text`` with a space for each run of foreign characters, as the reference reads it."""
    return _FOREIGN.sub(" ", text)


def spelled_out(text: str) -> str:
    """``text`` in lower case as it looks, foreign letters kept where no plain one looks like them.

    Compatibility forms (wide, bold, circled) become letters, accents and what is invisible goes,
    white space stays.
    """
    seen = "".join(
        letter
        for letter in unicodedata.normalize("NFKD", text)
        if letter.isspace() or unicodedata.category(letter) not in _UNSEEN
    )
    return unicodedata.normalize("NFC", seen).casefold().translate(_TWINS)


def readings(text: str) -> list[str]:
    """What ``text`` may say, in ASCII: as the reference reads it and, where it differs, as the eye
    does."""
    first, second = ascii_only(text), ascii_only(spelled_out(text))
    return [first] if second == first.lower() else [first, second]
