"""The prompts of a long video: which one each chunk follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cosmos_fast.errors import InputError
from cosmos_fast.types import NO_TEXT, Frames, Prompt, TextEmbedding

if TYPE_CHECKING:
    from cosmos_fast.parallel import Ranks

Prompts = Prompt | Sequence[str] | Callable[[int, Frames | None], Prompt]
"""One for all chunks, one a chunk, or a function of the chunk's number, from 0, and of the frames
that it continues (None for the first, which continues the source)."""


def refuse_too_few(prompts: Prompts, num_chunks: int) -> None:
    """
    Raises:
        InputError: there are not as many as chunks.
    """
    if isinstance(prompts, Sequence) and not isinstance(prompts, str) and len(prompts) < num_chunks:
        raise InputError(f"{len(prompts)} prompts for {num_chunks} chunks: one for each is needed")


def known_prompt(prompts: Prompts) -> Prompt:
    """The first chunk's; no text where a function has yet to be asked."""
    if callable(prompts):
        return NO_TEXT
    return prompts if isinstance(prompts, str) or not isinstance(prompts, Sequence) else prompts[0]


def prompt_of(prompts: Prompts, chunk: int, tail: Frames | None, ranks: Ranks) -> Prompt:
    """The prompt of one chunk, the same on every rank.

    Args:
        tail: the frames that the chunk continues; None for the first.
        ranks: of which the first asks a function. It may look at the pictures with a model of its
            own, and need not answer the same twice.

    Raises:
        InputError: a function's answer is no prompt.
        RankLost: the function failed on rank 0.
    """
    if callable(prompts):
        return _asked(lambda: prompts(chunk, tail), ranks)
    if isinstance(prompts, Sequence) and not isinstance(prompts, str):
        return prompts[chunk]
    return prompts


def _asked(ask: Callable[[], Prompt], ranks: Ranks) -> Prompt:
    answers: list[Prompt] = []

    def described() -> Any:
        answers.append(answer := ask())
        if isinstance(answer, TextEmbedding):
            return {"rows": answer.length}
        if isinstance(answer, str) or answer is NO_TEXT:
            return {"text": answer if isinstance(answer, str) else None}
        raise InputError(f"a prompt is {answer!r}: a str, a TextEmbedding or NO_TEXT is needed")

    told = ranks.same(described)
    if "rows" not in told:
        return answers[0] if answers else NO_TEXT if told["text"] is None else str(told["text"])

    def embedded() -> list[Any]:
        (answer,) = answers
        assert isinstance(answer, TextEmbedding)
        return [answer.rows]

    (rows,) = ranks.from_first(embedded)
    return answers[0] if answers else TextEmbedding(rows, told["rows"])
