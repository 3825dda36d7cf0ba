"""Tensors from files to parameters: by name, strictly, one at a time, finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights import dit_keys, text_keys, vae_keys
from cosmos_fast.weights.bring import Piece, bring
from cosmos_fast.weights.companions import weights_in
from cosmos_fast.weights.layout import text_weights
from cosmos_fast.weights.tensor_files import open_tensors, read_json

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.config import T5Config
    from cosmos_fast.weights.extents import Extent
    from cosmos_fast.weights.find import CheckpointFiles
    from cosmos_fast.weights.key_map import KeyMap
    from cosmos_fast.weights.tensor_files import TensorFile

Place = Callable[[str, tuple[int, ...], torch.dtype], torch.Tensor]
"""``place(name, shape, dtype)``: the memory that a parameter is read into."""


@dataclass(frozen=True)
class Source:
    """Bytes of a file that become a part of a parameter."""

    extent: Extent
    rounded: bool
    """float32 in the file, bfloat16 in memory."""


Sources = Mapping[str, tuple[Source, ...]]
"""Of each parameter that can come straight from its file."""


def load_dit(
    files: CheckpointFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    place: Place | None = None,
) -> dict[str, torch.Tensor]:
    """The transformer's parameters under our names, for ``load_state_dict(assign=True)``.

    Args:
        files: from :func:`find_checkpoint`.
        device: where they are wanted.
        dtype: float32, bfloat16 or float16.
        place: as for :func:`read_parameters`.

    Raises:
        CheckpointError: a tensor is missing, extra, misshapen, of a wrong dtype or not finite.
    """
    with _dit(files) as (file, key_map):
        return read_parameters(file, key_map, device, dtype, place)


def locate_dit(files: CheckpointFiles, dtype: torch.dtype) -> Sources:
    """Where the transformer's parameters lie; as :func:`locate_parameters`."""
    with _dit(files) as (file, key_map):
        return locate_parameters(file, key_map, dtype)


@contextmanager
def _dit(files: CheckpointFiles) -> Iterator[tuple[TensorFile, KeyMap]]:
    with open_tensors(files.dit) as file:
        layout, prefix = dit_keys.detect(file.entries, files.ema)
        config = files.profile.dit
        if layout == "nvidia":
            yield file, dit_keys.nvidia_keys(config, prefix)
        else:
            yield file, dit_keys.diffusers_keys(config)


def load_vae(
    files: CheckpointFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    place: Place | None = None,
) -> dict[str, torch.Tensor]:
    """The VAE's parameters under our (diffusers') names; otherwise as :func:`load_dit`."""
    with _vae(files) as (file, key_map):
        return read_parameters(file, key_map, device, dtype, place)


def locate_vae(files: CheckpointFiles, dtype: torch.dtype) -> Sources:
    """Where the VAE's parameters lie; as :func:`locate_parameters`."""
    with _vae(files) as (file, key_map):
        return locate_parameters(file, key_map, dtype)


@contextmanager
def _vae(files: CheckpointFiles) -> Iterator[tuple[TensorFile, KeyMap]]:
    with open_tensors(files.vae) as file:
        keys = {"nvidia": vae_keys.wan_keys, "diffusers": vae_keys.diffusers_keys}
        yield file, keys[vae_keys.detect(file.entries)](files.profile.vae)


def load_text_encoder(
    files: CheckpointFiles,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    place: Place | None = None,
) -> tuple[T5Config, dict[str, torch.Tensor]]:
    """The text encoder's configuration and parameters under transformers' names.

    Where the checkpoint is a hub repository whose encoder was not needed so far, it is fetched now.

    Args:
        files: from :func:`find_checkpoint`.
        device: where the parameters are wanted.
        dtype: None keeps the one they are stored in.
        place: as for :func:`read_parameters`.

    Raises:
        CheckpointError: there is no text encoder, it is no T5 v1.0, or as for :func:`load_dit`.
    """
    with _text(files) as (file, key_map):
        dtype = dtype or _stored_dtype(file, key_map)
        parameters = read_parameters(file, key_map, device, dtype, place)
        both = {text_keys.EMBEDDING, text_keys.TIED_EMBEDDING}
        if both <= file.entries.keys() and not torch.equal(*map(file.read, sorted(both))):
            raise CheckpointError(
                f"{file.path}: shared.weight and {text_keys.TIED_EMBEDDING} differ; in T5 they are "
                f"one tensor, so one of them is wrong"
            )
    return _text_config(files), parameters


def locate_text_encoder(files: CheckpointFiles, dtype: torch.dtype) -> Sources:
    """Where the text encoder's parameters lie; as :func:`locate_parameters`."""
    with _text(files) as (file, key_map):
        return locate_parameters(file, key_map, dtype)


def describe_text_encoder(
    files: CheckpointFiles, dtype: torch.dtype | None = None
) -> tuple[T5Config, torch.dtype]:
    """The text encoder's sizes and, unless given, stored dtype; no weight is read."""
    with _text(files) as (file, key_map):
        return _text_config(files), dtype or _stored_dtype(file, key_map)


def _text_config(files: CheckpointFiles) -> T5Config:
    """The text encoder's configuration."""
    folder, _ = files.require_text()
    path = folder / "config.json"
    return text_keys.read_config(read_json(path), path)


@contextmanager
def _text(files: CheckpointFiles) -> Iterator[tuple[TensorFile, KeyMap]]:
    folder, _ = files.require_text()
    weights = text_weights(folder)
    config = _text_config(files)
    with open_tensors(weights) as file:
        yield file, text_keys.text_keys(config, file.entries)


