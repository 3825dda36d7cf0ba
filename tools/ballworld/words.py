"""The tokenizer of the ball world: a T5 tokenizer whose pieces are the words of the grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cosmos_fast.ballworld.prompts import describe
from cosmos_fast.ballworld.scene import COLOURS, MOTIONS, Scenes

if TYPE_CHECKING:
    from transformers import T5Tokenizer

ROWS: Final = 32
"""Rows of text in training; the longest prompt has 22 tokens, so the last row is always padding."""
UNKNOWN: Final = 2


def vocabulary() -> list[tuple[str, float]]:
    """Unigram pieces with scores: T5's three special tokens, then every word of the grammar."""
    words = {"a", "A", "an", "An", "ball", "and", "under", "gravity", "with", "no", *COLOURS}
    words |= {word for motion in MOTIONS for word in motion.phrase.split()}
    pieces = [f"▁{word}" for word in sorted(words)]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -8.0), (".", -4.0)] + [
        (piece, -4.0) for piece in pieces
    ]


def tokenizer() -> T5Tokenizer:
    from transformers import T5Tokenizer

    made = T5Tokenizer(vocab=vocabulary(), extra_ids=0)
    made.model_max_length = 512
    return made


def token_table(scenes: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """The prompts of all scenes as tokens, padded with 0.

    Returns:
        int64 (N, ROWS) and int64 (N,): ids, and how many of them count, the end token included.
    """
    made, known = tokenizer(), dict[str, list[int]]()
    ids = np.zeros((len(scenes), ROWS), dtype=np.int64)
    lengths = np.zeros(len(scenes), dtype=np.int64)
    for n, prompt in enumerate(describe(scenes)):
        tokens = known.get(prompt)
        if tokens is None:
            tokens = known[prompt] = made(prompt)["input_ids"]
        ids[n, : len(tokens)], lengths[n] = tokens, len(tokens)
    if lengths.max() >= ROWS:
        raise ValueError(f"a prompt of {lengths.max()} tokens: below {ROWS} are foreseen")
    return ids, lengths
