"""T5's tokenizer: a text becomes the tokens that the encoder has room for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cosmos_fast.errors import CheckpointError
from cosmos_fast.imports import untraced
from cosmos_fast.types import TEXT_ROWS

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Encoding, Tokenizer

PAD_TOKEN: Final = "<pad>"
END_TOKEN: Final = "</s>"
UNKNOWN_TOKEN: Final = "<unk>"
_SPECIAL: Final = (PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN)


class Tokens(NamedTuple):
    """Of one text."""

    ids: list[int]
    """512, padded; the last one that is read is the end token's."""
    length: int
    """How many are read."""
    cut: int
    """How many the text has beyond that."""


def tokenize(tokenizer: Tokenizer, text: str) -> Tokens:
    """
    Args:
        tokenizer: from :func:`load_tokenizer`.
        text: valid Unicode.
    """
    encoding = tokenizer.encode(text)
    cut = sum(map(_words_of, encoding.overflowing))
    return Tokens(encoding.ids, sum(encoding.attention_mask), cut)


def load_tokenizer(folder: Path) -> Tokenizer:
    """T5's tokenizer, from ``tokenizer.json`` as it stands or from an older ``spiece.model``.

    It cuts and pads to 512 tokens, the end token included. Only the older file takes transformers.

    Raises:
        CheckpointError: neither is there, it is damaged, or it is not T5's.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        # transformers would make up an empty tokenizer.
        raise CheckpointError(f"{folder}: neither tokenizer.json nor spiece.model is there")
    try:
        tokenizer = _read(folder)
    except Exception as error:
        # The tokenizers library raises bare Exceptions for files it cannot read.
        raise CheckpointError(f"{folder}: no readable T5 tokenizer: {error}") from error
    if missing := [token for token in _SPECIAL if tokenizer.token_to_id(token) is None]:
        raise CheckpointError(
            f"{folder}: the tokenizer has no {', '.join(missing)}; T5's tokenizer is needed"
        )
    # In a text they stand for themselves, whether or not the file lists them as special.
    listed = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens([token for token in _SPECIAL if token not in listed])
    tokenizer.no_padding()
    tokenizer.enable_truncation(TEXT_ROWS)
    if tokenizer.encode("a").tokens[-1:] != [END_TOKEN]:
        raise CheckpointError(
            f"{folder}: the tokenizer does not end a text with {END_TOKEN}; T5's is needed"
        )
    pad = tokenizer.token_to_id(PAD_TOKEN)
    tokenizer.enable_padding(length=TEXT_ROWS, pad_id=pad, pad_token=PAD_TOKEN)
    return tokenizer


def _read(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        with untraced():
            from tokenizers import Tokenizer

        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    with untraced():
        from transformers import T5Tokenizer  # costs seconds

    old = T5Tokenizer.from_pretrained(str(folder), local_files_only=True)
    backend: Tokenizer = old.backend_tokenizer
    return backend


def _words_of(encoding: Encoding) -> int:
    """Tokens of a part that stand for text: no padding, no end token."""
    pairs = zip(encoding.attention_mask, encoding.special_tokens_mask, strict=True)
    return sum(1 for read, special in pairs if read and not special)