def read_parameters(
    file: TensorFile,
    key_map: KeyMap,
    device: torch.device | str,
    dtype: torch.dtype,
    place: Place | None = None,
) -> dict[str, torch.Tensor]:
    """Every parameter of ``key_map``, each read straight into its place.

    Args:
        device: where the parameters are wanted.
        dtype: what they are wanted in.
        place: gives the memory for a parameter: called with its name, shape and dtype. None: new
            memory on ``device``.

    Raises:
        CheckpointError: as :meth:`KeyMap.check`, or a value is not finite in ``dtype``; named.
    """
    key_map.check(file)
    if place is None:

        def place(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

    parameters: dict[str, torch.Tensor] = {}
    pieces: list[Piece] = []
    owners: list[str] = []
    for target in key_map.targets:
        parameters[target] = tensor = place(target, key_map.shape(target), dtype)
        for name, rows in key_map.split(target, tensor):
            pieces.append(Piece(name, rows))
            owners.append(target)
    missing = Counter(owners)
    extremes: dict[str, torch.Tensor] = {}
    for index in bring(file, pieces):
        target = owners[index]
        missing[target] -= 1
        if not missing[target]:
            # One pass and no temporary: not a number and infinities come through as extremes.
            extremes[target] = torch.stack(torch.aminmax(parameters[target]))
    # The only wait for the device.
    verdicts = torch.stack(list(extremes.values())).isfinite().all(1).tolist()
    for target, verdict in zip(extremes, verdicts, strict=True):
        if not verdict:
            raise _not_finite(file, key_map, target, parameters[target])
    return parameters


def read_tensors(
    path: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    rename: Callable[[str], str | None] = lambda name: name,
    inside: str | None = None,
) -> dict[str, torch.Tensor]:
    """Every tensor of a companion model, under the names its network has for them.

    Args:
        path: a checkpoint file, or a folder with safetensors.
        device: where they are wanted.
        dtype: of the floating ones; None keeps the one they are stored in.
        rename: what to call them; None leaves one out.
        inside: the key of the dict that holds them, where the file holds another one around it.

    Raises:
        CheckpointError: missing or damaged, two tensors of one name, or a value is not finite.
    """
    tensors: dict[str, torch.Tensor] = {}
    with open_tensors(weights_in(path) if path.is_dir() else path, inside=inside) as file:
        for name, entry in file.entries.items():
            if (target := rename(name)) is None:
                continue
            if target in tensors:
                raise CheckpointError(f"{entry.file}: {name} and another tensor are both {target}")
            stored = file.read(name)
            kind = dtype if dtype is not None and stored.is_floating_point() else stored.dtype
            tensors[target] = stored.to(device, kind, copy=True)
            if not torch.isfinite(tensors[target]).all():
                raise CheckpointError(f"{entry.file}: {name} holds values that are not finite")
    return tensors


def locate_parameters(
    file: TensorFile, key_map: KeyMap, dtype: torch.dtype
) -> dict[str, tuple[Source, ...]]:
    """Where the bytes of every parameter of ``key_map`` lie, part by part.

    Everything is read once, to see that it is finite, and nothing is kept.

    Args:
        dtype: what they are wanted in.

    Returns:
        For each parameter the stretches of files that follow one another in it; nothing for one
        that cannot come straight from its file: its dtype or its form is another.

    Raises:
        CheckpointError: as :func:`read_parameters`.
    """
    key_map.check(file)
    found: dict[str, tuple[Source, ...]] = {}
    for target, pieces in key_map.targets.items():
        sources = []
        for piece in pieces:
            name = key_map.prefix + piece.name
            value = file.read(name).to(dtype)
            if not torch.stack(torch.aminmax(value)).isfinite().all():
                parameter = torch.cat([file.read(key_map.prefix + p.name) for p in pieces])
                raise _not_finite(file, key_map, target, parameter.to(dtype))
            stored, extent = file.entries[name].dtype, file.extents.get(name)
            rounded = stored == torch.float32 and dtype == torch.bfloat16
            if extent is not None and (rounded or stored == dtype):
                sources.append(Source(extent, rounded))
        if len(sources) == len(pieces):
            found[target] = tuple(sources)
    return found


def _not_finite(
    file: TensorFile, key_map: KeyMap, target: str, tensor: torch.Tensor
) -> CheckpointError:
    for name, rows in key_map.split(target, tensor):
        if count := int((~torch.isfinite(rows)).sum()):
            entry = file.entries[name]
            stored = int((~torch.isfinite(file.read(name))).sum())
            if stored:
                return CheckpointError(
                    f"{entry.file}: {name} holds {stored} values that are not finite; finite "
                    f"weights are needed. Fetch the file again, or ask whoever made it"
                )
            return CheckpointError(
                f"{entry.file}: {name} is finite as {entry.dtype}, but {count} values overflow "
                f"{tensor.dtype}; load it as float32 or bfloat16"
            )
    return CheckpointError(f"{file.path}: {target} changed while it was read; load it again")


def _stored_dtype(file: TensorFile, key_map: KeyMap) -> torch.dtype:
    stored = {
        entry.dtype
        for name in key_map.file_names()
        if (entry := file.entries.get(name)) is not None
    }
    if len(stored) != 1 or (dtype := stored.pop()) is None:
        kinds = ", ".join(sorted(map(str, stored)))
        raise CheckpointError(
            f"{file.path}: the text encoder is stored in several dtypes ({kinds}); "
            f"say which one to run it in"
        )
    return dtype
