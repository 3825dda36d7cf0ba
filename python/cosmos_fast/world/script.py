"""What a world follows: a text that every guarded engine has had checked, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary

from cosmos_fast.types import NO_TEXT, NoText, TextEmbedding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cosmos_fast.engine import Video2World
    from cosmos_fast.prompt import Inspection
    from cosmos_fast.prompt.inspection import CheckRecord


class _Admitted(NamedTuple):
    """What one engine follows in place of the words, and what its guardrail said of them."""

    text: TextEmbedding
    checks: tuple[CheckRecord, ...]


class Script:
    """Words and their embedding; shared by every fork of a world.

    A guarded engine trusts no embedding that it did not make itself: it has the words checked and
    embeds them, once, and refuses an embedding that came without words.
    """

    def __init__(self, text: TextEmbedding | NoText = NO_TEXT, words: str | None = None) -> None:
        """
        Args:
            text: what the transformer attends to.
            words: that it was made of; None where an embedding was given, or no text.
        """
        self.text: Final = text
        self.words: Final = words
        self._admitted: WeakKeyDictionary[Video2World, _Admitted] = WeakKeyDictionary()

    @classmethod
    def of(cls, engine: Video2World, prompt: str | TextEmbedding | NoText) -> Script:
        """
        Raises:
            GuardrailBlocked: the prompt was refused, or could not be checked.
            InputError: an embedding of another width.
        """
        if isinstance(prompt, NoText):
            return cls()
        inspection = engine.inspection()
        text = engine.embed(prompt, inspection=inspection)
        script = cls(text, prompt if isinstance(prompt, str) else None)
        script._admitted[engine] = _Admitted(text, _about_texts(inspection))
        return script

    def admitted(
        self, engine: Video2World, inspection: Inspection | None = None
    ) -> TextEmbedding | NoText:
        """What this engine may attend to.

        Args:
            engine: that follows the words.
            inspection: of the call that they are for, which gets on record what was found.

        Raises:
            GuardrailBlocked: the words were refused or could not be checked, or there are none.
        """
        inspection = engine.inspection() if inspection is None else inspection
        if isinstance(self.text, NoText) or not inspection.active:
            return self.text
        known = self._admitted.get(engine)
        if known is None:
            own = engine.inspection()
            prompt = self.text if self.words is None else self.words
            known = _Admitted(engine.embed(prompt, inspection=own), _about_texts(own))
            self._admitted[engine] = known
        inspection.recall(known.checks)
        return known.text


def admit(engine: Video2World, scripts: Iterable[Script]) -> None:
    """Has the engine's guardrail look at every script that it has not seen.

    Raises:
        GuardrailBlocked: one was refused, or could not be checked.
    """
    for script in scripts:
        script.admitted(engine)


def _about_texts(inspection: Inspection) -> tuple[CheckRecord, ...]:
    return tuple(one for one in inspection.record().checks if one.subject != "video")
