"""States in a safetensors file: every tail and prompt once, and which checkpoint they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.files import write_atomically
from cosmos_fast.sampling.noise import check_seed
from cosmos_fast.types import LATENT_CHANNELS, NO_TEXT, TEXT_ROWS, NoText, Size, TextEmbedding
from cosmos_fast.world.state import Tail, WorldState

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from cosmos_fast.parts import Parts

_FORMAT: Final = "cosmos-fast world states, 1"


def write_states(path: str | os.PathLike[str], states: Sequence[WorldState], parts: Parts) -> None:
    """Writes ``states``; the file appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    tails: dict[int, int] = {}
    texts: dict[int, int] = {}
    rows = []
    for state in states:
        tail = tails.setdefault(id(state.tail), len(tails))
        held = state.tail.latents if state.tail.frames is None else state.tail.frames
        assert held is not None
        tensors[f"tail.{tail}"] = held.cpu().contiguous()
        text = None
        if not isinstance(state.text, NoText):
            text = texts.setdefault(id(state.text), len(texts))
            tensors[f"text.{text}"] = state.text.rows[: state.text.length].cpu().contiguous()
        rows.append(
            {
                "seed": state.seed, "chunks": state.chunks, "size": list(state.size),
                "tail": tail, "given": state.tail.given, "start": state.tail.start,
                "text": text,
            }
        )  # fmt: skip
    metadata = {
        "format": _FORMAT,
        "model": json.dumps(parts.digests.get(), sort_keys=True),
        "states": json.dumps(rows),
    }
    try:
        write_atomically(Path(path), save(tensors, metadata))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error


def read_states(path: str | os.PathLike[str], parts: Parts) -> tuple[WorldState, ...]:
    """
    Raises:
        CheckpointError: no such file, not one of ours, or damaged.
        InputError: states of another checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            if metadata.get("format") != _FORMAT:
                raise CheckpointError(f"{path}: not a file of world states ({_FORMAT!r})")
            tensors = {name: file.get_tensor(name) for name in names}
        if json.loads(metadata["model"]) != parts.digests.get():
            raise InputError(f"{path}: states of another checkpoint than {parts.profile.name}")
        rows = json.loads(metadata["states"])
        reader = _Reader(tensors, parts)
        return tuple(reader.state(row) for row in rows)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise CheckpointError(f"{path}: no readable file of world states: {error!r}") from error


class _Reader:
    """Tails and prompts that several states share are made once."""

    def __init__(self, tensors: dict[str, torch.Tensor], parts: Parts) -> None:
        self._tensors, self._parts = tensors, parts
        self._tails: dict[tuple[int, int, int], Tail] = {}
        self._texts: dict[int, TextEmbedding] = {}

    def state(self, row: dict[str, Any]) -> WorldState:
        height, width = row["size"]
        size, chunks = Size(height, width), row["chunks"]
        if type(chunks) is not int or chunks < 0:
            raise ValueError(f"chunks = {chunks!r}")
        tail = self._tail(row["tail"], row["given"], row["start"], size)
        text = NO_TEXT if row["text"] is None else self._text(row["text"])
        return WorldState(check_seed(row["seed"]), chunks, size, tail, text, self._parts.profile)

    def _tail(self, number: int, given: int, start: int, size: Size) -> Tail:
        key = (number, given, start)
        if key not in self._tails:
            held = self._tensors[f"tail.{number}"].to(self._parts.device)
            profile = self._parts.profile
            grid = (profile.num_latent_frames, size.height // 8, size.width // 8)
            if held.dtype == torch.uint8 and tuple(held.shape) == (given, *size, 3):
                self._tails[key] = Tail(given, frames=held)
            elif held.dtype == torch.float32 and tuple(held.shape) == (LATENT_CHANNELS, *grid):
                self._tails[key] = Tail(given, latents=held, start=start)
            else:
                raise ValueError(f"tail of {held.dtype} and shape {tuple(held.shape)}")
        return self._tails[key]

    def _text(self, number: int) -> TextEmbedding:
        if number not in self._texts:
            held = self._tensors[f"text.{number}"]
            rows = held.new_zeros((TEXT_ROWS, self._parts.profile.dit.text_dim))
            rows[: len(held)] = held
            self._texts[number] = TextEmbedding(rows.to(self._parts.device), len(held))
        return self._texts[number]
