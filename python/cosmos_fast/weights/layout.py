"""Folders: where the parts of a checkpoint lie in each layout people keep them in.

NVIDIA          nvidia/Cosmos-Predict2-2B-Video2World/{model-480p-16fps.pt, tokenizer/tokenizer.pth}
                google-t5/t5-11b/
the original's  Cosmos-Predict2-2B-Video2World/model.pt
                Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth, google-t5/t5-11b/
diffusers       {transformer, vae, text_encoder, tokenizer}/ in one folder
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights.released import DIFFUSERS_VARIANT, ORIGINAL_VARIANT, PLAIN_VARIANT
from cosmos_fast.weights.tensor_files import INDEX_SUFFIX, check_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DIFFUSERS_WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
DIFFUSERS_INDEX: Final = "diffusion_pytorch_model.safetensors.index.json"
TOKENIZER_FILES: Final = ("tokenizer.json", "spiece.model")
TEXT_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

_T5 = "google-t5/t5-11b"
_WAN = ("Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth", "Wan-AI/Wan2.1-T2V-14B/Wan2.1_VAE.pth")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors")
_MODEL_FOLDERS = ("Cosmos-Predict2-*", "nvidia/Cosmos-Predict2-*")


class Candidate(NamedTuple):
    """A transformer that was found."""

    variant: str
    dit: Path
    home: Path
    """The model's folder: its other parts and its cosmos_fast.json lie there."""


class Text(NamedTuple):
    """A text encoder and its tokenizer, or where they were looked for in vain."""

    encoder: Path | None
    tokenizer: Path | None
    looked_for: tuple[str, ...]


def variants_among(names: Iterable[str]) -> list[tuple[str, str]]:
    """(variant, name) of every transformer among a model folder's files.

    Args:
        names: relative names with ``/``, of a local folder or of a hub repository.
    """
    present = set(names)
    found = []
    for folder in ("transformer/", ""):
        for weights in (DIFFUSERS_WEIGHTS, DIFFUSERS_INDEX):
            if folder + weights in present:
                found.append((DIFFUSERS_VARIANT, folder + weights))
                break
    for name in sorted(present):
        if "/" in name or name.startswith(DIFFUSERS_WEIGHTS.removesuffix(".safetensors")):
            continue
        if name.endswith((".pt", ".safetensors", INDEX_SUFFIX)) and not _SHARD.search(name):
            found.append((variant_of(name), name))
    return found


def variant_of(name: str) -> str:
    """``model-480p-16fps.pt`` is ``480p-16fps``, ``model.pt`` is ``model``."""
    stem = name.removesuffix(INDEX_SUFFIX).removesuffix(Path(name).suffix)
    return stem.removeprefix("model-")


def nvidia_name(profile_name: str) -> str:
    """The file name in NVIDIA's layout of a checkpoint with a profile of this name."""
    variant = profile_name.rpartition("/")[2]
    return f"model-{variant}.pt" if PLAIN_VARIANT.fullmatch(variant) else "model.pt"


def choose(local: Path, variant: str | None) -> Candidate:
    """The one transformer that ``local`` (a file or folder) and ``variant`` mean.

    Raises:
        CheckpointError: none or several, the message lists what is there; or a file of another
            kind.
    """
    if not local.is_dir():
        check_name(local)
        home = local.parent.parent if local.parent.name == "transformer" else local.parent
        diffusers = local.name in (DIFFUSERS_WEIGHTS, DIFFUSERS_INDEX)
        named = DIFFUSERS_VARIANT if diffusers else variant_of(local.name)
        return pick([Candidate(named, local, home)], variant, str(local))
    found = [_candidate(local, *pair) for pair in variants_among(_listing(local))]
    if not found:
        for pattern in _MODEL_FOLDERS:
            for folder in sorted(local.glob(pattern)):
                found += [_candidate(folder, *pair) for pair in variants_among(_listing(folder))]
    return pick(found, variant, str(local))


def pick(found: list[Candidate], variant: str | None, where: str) -> Candidate:
    """The candidate that ``variant`` names.

    Where there is only one, and its file is not called after a resolution and a rate, ``variant``
    says which of the released checkpoints it is.

    Raises:
        CheckpointError: none or several.
    """
    if not found:
        raise CheckpointError(
            f"{where}: no transformer there; looked for model*.pt, *.safetensors, "
            f"transformer/{DIFFUSERS_WEIGHTS} and folders {', '.join(_MODEL_FOLDERS)}"
        )
    matching = [each for each in found if variant is None or _is_called(each, variant)]
    if len(matching) == 1:
        return matching[0]
    listed = ", ".join(f"{each.variant!r} ({each.dit.name})" for each in matching or found)
    if not matching:
        assert variant is not None
        released = PLAIN_VARIANT.fullmatch(variant) or variant == ORIGINAL_VARIANT
        if released and len(found) == 1 and not PLAIN_VARIANT.fullmatch(found[0].variant):
            return found[0]._replace(variant=variant)
        raise CheckpointError(f"{where}: {variant = } is not there; found {listed}")
    raise CheckpointError(
        f"{where}: {len(matching)} checkpoints match; pick one with variant=, or give its file: "
        f"{listed}"
    )


