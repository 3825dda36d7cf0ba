"""Names: which tensors of a file make which parameter of ours, and back.

A key map is a table, generated once from the architecture: every parameter of ours, the tensors of
the file it is stacked from (along the first axis), their shapes. Nothing is matched by similarity;
what a table does not mention must be on the short list of names that carry no weights, or the file
is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from cosmos_fast.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from cosmos_fast.weights.tensor_files import TensorFile

WEIGHT_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
"""What a weight may be stored as."""

_NAMED_IN_ERRORS = 4


@dataclass(frozen=True)
class Piece:
    """One tensor of a file: its name without the file's prefix, and the shape it must have."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class KeyMap:
    """How the parameters of one of our networks are spelt in one layout of checkpoint."""

    layout: str
    targets: Mapping[str, tuple[Piece, ...]]
    """Our parameter name to the pieces that are stacked into it, first rows first."""
    prefix: str = ""
    """What stands before every name in the file, such as ``net.``."""
    ignored: tuple[str, ...] = ()
    """Regular expressions for whole names (prefix included) that carry no weights."""

    def shape(self, target: str) -> tuple[int, ...]:
        """Shape of our parameter ``target``."""
        pieces = self.targets[target]
        return (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])

    def file_names(self) -> dict[str, tuple[int, ...]]:
        """Name in the file, prefix included, and shape of every tensor the layout consists of."""
        return {
            self.prefix + piece.name: piece.shape
            for pieces in self.targets.values()
            for piece in pieces
        }

    def split(self, target: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The inverse: our parameter as (name in the file, view of its rows)."""
        first = 0
        for piece in self.targets[target]:
            yield self.prefix + piece.name, tensor[first : first + piece.shape[0]]
            first += piece.shape[0]

    def rename(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Our parameters under the names of this layout; the tensors are views of ``weights``.

        Raises:
            CheckpointError: a parameter is missing, unknown or of the wrong shape.
        """
        if strange := set(self.targets) ^ set(weights):
            raise CheckpointError(
                f"cannot write the {self.layout} layout: {_listed(strange)} missing or not known"
            )
        for target, tensor in weights.items():
            if tuple(tensor.shape) != self.shape(target):
                raise CheckpointError(
                    f"cannot write the {self.layout} layout: {target} has shape "
                    f"{tuple(tensor.shape)}, {self.shape(target)} was expected"
                )
        return {
            name: rows
            for target in self.targets
            for name, rows in self.split(target, weights[target])
        }

    def check(self, file: TensorFile) -> None:
        """Compares the table with the names, shapes and dtypes of ``file``; reads no weights.

        Raises:
            CheckpointError: a tensor is missing, extra, misshapen or not a weight's dtype; named.
        """
        expected = self.file_names()
        if missing := expected.keys() - file.entries.keys():
            raise CheckpointError(
                f"{file.path}: {_listed(missing)} missing; the {self.layout} layout has "
                f"{len(expected)} tensors, {len(expected) - len(missing)} of them are here. "
                f"Is the file complete, and of this model?"
            )
        not_weights = re.compile("|".join(f"(?:{pattern})" for pattern in self.ignored) or r"(?!)")
        present = [*file.entries, *file.others]
        if extra := {n for n in present if n not in expected and not not_weights.fullmatch(n)}:
            raise CheckpointError(
                f"{file.path}: {_listed(extra)} not part of the {self.layout} layout and would be "
                f"left out silently. {_cure_for_extra(extra)}"
            )
        for name, shape in expected.items():
            entry = file.entries[name]
            if entry.shape != shape:
                raise CheckpointError(
                    f"{entry.file}: {name} has shape {entry.shape}, {shape} was expected from the "
                    f"architecture of this checkpoint; the file belongs to another model"
                )
            if entry.dtype not in WEIGHT_DTYPES:
                raise CheckpointError(
                    f"{entry.file}: {name} is stored as {entry.dtype}; weights are float32, "
                    f"bfloat16 or float16. Quantised files are not read"
                )


def translation(to: KeyMap, source: KeyMap) -> dict[str, str]:
    """Name in the layout ``to`` to name in the layout ``source``, tensor by tensor.

    Both are of one network, and cut its parameters into the same pieces.
    """
    return {
        to.prefix + new.name: source.prefix + old.name
        for target, pieces in to.targets.items()
        for new, old in zip(pieces, source.targets[target], strict=True)
    }


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:_NAMED_IN_ERRORS]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{', '.join(shown)}{more} {'are' if len(names) > 1 else 'is'}"


def _cure_for_extra(names: Collection[str]) -> str:
    if any(".lora_" in name or ".base_layer." in name for name in names):
        return "It holds LoRA adapters: merge them into the weights first"
    if any("action_embedder" in name for name in names):
        return "It holds part of an action-conditioned network; the rest is missing"
    if any("view_embeddings" in name or "n_cameras_" in name for name in names):
        return "It is a multiview network, which is not supported"
    if any("crossattn_proj" in name for name in names):
        return "It reads Cosmos-Reason1 text embeddings, which are not supported"
    return "Use a file of this model only"
