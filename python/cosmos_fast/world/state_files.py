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
from cosmos_fast.types import LATENT_CHANNELS, TEXT_ROWS, Frames, NoText, Size, TextEmbedding
from cosmos_fast.world.script import Script
from cosmos_fast.world.state import Tail, WorldState

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from cosmos_fast.parts import Parts
    from cosmos_fast.prompt import Inspection

_FORMAT: Final = "cosmos-fast world states, 1"


def write_states(path: str | os.PathLike[str], states: Sequence[WorldState], parts: Parts) -> None:
    """Writes ``states``; the file appears whole or not at all.

    It holds the frames that the model continues, as it made them: not what a guardrail has made of
    them, from which the worlds would not go on as they were.

    Raises:
        InputError: it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    tails: dict[int, int] = {}
    texts: dict[int, int] = {}
    words: list[str | None] = []
    rows = []
    for state in states:
        tail = tails.setdefault(id(state.tail), len(tails))
        held = state.tail.latents if state.tail.frames is None else state.tail.frames
        assert held is not None
        tensors[f"tail.{tail}"] = held.cpu().contiguous()
        text = None
        if not isinstance(state.text, NoText):
            if id(state.script) not in texts:
                texts[id(state.script)] = len(texts)
                words.append(state.script.words)
            text = texts[id(state.script)]
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
        "words": json.dumps(words),
    }
    try:
        write_atomically(Path(path), save(tensors, metadata))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error


def read_states(
    path: str | os.PathLike[str], parts: Parts, inspection: Inspection
) -> tuple[WorldState, ...]:
    """
    Args:
        inspection: looks at the frames that the states show, which any file can claim to hold; not
            at those of worlds that were only reset, which are their user's own.

    Raises:
        GuardrailBlocked: a frame was refused, or could not be checked.
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
        reader = _Reader(tensors, json.loads(metadata.get("words", "[]")), parts, inspection)
        return tuple(reader.state(row) for row in rows)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise CheckpointError(f"{path}: no readable file of world states: {error!r}") from error


class _Reader:
    """Tails and prompts that several states share are made once."""

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        words: list[str | None],
        parts: Parts,
        inspection: Inspection,
    ) -> None:
        self._tensors, self._words, self._parts = tensors, words, parts
        self._inspection = inspection
        self._tails: dict[tuple[int, int, int, bool], Tail] = {}
        self._scripts: dict[int, Script] = {}
        self._no_text = Script()

    def state(self, row: dict[str, Any]) -> WorldState:
        height, width = row["size"]
        size, chunks = Size(height, width), row["chunks"]
        if type(chunks) is not int or chunks < 0:
            raise ValueError(f"chunks = {chunks!r}")
        tail = self._tail(row["tail"], row["given"], row["start"], size, made=chunks > 0)
        script = self._no_text if row["text"] is None else self._script(row["text"])
        return WorldState(check_seed(row["seed"]), chunks, size, tail, script, self._parts.profile)

    def _tail(self, number: int, given: int, start: int, size: Size, *, made: bool) -> Tail:
        key = (number, given, start, made)
        if key not in self._tails:
            held = self._tensors[f"tail.{number}"].to(self._parts.device)
            profile = self._parts.profile
            grid = (profile.num_latent_frames, size.height // 8, size.width // 8)
            if held.dtype == torch.uint8 and tuple(held.shape) == (given, *size, 3):
                shown = self._inspected(held) if made else held
                self._tails[key] = Tail(given, frames=held, shown=shown)
            elif held.dtype == torch.float32 and tuple(held.shape) == (LATENT_CHANNELS, *grid):
                self._tails[key] = Tail(given, latents=held, start=start)
            else:
                raise ValueError(f"tail of {held.dtype} and shape {tuple(held.shape)}")
        return self._tails[key]

    def _inspected(self, frames: torch.Tensor) -> torch.Tensor:
        return self._inspection.frames(Frames(frames, self._parts.profile.fps)).to("pt")

    def _script(self, number: int) -> Script:
        if number not in self._scripts:
            # Files of earlier versions hold no words: for a guarded engine, texts it cannot read.
            words = self._words[number] if self._words else None
            if words is not None and not isinstance(words, str):
                raise ValueError(f"words = {words!r}")
            held = self._tensors[f"text.{number}"]
            rows = held.new_zeros((TEXT_ROWS, self._parts.profile.dit.text_dim))
            rows[: len(held)] = held
            text = TextEmbedding(rows.to(self._parts.device), len(held))
            self._scripts[number] = Script(text, words)
        return self._scripts[number]
