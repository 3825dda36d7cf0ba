"""Prompts become the rows that the transformer attends to: through T5 v1.0, or from the cache.

The encoder is the largest part of the model and most jobs repeat a handful of prompts, so finished
embeddings are kept on disk under their content. A hit loads neither tokenizer nor T5.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from typing import TYPE_CHECKING, Final, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.files import write_atomically
from cosmos_fast.model.t5 import T5Encoder
from cosmos_fast.model.tokens import tokenize
from cosmos_fast.types import TEXT_ROWS, TextEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from cosmos_fast.config import T5Config
    from cosmos_fast.model.tokens import Tokens

logger = logging.getLogger(__name__)

_FORMAT: Final = "cosmos-fast prompt 1"
_ENTRY_LIMIT: Final = 64 << 20


class Embeds(Protocol):
    """Anything that turns prompts into rows."""

    def embed(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """The rows of each of ``prompts``, on the host."""
        ...


class TextEncoder:
    """T5 v1.0's encoder and its tokenizer, as the reference runs them."""

    def __init__(
        self, t5: T5Encoder, tokenizer: Tokenizer, device: torch.device | None = None
    ) -> None:
        """
        Args:
            t5: with all parameters in one dtype.
            tokenizer: from :func:`cosmos_fast.model.tokens.load_tokenizer`.
            device: where it runs; None: where its weights are.

        Raises:
            CheckpointError: the tokenizer knows tokens that the encoder has no embedding for.
        """
        rows = t5.shared.weight
        if (tokens := tokenizer.get_vocab_size()) > len(rows):
            raise CheckpointError(
                f"the tokenizer has {tokens} tokens and the text encoder {len(rows)} "
                f"embeddings: they do not belong together"
            )
        self.t5: Final = t5
        self._device = device or rows.device
        self._tokenizer = tokenizer

    @classmethod
    def from_parameters(
        cls,
        config: T5Config,
        parameters: Mapping[str, torch.Tensor],
        tokenizer: Tokenizer,
        device: torch.device | None = None,
    ) -> Self:
        """An encoder around parameters that are already where they should be; nothing is copied.

        Args:
            config: of the encoder.
            parameters: every parameter under transformers' names.
            tokenizer: from :func:`cosmos_fast.model.tokens.load_tokenizer`.
            device: where it runs; None: where the parameters are.
        """
        with torch.device("meta"):
            t5 = T5Encoder(config)
        t5.load_state_dict(parameters, strict=True, assign=True)
        return cls(t5.requires_grad_(False), tokenizer, device)

    def embed(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """The last hidden state of each prompt, on the host: rows past its end token are zero.

        All go through the encoder together, and each comes out as it would alone.

        Args:
            prompts: any texts; what is beyond 512 tokens is cut off, with a warning in the log.

        Raises:
            InputError: a text is no valid Unicode.
            CheckpointError: the encoder gives values that are not finite.
        """
        tokens = [self._tokens(prompt) for prompt in prompts]
        if not tokens:
            return []
        ids_PN = torch.tensor([each.ids for each in tokens]).to(self._device)
        lengths = [each.length for each in tokens]
        with torch.no_grad():
            found = [rows_NC.to("cpu", torch.bfloat16) for rows_NC in self.t5(ids_PN, lengths)]
        for rows_NC, length in zip(found, lengths, strict=True):
            rows_NC[length:] = 0
            if not torch.isfinite(rows_NC).all():
                raise CheckpointError(
                    f"the text encoder gives values that are not finite in "
                    f"{self.t5.shared.weight.dtype}; run it in bfloat16 or float32"
                )
        return list(map(TextEmbedding, found, lengths))

    def _tokens(self, prompt: str) -> Tokens:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the prompt is no valid Unicode text: {error}") from error
        tokens = tokenize(self._tokenizer, prompt)
        if cut := tokens.cut:
            logger.warning(
                "prompt too long: its last %d of %d tokens are not read", cut, cut + TEXT_ROWS
            )
        return tokens


class PromptCache:
    """Finished embeddings on disk, one file each, named by what they are made from.

    Safe between threads and processes: entries appear whole, and a damaged one is as good as none.
    The device is no part of the name: one that another kind of device made is used all the same.
    """

    def __init__(
        self, folder: Path, encoder: str | Callable[[], str], max_bytes: int | None = None
    ) -> None:
        """
        Args:
            folder: where entries lie; made when the first one is written.
            encoder: identity of the text encoder and the dtype it runs in, or what finds it out
                when the first prompt comes: embeddings of one identity are never used for another.
            max_bytes: beyond this the entries that were used longest ago are removed.
        """
        self._folder = folder
        self._encoder = encoder
        self._max_bytes = max_bytes

    def get(self, prompt: str) -> TextEmbedding | None:
        """The embedding of ``prompt``, or None where there is none that is whole."""
        path = self._path(prompt)
        try:
            if path.stat().st_size > _ENTRY_LIMIT:
                raise ValueError("it is too large")
            with safe_open(path, framework="pt", device="cpu") as file:
                stated = file.metadata() or {}
                known = file.get_tensor("rows")
            if stated.get("key") != path.stem or stated.get("sha256") != _content(known):
                raise ValueError("its content is not what its digest says")
            rows = torch.zeros(TEXT_ROWS, known.shape[1], dtype=torch.bfloat16)
            rows[: known.shape[0]] = known
            embedding = TextEmbedding(rows, known.shape[0])
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, RuntimeError, IndexError) as error:
            logger.warning("cached prompt %s is damaged and is made again: %s", path, error)
            return None
        with contextlib.suppress(OSError):
            path.touch()
        return embedding

    def put(self, prompt: str, embedding: TextEmbedding) -> None:
        """Keeps an embedding. A folder that cannot be written to costs time later, nothing else."""
        path = self._path(prompt)
        rows = embedding.rows[: embedding.length].cpu().contiguous()
        entry = {"format": _FORMAT, "key": path.stem, "sha256": _content(rows)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save({"rows": rows}, metadata=entry))
            self._keep_within_bound()
        except OSError as error:
            logger.debug("prompt not cached in %s: %s", self._folder, error)

    def _path(self, prompt: str) -> Path:
        if not isinstance(self._encoder, str):
            self._encoder = self._encoder()
        made_from = json.dumps([_FORMAT, self._encoder, TEXT_ROWS, prompt])
        return self._folder / f"{hashlib.sha256(made_from.encode()).hexdigest()}.safetensors"

    def _keep_within_bound(self) -> None:
        if self._max_bytes is None:
            return
        entries = []
        for path in self._folder.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process may be tidying too
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in entries) - self._max_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size


