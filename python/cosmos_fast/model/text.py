"""Prompts become the rows that the transformer attends to: through T5 v1.0, or from the cache.

The encoder is the largest part of the model and most jobs repeat a handful of prompts, so finished
embeddings are kept on disk under their content. A hit imports no transformers and loads no T5.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.files import write_atomically
from cosmos_fast.imports import untraced
from cosmos_fast.types import TEXT_ROWS, TextEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

logger = logging.getLogger(__name__)

PAD_TOKEN: Final = "<pad>"
END_TOKEN: Final = "</s>"
UNKNOWN_TOKEN: Final = "<unk>"

_FORMAT: Final = "cosmos-fast prompt 1"
_ENTRY_LIMIT: Final = 64 << 20


class Embeds(Protocol):
    """Anything that turns a prompt into rows."""

    def embed(self, prompt: str) -> TextEmbedding:
        """The rows of ``prompt``, on the host."""
        ...


class TextEncoder:
    """T5 v1.0's encoder and its tokenizer, as the reference runs them."""

    def __init__(
        self,
        t5: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            t5: in evaluation mode, in the dtype its checkpoint is stored in.
            tokenizer: a fast tokenizer of transformers, from :func:`load_tokenizer`.
            device: where it runs; None: where its weights are.

        Raises:
            CheckpointError: the tokenizer knows tokens that the encoder has no embedding for.
        """
        if (tokens := len(tokenizer)) > t5.config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokens} tokens and the text encoder {t5.config.vocab_size} "
                f"embeddings: they do not belong together"
            )
        self.t5: Final = t5
        self._device = device or t5.device
        self._tokenizer = tokenizer

    @classmethod
    def from_parameters(
        cls,
        config: T5Config,
        parameters: Mapping[str, torch.Tensor],
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | None = None,
    ) -> Self:
        """An encoder around parameters that are already where they should be; nothing is copied.

        Args:
            config: of the encoder.
            parameters: every parameter under transformers' names.
            tokenizer: from :func:`load_tokenizer`.
            device: where it runs; None: where the parameters are.
        """
        t5 = empty_encoder(config)
        t5.load_state_dict(parameters, strict=True, assign=True)
        t5.encoder.set_input_embeddings(t5.shared)  # one parameter, which may move
        return cls(t5.eval().requires_grad_(False), tokenizer, device)

    def embed(self, prompt: str) -> TextEmbedding:
        """The last hidden state of ``prompt``, on the host: rows past its end token are zero.

        Args:
            prompt: any text; what is beyond 512 tokens is cut off, with a warning in the log.

        Raises:
            InputError: the text is no valid Unicode.
            CheckpointError: the encoder gives values that are not finite.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the prompt is no valid Unicode text: {error}") from error
        tokens = self._tokenizer(
            [prompt],
            padding="max_length",
            truncation=True,
            max_length=TEXT_ROWS,
            return_tensors="pt",
        )
        if cut := sum(map(_words_of, tokens.encodings[0].overflowing)):
            logger.warning(
                "prompt too long: its last %d of %d tokens are not read", cut, cut + TEXT_ROWS
            )
        mask = tokens["attention_mask"]
        length = int(mask.sum())
        device = self._device
        with torch.no_grad():
            rows_BSC = self.t5(
                input_ids=tokens["input_ids"].to(device), attention_mask=mask.to(device)
            ).last_hidden_state
        rows_SC = rows_BSC[0].to("cpu", torch.bfloat16)
        rows_SC[length:] = 0
        if not torch.isfinite(rows_SC).all():
            raise CheckpointError(
                f"the text encoder gives values that are not finite in {self.t5.dtype}; "
                f"run it in bfloat16 or float32"
            )
        return TextEmbedding(rows_SC, length)


def empty_encoder(config: T5Config) -> Any:
    """A ``T5EncoderModel`` of ``config`` without memory, on the meta device."""
    with untraced():
        from transformers import T5EncoderModel  # costs seconds: only a cache miss pays them

    with torch.device("meta"):
        return T5EncoderModel(config)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """T5's fast tokenizer, from ``tokenizer.json`` as it stands or from an older ``spiece.model``.

    Raises:
        CheckpointError: neither is there, it is damaged, or it is not T5's.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        # transformers would make up an empty tokenizer.
        raise CheckpointError(f"{folder}: neither tokenizer.json nor spiece.model is there")
    special = {"pad_token": PAD_TOKEN, "eos_token": END_TOKEN, "unk_token": UNKNOWN_TOKEN}
    try:
        tokenizer = _read_tokenizer(folder, special)
    except Exception as error:
        # The tokenizers library raises bare Exceptions for files it cannot read.
        raise CheckpointError(f"{folder}: no readable T5 tokenizer: {error}") from error
    if missing := [token for token in special.values() if token not in tokenizer.get_vocab()]:
        raise CheckpointError(
            f"{folder}: the tokenizer has no {', '.join(missing)}; T5's tokenizer is needed"
        )
    if tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]:
        raise CheckpointError(
            f"{folder}: the tokenizer does not end a text with {END_TOKEN}; T5's is needed"
        )
    return tokenizer


def _read_tokenizer(folder: Path, special: Mapping[str, str]) -> PreTrainedTokenizerBase:
    with untraced():
        import tokenizers
        import transformers

    if not (folder / "tokenizer.json").is_file():
        old: PreTrainedTokenizerBase = transformers.T5Tokenizer.from_pretrained(
            str(folder), local_files_only=True
        )
        return old
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # transformers would invent tokens that the file lacks.
    known = {kind: token for kind, token in special.items() if own.token_to_id(token) is not None}
    fast: Any = transformers.PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerBase = fast(tokenizer_object=own, **known)
    return tokenizer


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

    def embed(self, prompt: str) -> TextEmbedding:
        """The rows of ``prompt``, on the host; errors as ``load`` and :meth:`TextEncoder.embed`."""
        if self._cache is not None and (known := self._cache.get(prompt)) is not None:
            return known
        self.load()
        assert self._encoder is not None
        embedding = self._encoder.embed(prompt)
        if self._cache is not None:
            self._cache.put(prompt, embedding)
        return embedding

    def release(self) -> None:
        """Lets go of the encoder and its memory; the next unknown prompt loads it again."""
        self._encoder = None


def _words_of(encoding: Any) -> int:
    """Tokens of a part that stand for text: no padding, no end token."""
    pairs = zip(encoding.attention_mask, encoding.special_tokens_mask, strict=True)
    return sum(1 for read, special in pairs if read and not special)


def _content(rows: torch.Tensor) -> str:
    """Digest of the rows' dtype, shape and bytes."""
    shape = f"{rows.dtype} {tuple(rows.shape)} ".encode()
    return hashlib.sha256(shape + rows.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
