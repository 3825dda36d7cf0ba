"""Fetching released checkpoints into a folder: only what is needed, pinned and verified."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.files import TEMPORARY_PREFIX
from cosmos_fast.weights import layout
from cosmos_fast.weights.companions import COMPANIONS, is_wanted
from cosmos_fast.weights.hub import HubAccess, refusals, text_files
from cosmos_fast.weights.released import ARCHITECTURES, REVISIONS
from cosmos_fast.weights.tensor_files import files_of
from cosmos_fast.weights.transfer import RemoteFile, transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MODEL_TYPES: Final = {
    "video2world": "Video2World",
    "sample_gr00t_dreams_gr1": "Sample-GR00T-Dreams-GR1",
    "sample_gr00t_dreams_droid": "Sample-GR00T-Dreams-DROID",
}
"""Model types that can be run, by the name that both generations of the download tool use."""
NOT_SUPPORTED: Final = ("text2image", "sample_action_conditioned", "multiview")

_SIZES = ("0.6B", "2B", "14B")
_T5 = "google-t5/t5-11b"
_T5_FILES = ("config.json", "tokenizer.json", "spiece.model", "pytorch_model.bin")
_VAE = "tokenizer/tokenizer.pth"
_STAGING = f"{TEMPORARY_PREFIX}download"
_HEADROOM = 256 << 20


@dataclass(frozen=True)
class DownloadPlan:
    """Which files are needed, and which of them are not there yet."""

    folder: Path
    files: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]
    access: HubAccess
    refused: tuple[CheckpointError, ...] = ()
    """Why companions are not among the files: the hub refuses them, or lacks them."""

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """Bytes that must come over the network; what has arrived of a file is not counted."""
        return sum(file.size - self._arrived(file) for file in self.missing)

    @property
    def staging(self) -> Path:
        """Where files lie while they are on their way."""
        return self.folder / _STAGING

    def _arrived(self, file: RemoteFile) -> int:
        partial = self.staging / f"{file.sha256 or file.blob}.part"
        return min(partial.stat().st_size, file.size) if partial.exists() else 0


def plan_download(
    model_sizes: Sequence[str] = ("2B", "14B"),
    model_types: Sequence[str] = ("video2world",),
    *,
    fps: Sequence[str] = ("16",),
    resolution: Sequence[str] = ("720",),
    natten: bool = False,
    checkpoint_dir: Path = Path("checkpoints"),
    text_encoder: bool = True,
    companions: Sequence[str] = (),
    access: HubAccess | None = None,
) -> DownloadPlan:
    """Asks the hub which files the wanted models consist of; fetches none of them.

    Args:
        model_sizes: "2B", "14B".
        model_types: of :data:`MODEL_TYPES`, in any case.
        fps: "10", "16": which Video2World checkpoints.
        resolution: "480", "720": which Video2World checkpoints.
        natten: checkpoints tuned for sparse attention; not supported.
        checkpoint_dir: the folder to fill: ``{owner}/{repository}/...``.
        text_encoder: T5 as well, unless the folder has it already. It comes from a model's
            repository, where it is an encoder in bfloat16 (9.7 GB); only where there is none from
            google-t5/t5-11b (45 GB, with a decoder that is not used).
        companions: repositories of models beside the model, whole but for pictures and other
            formats: those of :mod:`cosmos_fast.weights.companions`. One that the hub refuses is
            told in the plan and keeps nothing else from being fetched.
        access: how to reach the hub.

    Raises:
        InputError: an unknown or unsupported choice, or one that no model fits.
        CheckpointError: the hub cannot be reached, lacks a file, or an existing file differs.
        GatedRepoError: the hub refuses a model's repository; told before anything is fetched.
    """
    wanted = _wanted(model_sizes, model_types, fps, resolution, natten)
    if strange := [repo_id for repo_id in companions if repo_id not in COMPANIONS]:
        raise InputError(f"companions = {', '.join(strange)}: choose of {', '.join(COMPANIONS)}")
    access = access or HubAccess()
    if access.local_files_only:
        raise InputError("a download needs a connection: local_files_only must be off")
    listings = {repo_id: _Listing(repo_id, checkpoint_dir, access) for repo_id in wanted}
    files = [
        listings[repo_id].file(name) for repo_id, names in wanted.items() for name in (*names, _VAE)
    ]
    if text_encoder and not _has_text(checkpoint_dir, wanted):
        files += _text(list(listings.values()), checkpoint_dir, access)
    refused: list[CheckpointError] = []
    for repo_id in companions:
        try:
            listing = _Listing(repo_id, checkpoint_dir, access)
            files += [listing.file(name) for name in listing.names if is_wanted(name)]
        except CheckpointError as error:
            refused.append(error)
    missing = tuple(file for file in files if not _is_there(file))
    return DownloadPlan(checkpoint_dir, tuple(files), missing, access, tuple(refused))


def download(
    plan: DownloadPlan,
    *,
    on_file: Callable[[RemoteFile], None] | None = None,
    on_bytes: Callable[[int], None] | None = None,
    wait: float = 1.0,
) -> None:
    """Fetches what a plan lacks. Files appear under their names when their digests fit.

    Args:
        plan: from :func:`plan_download`.
        on_file: told of each file before it is fetched.
        on_bytes: told how many more bytes have arrived; a negative number takes some back.
        wait: seconds before a broken connection is tried again, doubling.

    Raises:
        CheckpointError: the disk is too small or fails, the connection or server fails, content
            is not what the hub states, or another download is filling the folder. What has arrived
            stays for the next time.
        GatedRepoError: the hub refuses a repository.
    """
    if not plan.missing:
        return
    try:
        plan.staging.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(plan.staging).free
        if free < plan.missing_bytes + _HEADROOM:
            raise CheckpointError(
                f"{plan.folder}: {plan.missing_bytes / 1e9:.1f} GB are still to come, "
                f"{free / 1e9:.1f} GB are free on that disk; nothing was fetched"
            )
        with _alone(plan):
            for file in plan.missing:
                if _is_there(file):  # another download has brought it since
                    continue
                if on_file is not None:
                    on_file(file)
                with refusals(file.repo_id, file.revision):
                    transfer(file, plan.staging, plan.access, on_bytes or (lambda _: None), wait)
            shutil.rmtree(plan.staging)
    except OSError as error:
        raise CheckpointError(f"{plan.folder}: cannot be written: {error}") from error


@contextlib.contextmanager
def _alone(plan: DownloadPlan) -> Iterator[None]:
    """Holds the folder of what is on its way: two downloads would write into one another's parts.

    Raises:
        CheckpointError: another download holds it.
    """
    folder = os.open(plan.staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise CheckpointError(
            f"{plan.folder}: another download is filling it; wait for its end and run again"
        ) from None
    except OSError:  # some network drives know no locks
        pass
    try:
        yield
    finally:
        os.close(folder)


def _wanted(
    model_sizes: Sequence[str],
    model_types: Sequence[str],
    fps: Sequence[str],
    resolution: Sequence[str],
    natten: bool,
) -> dict[str, list[str]]:
    """Repository to the names of its wanted transformers."""
    _check("model_sizes", model_sizes, _SIZES)
    types = [name.lower().replace("-", "_") for name in model_types]
    _check("model_types", types, (*MODEL_TYPES, *NOT_SUPPORTED))
    _check("fps", fps, ("10", "16"))
    _check("resolution", resolution, ("480", "720"))
    if refused := [name for name in types if name in NOT_SUPPORTED]:
        raise InputError(
            f"model_types = {', '.join(refused)}: not supported; {', '.join(MODEL_TYPES)} are"
        )
    if natten:
        raise InputError("natten: sparse-attention checkpoints are not supported; leave it out")
    wanted: dict[str, list[str]] = {}
    for kind in types:
        for size in model_sizes:
            repo_id = f"nvidia/Cosmos-Predict2-{size}-{MODEL_TYPES[kind]}"
            if repo_id not in REVISIONS:
                continue
            if kind == "video2world":
                names = [f"model-{r}p-{f}fps.pt" for r in resolution for f in fps]
            else:
                names = ["model-480p-16fps.pt"]
            wanted[repo_id] = list(dict.fromkeys(names))
    if not wanted:
        raise InputError(
            f"model_sizes = {', '.join(model_sizes)}, model_types = {', '.join(types)}: there is "
            f"no such model; Video2World comes as {' and '.join(ARCHITECTURES)}, GR00T-Dreams "
            f"as 14B"
        )
    return wanted


def _check(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    strange = [each for each in given if each not in known]
    if strange or not given:
        raise InputError(
            f"{name} = {', '.join(strange) or 'nothing'}: choose of {', '.join(known)}"
        )


class _Listing:
    """What a repository holds at its pinned commit."""

    def __init__(self, repo_id: str, folder: Path, access: HubAccess) -> None:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=access.endpoint, token=access.token)
        self.repo_id = repo_id
        self._folder = folder / repo_id
        with refusals(repo_id, REVISIONS[repo_id]):
            api.auth_check(repo_id)
            info = api.model_info(repo_id, revision=REVISIONS[repo_id], files_metadata=True)
        self._revision = info.sha or REVISIONS[repo_id]
        self._siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}

    @property
    def names(self) -> list[str]:
        return list(self._siblings)

    def file(self, name: str) -> RemoteFile:
        """
        Raises:
            CheckpointError: there is none, or the hub does not state its size and digest.
        """
        sibling = self._siblings.get(name)
        if sibling is None:
            raise CheckpointError(
                f"{self.repo_id} at {self._revision}: holds no {name}; it holds "
                f"{', '.join(sorted(self._siblings)[:8])}"
            )
        if sibling.size is None or sibling.blob_id is None:
            raise CheckpointError(f"{self.repo_id}: the hub states no size or digest of {name}")
        if ".." in PurePosixPath(name).parts or name.startswith("/") or "\\" in name:
            raise CheckpointError(f"{self.repo_id}: {name!r} leads out of its folder")
        sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
        return RemoteFile(
            self.repo_id,
            self._revision,
            name,
            sibling.size,
            sha256,
            sibling.blob_id,
            self._folder / name,
        )


def _text(listings: list[_Listing], folder: Path, access: HubAccess) -> list[RemoteFile]:
    """T5's files: an encoder by itself where one of the repositories has it."""
    for listing in listings:
        names = text_files(listing.names)
        weights = [name for name in names if name.endswith(".safetensors")]
        tokenizer = any(f"tokenizer/{name}" in names for name in layout.TOKENIZER_FILES)
        if weights and tokenizer and "text_encoder/config.json" in names:
            return [listing.file(name) for name in names]
    whole = _Listing(_T5, folder, access)
    return [whole.file(name) for name in _T5_FILES if name in whole.names]


def _has_text(folder: Path, wanted: dict[str, list[str]]) -> bool:
    """Whether a whole text encoder is in the folder; one that was cut short is completed."""
    for repo_id in wanted:
        found = layout.find_text(folder / repo_id, (folder,))
        if found.encoder is not None and found.tokenizer is not None:
            return all(part.is_file() for part in files_of(layout.text_weights(found.encoder)))
    return False


def _is_there(file: RemoteFile) -> bool:
    """
    Raises:
        CheckpointError: something else is there under its name.
    """
    if not file.target.exists():
        return False
    if file.target.is_file() and file.matches(file.target):
        return True
    raise CheckpointError(
        f"{file.target}: is not the file that {file.repo_id} holds at {file.revision[:8]} (cut "
        f"short, changed, or of another revision); move or delete it and run again"
    )