class CachedTextEncoder:
    """A text encoder that is loaded when a prompt is met that no cache knows."""

    def __init__(self, load: Callable[[], Embeds], cache: PromptCache | None) -> None:
        """
        Args:
            load: makes the encoder, once.
            cache: None keeps nothing on disk.
        """
        self._load = load
        self._cache = cache
        self._encoder: Embeds | None = None

    @property
    def loaded(self) -> bool:
        """Whether the encoder is in memory."""
        return self._encoder is not None

    def load(self) -> None:
        """Makes the encoder, unless it is there; errors as ``load``."""
        if self._encoder is None:
            self._encoder = self._load()

    def knows(self, prompt: str) -> bool:
        """Whether the embedding of ``prompt`` is in the cache: no encoder is needed for it."""
        return self._cache is not None and self._cache.get(prompt) is not None

    def embed(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """The rows of each prompt, on the host; errors as ``load`` and :meth:`TextEncoder.embed`.

        Those that the cache does not have go through the encoder together, each once.
        """
        found: dict[str, TextEmbedding] = {}
        unknown: list[str] = []
        for prompt in dict.fromkeys(prompts):
            known = None if self._cache is None else self._cache.get(prompt)
            if known is None:
                unknown.append(prompt)
            else:
                found[prompt] = known
        if unknown:
            self.load()
            assert self._encoder is not None
            made = self._encoder.embed(unknown)
            found |= zip(unknown, made, strict=True)
            for prompt, embedding in zip(unknown, made, strict=True):
                if self._cache is not None:
                    self._cache.put(prompt, embedding)
        return [found[prompt] for prompt in prompts]

    def release(self) -> None:
        """Lets go of the encoder and its memory; the next unknown prompt loads it again."""
        self._encoder = None


def _content(rows: torch.Tensor) -> str:
    """Digest of the rows' dtype, shape and bytes."""
    shape = f"{rows.dtype} {tuple(rows.shape)} ".encode()
    return hashlib.sha256(shape + rows.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
