"""What guardrail and upsampler take of a device: weights as they are put there, and activations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.prompt.guardrail import Placement


class WeightBytes(Protocol):
    """Counts the weights of a checkpoint file, or of all files of a folder; reads none."""

    def __call__(self, path: Path, *, prefix: str = "", dtype: torch.dtype | None = None) -> int:
        """
        Args:
            prefix: of the names of those that count.
            dtype: what they become; None: as they are stored.
        """
        ...


@dataclass(frozen=True)
class Need:
    """Of a device, in bytes, by one network."""

    name: str
    weight_bytes: int
    working_bytes: int
    """Beside the weights while it runs; an estimate, for the size that a checkpoint is made for."""
    placement: Placement


def device_bytes(needs: Iterable[Need]) -> int:
    """At most: all that stays, and the largest of what comes and goes. They run one at a time."""
    needs = tuple(needs)
    staying = sum(need.weight_bytes for need in needs if need.placement == "device")
    passing = (
        need.working_bytes + (0 if need.placement == "device" else need.weight_bytes)
        for need in needs
    )
    return staying + max(passing, default=0)


def parked_bytes(needs: Iterable[Need]) -> int:
    """:func:`device_bytes`, did all of them rest elsewhere while they do not run."""
    return device_bytes(replace(need, placement="host") for need in needs)


def told(needs: Iterable[Need]) -> str:
    """Each network with its share, for people."""
    return ", ".join(
        f"{need.name} {(need.weight_bytes + need.working_bytes) / 2**30:.2f} GiB in use, "
        f'placement="{need.placement}"'
        for need in needs
    )


def stated(folder: Path) -> dict[str, Any]:
    """A model's config.json; empty where it cannot be read: loading will tell."""
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def transformer_bytes(config: Any, tokens: int, *, cached: bool, itemsize: int = 2) -> int:
    """Activations of a transformer of which ``config`` tells the sizes; an estimate.

    Residual stream, queries, keys, values and the result of one layer, and its hidden layer before
    and after the gate; of a language model every layer's keys and values too, and three rows of
    scores in float32.
    """
    if not isinstance(config, dict):
        return 0
    width, hidden = _number(config, "hidden_size"), _number(config, "intermediate_size")
    values = tokens * (6 * width + 3 * hidden)
    if not cached:
        return values * itemsize
    heads = max(_number(config, "num_attention_heads"), 1)
    pairs = _number(config, "num_key_value_heads") or heads
    keys = tokens * _number(config, "num_hidden_layers") * 2 * width * pairs // heads
    return (values + keys) * itemsize + _number(config, "vocab_size") * 3 * 4


def _number(config: dict[str, Any], name: str) -> int:
    found = config.get(name)
    return found if isinstance(found, int) and found > 0 else 0
