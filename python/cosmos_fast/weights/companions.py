"""The models that stand beside the model: the guardrail's, and the prompt upsampler.

NVIDIA's layout keeps them below the checkpoint root under their hub names:
nvidia/Cosmos-Guardrail1, meta-llama/Llama-Guard-3-8B, Qwen/Qwen2.5-VL-7B-Instruct.
"""

from __future__ import annotations

import math
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights import layout
from cosmos_fast.weights.hub import list_files, snapshot
from cosmos_fast.weights.released import REVISIONS
from cosmos_fast.weights.tensor_files import open_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cosmos_fast.weights.find import CheckpointFiles
    from cosmos_fast.weights.hub import HubAccess

GUARDRAIL: Final = "nvidia/Cosmos-Guardrail1"
LLAMA_GUARD: Final = "meta-llama/Llama-Guard-3-8B"
QWEN: Final = "Qwen/Qwen2.5-VL-7B-Instruct"
REASON1: Final = "nvidia/Cosmos-Reason1-7B"
COMPANIONS: Final = (GUARDRAIL, LLAMA_GUARD, QWEN, REASON1)

_FILTER: Final = "video_content_safety_filter"
_SIGLIP: Final = "google/siglip-so400m-patch14-384"
_CACHED_SIGLIP: Final = f"{_FILTER}/models--{_SIGLIP.replace('/', '--')}"
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LEFT_OUT: Final = ("original/", "assets/", "figures/", ".git")
_NO_WEIGHTS: Final = (".md", ".png", ".jpg", ".jpeg", ".gif", ".pdf", ".mp4")


class GuardrailFiles(NamedTuple):
    """Where the parts of the reference's guardrail lie."""

    blocklist: Path
    classifier: Path
    siglip: Path
    faces: Path
    llama_guard: Path


def companion_roots(files: CheckpointFiles, checkpoint_root: Path | None) -> tuple[Path, ...]:
    """Folders below which the companions of a model may lie."""
    home = files.dit.parent
    return layout.helper_roots(home.parent if home.name == "transformer" else home, checkpoint_root)


def find_guardrail(
    roots: Sequence[Path],
    access: HubAccess | None,
    *,
    folder: Path | None = None,
    llama_guard: Path | None = None,
) -> GuardrailFiles:
    """The files of the reference's guardrail.

    Args:
        roots: where to look for NVIDIA's layout.
        access: how to reach the hub for what is in none of them; None makes no connection.
        folder: of Cosmos-Guardrail1, in place of the one found.
        llama_guard: of Llama-Guard-3-8B, in place of the one found.

    Raises:
        CheckpointError: a part is missing; all that are missing are named.
        GatedRepoError: the hub refuses one of the two repositories.
    """
    missing: list[str] = []

    def home(given: Path | None, repo_id: str) -> Path | None:
        found = given or _below(roots, repo_id)
        if found is None and access is not None:
            found = _fetch(repo_id, access)
        if found is None:
            missing.append(f"{repo_id} below {' or '.join(map(str, roots))}")
        return found

    cosmos, llama = home(folder, GUARDRAIL), home(llama_guard, LLAMA_GUARD)
    if cosmos is None or llama is None:
        raise CheckpointError(f"not there: {', '.join(missing)}")
    files = GuardrailFiles(
        blocklist=cosmos / "blocklist",
        classifier=cosmos / _FILTER / "safety_filter.pt",
        siglip=_siglip(cosmos, roots),
        faces=cosmos / "face_blur_filter" / "Resnet50_Final.pth",
        llama_guard=llama,
    )
    needed = [
        *(files.blocklist / name for name in ("custom", "exact_match", "whitelist", "nltk_data")),
        files.classifier,
        files.faces,
        *(place / "config.json" for place in (files.siglip, llama)),
    ]
    missing = [str(path) for path in needed if not path.exists()]
    missing += [f"safetensors in {place}" for place in (files.siglip, llama) if not _filled(place)]
    if missing:
        raise CheckpointError(f"not there: {', '.join(missing)}")
    return files


