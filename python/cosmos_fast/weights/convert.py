"""From one layout of checkpoint to another: NVIDIA's folder, diffusers' folder, a single file.

Tensors keep their dtype and their bytes. They pass one at a time from the mapped source into files
that appear when they are whole; then everything is read back and compared.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.files import TEMPORARY_PREFIX
from cosmos_fast.weights import dit_keys, layout, text_keys, vae_keys
from cosmos_fast.weights.diffusers_folder import write_descriptions, write_json
from cosmos_fast.weights.key_map import translation
from cosmos_fast.weights.sidecar import SIDECAR, sidecar_json
from cosmos_fast.weights.tensor_files import files_of, open_tensors, read_json
from cosmos_fast.weights.tensor_writers import (
    SHARD_BYTES,
    Spec,
    write_pt,
    write_safetensors,
    write_sharded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cosmos_fast.config import DiTConfig
    from cosmos_fast.weights.find import CheckpointFiles
    from cosmos_fast.weights.key_map import KeyMap
    from cosmos_fast.weights.tensor_files import TensorFile

Target = Literal["nvidia", "diffusers", "file"]
"""NVIDIA's folder; diffusers' folder; or the transformer alone in a file, under NVIDIA's names."""

_HEADROOM = 64 << 20


def convert(
    files: CheckpointFiles,
    destination: Path,
    to: Target,
    *,
    prefix: Literal["net.", ""] = "net.",
    text_encoder: bool = True,
    text_dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_file: Callable[[str], None] | None = None,
) -> Path:
    """Writes a checkpoint in another layout, or nothing.

    Args:
        files: the checkpoint, from :func:`find_checkpoint`.
        destination: a folder that does not exist yet; for "file" the name of a ``.safetensors`` or
            ``.pt`` file that does not exist yet.
        to: the layout.
        prefix: what NVIDIA's names begin with.
        text_encoder: bring the text encoder along, if there is one: linked where it is already a
            safetensors file of an encoder, else written as one.
        text_dtype: the text encoder's new dtype; None keeps the stored one.
        shard_bytes: largest file of a diffusers transformer.
        on_file: told the name of each part when it is written and compared.

    Returns:
        ``destination``.

    Raises:
        InputError: ``destination`` exists or has the wrong kind of name.
        CheckpointError: the source is not whole, the disk is too small or fails, or what was
            written differs from the source.
    """
    done = on_file or (lambda _: None)
    if to == "file" and destination.suffix not in (".safetensors", ".pt"):
        raise InputError(f"{destination = !s}: the name of a .safetensors or .pt file is needed")
    if destination.exists():
        raise InputError(f"{destination = !s} exists; a new name is needed")
    with_text = text_encoder and to != "file" and (files.text_encoder or files.hub) is not None
    _check_space(files, destination, text_dtype if with_text else None)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _staging(destination.parent) as folder:
            if to == "file":
                _write_file(files, folder, destination, prefix)
                done(destination.name)
                return destination
            if to == "diffusers":
                _write_diffusers(files, folder, shard_bytes, done)
            else:
                _write_nvidia(files, folder, prefix, done)
            if with_text:
                _write_text(files, folder, text_dtype, done)
            folder.rename(destination)
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written: {error}") from error
    return destination


def to_nvidia(
    parameters: Mapping[str, torch.Tensor], config: DiTConfig, prefix: str = "net."
) -> dict[str, torch.Tensor]:
    """A transformer's parameters under NVIDIA's names; views, nothing is copied.

    Raises:
        CheckpointError: a parameter is missing, unknown or misshapen.
    """
    return dit_keys.nvidia_keys(config, prefix).rename(parameters)


def to_diffusers(
    parameters: Mapping[str, torch.Tensor], config: DiTConfig
) -> dict[str, torch.Tensor]:
    """A transformer's parameters under diffusers' names; otherwise as :func:`to_nvidia`."""
    return dit_keys.diffusers_keys(config).rename(parameters)


def _write_file(files: CheckpointFiles, folder: Path, destination: Path, prefix: str) -> None:
    described = destination.parent / SIDECAR
    content = sidecar_json(files.profile)
    if described.exists() and read_json(described) != content:
        raise InputError(
            f"{destination = !s}: {SIDECAR} there describes another model; use another folder"
        )
    with open_tensors(files.dit) as file:
        target = dit_keys.nvidia_keys(files.profile.dit, prefix)
        _transfer(file, _dit_keys(files, file), target, folder / destination.name)
    if not described.exists():
        write_json(described, content)
    (folder / destination.name).replace(destination)


def _write_nvidia(
    files: CheckpointFiles, folder: Path, prefix: str, done: Callable[[str], None]
) -> None:
    name = layout.nvidia_name(files.profile.name)
    with open_tensors(files.dit) as file:
        target = dit_keys.nvidia_keys(files.profile.dit, prefix)
        _transfer(file, _dit_keys(files, file), target, folder / name)
    done(name)
    (folder / "tokenizer").mkdir()
    with open_tensors(files.vae) as file:
        target = vae_keys.wan_keys(files.profile.vae)
        _transfer(file, _vae_keys(files, file), target, folder / "tokenizer" / "tokenizer.pth")
    done("tokenizer/tokenizer.pth")
    write_json(folder / SIDECAR, sidecar_json(files.profile))


