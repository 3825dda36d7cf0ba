"""Tensors from files to parameters: by name, strictly, one at a time, finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cosmos_fast.errors import CheckpointError
from cosmos_fast.imports import untraced
from cosmos_fast.weights import dit_keys, text_keys, vae_keys
from cosmos_fast.weights.companions import weights_in
from cosmos_fast.weights.layout import text_weights
from cosmos_fast.weights.tensor_files import open_tensors, read_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import T5Config

    from cosmos_fast.weights.find import CheckpointFiles
    from cosmos_fast.weights.key_map import KeyMap
    from cosmos_fast.weights.tensor_files import TensorFile


def load_dit(
    files: CheckpointFiles, device: torch.device | str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The transformer's parameters under our names, for ``load_state_dict(assign=True)``.

    Args:
        files: from :func:`find_checkpoint`.
        device: where they are wanted.
        dtype: float32, bfloat16 or float16.

    Raises:
        CheckpointError: a tensor is missing, extra, misshapen, of a wrong dtype or not finite.
    """
    with open_tensors(files.dit) as file:
        layout, prefix = dit_keys.detect(file.entries, files.ema)
        config = files.profile.dit
        if layout == "nvidia":
            key_map = dit_keys.nvidia_keys(config, prefix)
        else:
            key_map = dit_keys.diffusers_keys(config)
        return read_parameters(file, key_map, device, dtype)


def load_vae(
    files: CheckpointFiles, device: torch.device | str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The VAE's parameters under our (diffusers') names; otherwise as :func:`load_dit`."""
    with open_tensors(files.vae) as file:
        keys = {"nvidia": vae_keys.wan_keys, "diffusers": vae_keys.diffusers_keys}
        key_map = keys[vae_keys.detect(file.entries)](files.profile.vae)
        return read_parameters(file, key_map, device, dtype)


def load_text_encoder(
    files: CheckpointFiles, device: torch.device | str, dtype: torch.dtype | None = None
) -> tuple[T5Config, dict[str, torch.Tensor]]:
    """The text encoder's configuration and parameters under transformers' names.

    ``shared.weight`` and ``encoder.embed_tokens.weight`` are one tensor. Where the checkpoint is a
    hub repository whose encoder was not needed so far, it is fetched now.

    Args:
        files: from :func:`find_checkpoint`.
        device: where the parameters are wanted.
        dtype: None keeps the one they are stored in.

    Raises:
        CheckpointError: there is no text encoder, it is no T5 v1.0, or as for :func:`load_dit`.
    """
    folder, _ = files.require_text()
    weights = text_weights(folder)
    config = read_json(folder / "config.json")
    shape = text_keys.TextShape.from_json(config, folder / "config.json")
    with open_tensors(weights) as file:
        key_map = text_keys.text_keys(shape, file.entries)
        parameters = read_parameters(file, key_map, device, dtype or _stored_dtype(file, key_map))
        embedding = parameters[text_keys.EMBEDDING]
        both = {text_keys.EMBEDDING, text_keys.TIED_EMBEDDING}
        if both <= file.entries.keys() and not torch.equal(*map(file.read, sorted(both))):
            raise CheckpointError(
                f"{file.path}: shared.weight and {text_keys.TIED_EMBEDDING} differ; in T5 they are "
                f"one tensor, so one of them is wrong"
            )
    parameters[text_keys.TIED_EMBEDDING] = embedding

    with untraced():
        from transformers import T5Config  # costs a second; only those who need the encoder pay it

    return T5Config.from_dict(config), parameters


def read_parameters(
    file: TensorFile, key_map: KeyMap, device: torch.device | str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Every parameter of ``key_map``, each copied straight into its place on ``device``.

    Raises:
        CheckpointError: as :meth:`KeyMap.check`, or a value is not finite in ``dtype``; named.
    """
    key_map.check(file)
    parameters: dict[str, torch.Tensor] = {}
    extremes: list[torch.Tensor] = []
    for target in key_map.targets:
        tensor = torch.empty(key_map.shape(target), dtype=dtype, device=device)
        for name, rows in key_map.split(target, tensor):
            rows.copy_(file.read(name))
        # One pass and no temporary: not a number and infinities come through as extremes.
        extremes.append(torch.stack(torch.aminmax(tensor)))
        parameters[target] = tensor
    verdicts = torch.stack(extremes).isfinite().all(1).tolist()  # the only wait for the device
    for target, verdict in zip(parameters, verdicts, strict=True):
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