def find_upsampler(
    model: str, roots: Sequence[Path], access: HubAccess | None, *, role: str = "prompt upsampler"
) -> Path:
    """The folder of a prompt upsampler, or of another model of its kind.

    Args:
        model: a folder, by itself or below one of ``roots``, or a hub id.
        roots: where to look.
        access: how to reach the hub for what is in none of them; None makes no connection.
        role: what it is wanted as, for messages.

    Raises:
        CheckpointError: it is not there; the message lists where it was looked for.
        GatedRepoError: the hub refuses the repository.
    """
    given = Path(model).expanduser()
    places = [given] if given.is_absolute() else [*(root / given for root in roots), given]
    for place in places:
        if (place / "config.json").is_file():
            return place
    if access is not None and _HUB_ID.fullmatch(model):
        return _fetch(model, access)
    raise CheckpointError(f"{role} {model!r}: no config.json in {' or '.join(map(str, places))}")


def weights_in(folder: Path) -> Path:
    """The file of a model folder's weights, or the index of its shards.

    Raises:
        CheckpointError: there is neither.
    """
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: neither model.safetensors nor an index of shards is there")


def weight_bytes(path: Path, *, prefix: str = "", dtype: torch.dtype | None = None) -> int:
    """Bytes of a companion's weights: of a file, or of all safetensors of a folder.

    Args:
        prefix: of the names of those that count; told apart in safetensors alone.
        dtype: what they become; None: as they are stored.
    """
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    found = (file for file in files if file.is_file())
    if not prefix and dtype is None:
        return sum(file.stat().st_size for file in found)
    return sum(_tensor_bytes(file, prefix, dtype) for file in found)


def _tensor_bytes(file: Path, prefix: str, dtype: torch.dtype | None) -> int:
    try:
        with open_tensors(file) as tensors:
            wanted = [one for name, one in tensors.entries.items() if name.startswith(prefix)]
    except CheckpointError:
        return file.stat().st_size  # loading will tell what is wrong with it
    kinds = (dtype or one.dtype or torch.float32 for one in wanted)
    return sum(
        math.prod(one.shape) * kind.itemsize for one, kind in zip(wanted, kinds, strict=True)
    )


def is_wanted(name: str) -> bool:
    """Whether a repository's file belongs to the model: no pictures, readmes, other formats."""
    path = PurePosixPath(name)
    return not name.startswith(_LEFT_OUT) and path.suffix.lower() not in _NO_WEIGHTS


def _filled(folder: Path) -> bool:
    return any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))


def _below(roots: Sequence[Path], repo_id: str) -> Path | None:
    return next((root / repo_id for root in roots if (root / repo_id).is_dir()), None)


def _siglip(cosmos: Path, roots: Sequence[Path]) -> Path:
    """SigLIP's folder: NVIDIA ships it in the form of a hub cache inside the guardrail's folder."""
    cached = cosmos / _CACHED_SIGLIP
    commits = sorted((cached / "snapshots").glob("*")) if cached.is_dir() else []
    named = cached / "refs" / "main"
    if named.is_file():
        wanted = named.read_text("utf-8", errors="replace").strip()
        commits = [commit for commit in commits if commit.name == wanted] or commits
    places = [*commits, cosmos / _FILTER / _SIGLIP.rpartition("/")[2]]
    places += [root / _SIGLIP for root in roots]
    return next((place for place in places if (place / "config.json").is_file()), places[0])


def _fetch(repo_id: str, access: HubAccess) -> Path:
    revision = REVISIONS.get(repo_id)
    if access.local_files_only:
        return snapshot(repo_id, revision, (), access)
    names, _ = list_files(repo_id, revision, access)
    return snapshot(repo_id, revision, [name for name in names if is_wanted(name)], access)