def _write_diffusers(
    files: CheckpointFiles, folder: Path, shard_bytes: int, done: Callable[[str], None]
) -> None:
    write_descriptions(folder, files.profile)
    with open_tensors(files.dit) as file:
        target = dit_keys.diffusers_keys(files.profile.dit)
        part = folder / "transformer" / layout.DIFFUSERS_WEIGHTS
        _transfer(file, _dit_keys(files, file), target, part, shard_bytes)
    done("transformer")
    with open_tensors(files.vae) as file:
        target = vae_keys.diffusers_keys(files.profile.vae)
        part = folder / "vae" / layout.DIFFUSERS_WEIGHTS
        _transfer(file, _vae_keys(files, file), target, part)
    done("vae")


def _write_text(
    files: CheckpointFiles,
    folder: Path,
    dtype: torch.dtype | None,
    done: Callable[[str], None],
) -> None:
    source, tokenizer = files.require_text()
    encoder = folder / "text_encoder"
    encoder.mkdir()
    config = read_json(source / "config.json")
    shape = text_keys.read_config(config, source / "config.json")
    weights = layout.text_weights(source)
    with open_tensors(weights) as file:
        present = text_keys.text_keys(shape, file.entries)
        present.check(file)
        whole = set(file.entries) <= present.file_names().keys() | {text_keys.TIED_EMBEDDING}
        if dtype is None and whole and weights.suffix != ".bin":
            for part in files_of(weights):
                _link(part, encoder / part.name)
        else:
            target = text_keys.text_keys(shape, ())
            _transfer(file, present, target, encoder / "model.safetensors", None, dtype)
    if dtype is not None:
        config = {**config, "dtype": str(dtype).removeprefix("torch.")}
        config.pop("torch_dtype", None)
    write_json(encoder / "config.json", {**config, "architectures": ["T5EncoderModel"]})
    (folder / "tokenizer").mkdir(exist_ok=True)
    for name in (*layout.TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / "tokenizer" / name)
    done("text_encoder")


def _transfer(
    file: TensorFile,
    source: KeyMap,
    target: KeyMap,
    path: Path,
    shard_bytes: int | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the tensors of ``file`` under their new names, then reads them back and compares.

    Raises:
        CheckpointError: ``file`` is not whole or not finite, or the copy differs.
    """
    source.check(file)
    names = translation(target, source)

    def read(name: str) -> torch.Tensor:
        stored = file.read(names[name])
        tensor = stored if dtype is None else stored.to(dtype)
        if not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise CheckpointError(
                f"{file.entries[names[name]].file}: {names[name]} holds values that are not finite"
                + (f" in {dtype}" if dtype else "")
            )
        return tensor

    specs = {}
    for new, old in names.items():
        entry = file.entries[old]
        assert entry.dtype is not None, "checked"
        specs[new] = Spec(entry.shape, dtype or entry.dtype)
    if shard_bytes is not None:
        path = write_sharded(path.parent, path.stem, specs, read, shard_bytes=shard_bytes)
    elif path.suffix == ".safetensors":
        write_safetensors(path, specs, read)
    else:
        write_pt(path, specs, read)
    with open_tensors(path) as copy:
        target.check(copy)
        for name in names:
            there = copy.read(name)
            if there.dtype != specs[name].dtype or not torch.equal(there, read(name)):
                raise CheckpointError(
                    f"{path}: {name} differs from {names[name]} in {file.path} after writing; "
                    f"is the disk in order?"
                )


def _dit_keys(files: CheckpointFiles, file: TensorFile) -> KeyMap:
    names, prefix = dit_keys.detect(file.entries, files.ema)
    config = files.profile.dit
    if names == "nvidia":
        return dit_keys.nvidia_keys(config, prefix)
    return dit_keys.diffusers_keys(config)


def _vae_keys(files: CheckpointFiles, file: TensorFile) -> KeyMap:
    keys = {"nvidia": vae_keys.wan_keys, "diffusers": vae_keys.diffusers_keys}
    return keys[vae_keys.detect(file.entries)](files.profile.vae)


def _check_space(files: CheckpointFiles, destination: Path, text_dtype: torch.dtype | None) -> None:
    parts = [*files_of(files.dit), *files_of(files.vae)]
    if text_dtype is not None and files.text_encoder is not None:  # else it is linked
        parts += files_of(layout.text_weights(files.text_encoder))
    needed = sum(part.stat().st_size for part in parts) + _HEADROOM
    existing = next(folder for folder in destination.absolute().parents if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"{destination}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        )


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A folder in ``parent`` to write in and to rename; what is left in it goes."""
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
    try:
        temporary.chmod(0o755)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """The same bytes under a second name, or a copy where the disk has no such thing."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