def helper_roots(home: Path, root: Path | None) -> tuple[Path, ...]:
    """Folders below which VAE and T5 may lie, in the order they are looked in."""
    above = home.parent.parent if home.parent.name == "nvidia" else home.parent
    roots = [root, above, home] if root is not None else [above, home]
    return tuple(dict.fromkeys(roots))


def find_vae(chosen: Candidate, roots: tuple[Path, ...]) -> Path:
    """
    Raises:
        CheckpointError: there is none; the message lists where it was looked for.
    """
    own = [chosen.home / "tokenizer" / "tokenizer.pth", chosen.home / "vae" / DIFFUSERS_WEIGHTS]
    if chosen.variant == DIFFUSERS_VARIANT or chosen.dit.parent.name == "transformer":
        own.reverse()
    others = [root / name for root in roots for name in (*_WAN, "Wan2.1_VAE.pth")]
    siblings = [
        file for root in roots for file in root.glob(f"{_MODEL_FOLDERS[1]}/tokenizer/tokenizer.pth")
    ]
    places = [*own, *others, *sorted(siblings)]
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(
        f"{chosen.dit}: no VAE beside it; looked for {', '.join(map(str, places))}. "
        f"Give vae= (Wan2.1_VAE.pth, tokenizer.pth or a diffusers vae folder)"
    )


def find_text(home: Path, roots: tuple[Path, ...]) -> Text:
    """The text encoder beside a model or below one of ``roots``; none is no error here."""
    places = [home / "text_encoder", *(root / _T5 for root in roots)]
    for root in roots:
        places += sorted(root.glob(f"{_MODEL_FOLDERS[1]}/text_encoder"))
    for place in places:
        if (place / "config.json").is_file() and any((place / n).is_file() for n in TEXT_WEIGHTS):
            return Text(place, _tokenizer_of(place), ())
    return Text(None, _tokenizer_of(home / "text_encoder"), tuple(map(str, places)))


def explicit_vae(path: Path) -> Path:
    """The VAE file that a person names, by itself or by its folder.

    Raises:
        CheckpointError: there is none.
    """
    path = path.expanduser()
    for place in (path, path / DIFFUSERS_WEIGHTS, path / "vae" / DIFFUSERS_WEIGHTS,
                  path / "tokenizer.pth", path / "Wan2.1_VAE.pth"):  # fmt: skip
        if place.is_file():
            return place
    raise CheckpointError(f"vae = {path}: no VAE file there (.pth or {DIFFUSERS_WEIGHTS})")


def explicit_text(path: Path) -> Text:
    """The text encoder whose folder a person names.

    Raises:
        CheckpointError: there is none.
    """
    path = path.expanduser()
    for place in (path, path / "text_encoder", path / _T5):
        if (place / "config.json").is_file() and any((place / n).is_file() for n in TEXT_WEIGHTS):
            return Text(place, _tokenizer_of(place), ())
    raise CheckpointError(
        f"text_encoder = {path}: a folder with config.json and one of {', '.join(TEXT_WEIGHTS)} "
        f"is needed"
    )


def explicit_tokenizer(path: Path) -> Path:
    """The tokenizer folder that a person names, by itself or by a file in it.

    Raises:
        CheckpointError: there is none.
    """
    path = path.expanduser()
    folder = path if path.is_dir() else path.parent
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return folder
    raise CheckpointError(f"tokenizer = {path}: none of {', '.join(TOKENIZER_FILES)} there")


def tokenizer_file(folder: Path) -> Path:
    """The file that a tokenizer is read from: tokenizer.json, or the older spiece.model."""
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()),
                folder / TOKENIZER_FILES[0])  # fmt: skip


def text_weights(folder: Path) -> Path:
    """The file, or the index of the shards, of a text encoder's weights."""
    return next((folder / name for name in TEXT_WEIGHTS if (folder / name).is_file()),
                folder / TEXT_WEIGHTS[0])  # fmt: skip


def _is_called(candidate: Candidate, variant: str) -> bool:
    return variant in (candidate.variant, f"{candidate.home.name}/{candidate.variant}")


def _candidate(home: Path, variant: str, name: str) -> Candidate:
    inside_transformer = variant == DIFFUSERS_VARIANT and "/" not in name
    return Candidate(variant, home / name, home.parent if inside_transformer else home)


def _listing(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_file():
            yield path.name
    inner = folder / "transformer"
    if inner.is_dir():
        yield from (f"transformer/{path.name}" for path in inner.iterdir())


def _tokenizer_of(encoder: Path) -> Path | None:
    for folder in (encoder, encoder.parent / "tokenizer"):
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            return folder
    return None
