"""The Hugging Face hub: which files of a repository are needed, and what a refusal means."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_fast.errors import CheckpointError, GatedRepoError
from cosmos_fast.weights import layout
from cosmos_fast.weights.digest import digest
from cosmos_fast.weights.released import DIFFUSERS_VARIANT, REVISIONS
from cosmos_fast.weights.sidecar import SIDECAR

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHA256_DIGITS = 64
_OR_FROM_CACHE = ", or pass local_files_only=True to use what is in the hub cache"


@dataclass(frozen=True)
class HubAccess:
    """How to reach the hub."""

    token: str | None = field(default=None, repr=False)
    """None: the token of the machine's login."""
    endpoint: str | None = None
    """None: the client library's server."""
    local_files_only: bool = False
    """Make no connection: what is in the cache must do."""


@dataclass(frozen=True)
class HubModel:
    """A repository at one commit, some of whose files are on this machine."""

    repo_id: str
    revision: str
    folder: Path
    access: HubAccess
    text_files: tuple[str, ...]
    """Files of its text encoder and T5 tokenizer."""


def fetch_model(
    repo_id: str, variant: str | None, revision: str | None, access: HubAccess
) -> HubModel:
    """Fetches one transformer of a repository with its VAE and descriptions; no text encoder.

    Raises:
        CheckpointError: no such repository, revision or variant, several variants and none chosen,
            no connection, or a file whose content is not what the hub says.
        GatedRepoError: the hub refused.
    """
    wanted_revision = revision or REVISIONS.get(repo_id)
    if access.local_files_only:
        folder = snapshot(repo_id, wanted_revision, (), access)
        return HubModel(repo_id, folder.name, folder, access, text_files=("text_encoder/*",))
    names, commit = list_files(repo_id, wanted_revision, access)
    found = [layout.Candidate(v, Path(name), Path()) for v, name in layout.variants_among(names)]
    chosen = layout.pick(found, variant, repo_id)
    # By the name that was asked for, so that the cache can be found by it offline.
    folder = snapshot(repo_id, wanted_revision, model_files(names, chosen), access)
    if folder.name != commit:
        raise CheckpointError(f"{repo_id}: changed while it was fetched; run again")
    return HubModel(repo_id, commit, folder, access, text_files=tuple(text_files(names)))


def fetch_text(model: HubModel) -> Path:
    """Fetches the text encoder and T5 tokenizer of a repository; its local folder.

    Raises:
        CheckpointError: as :func:`fetch_model`; none there is no error here.
    """
    if model.access.local_files_only or not model.text_files:
        return model.folder
    return snapshot(model.repo_id, model.revision, model.text_files, model.access)


def model_files(names: Sequence[str], chosen: layout.Candidate) -> list[str]:
    """The files that the transformer ``chosen`` needs: its own, its VAE's and descriptions."""
    dit = chosen.dit.as_posix()
    shards = dit.removesuffix(".safetensors.index.json")
    diffusers_vae = ["vae/config.json", f"vae/{layout.DIFFUSERS_WEIGHTS}"]
    wan = ["tokenizer/tokenizer.pth"]
    vaes = [diffusers_vae, wan] if chosen.variant == DIFFUSERS_VARIANT else [wan, diffusers_vae]
    vae = next((files for files in vaes if files[-1] in names), [])
    beside = f"{dit.rpartition('/')[0]}/config.json".removeprefix("/")
    wanted = {dit, beside, SIDECAR, *vae}
    if shards != dit:
        wanted |= {name for name in names if name.startswith(f"{shards}-") and "-of-" in name}
    return [name for name in names if name in wanted]


def text_files(names: Sequence[str]) -> list[str]:
    """The files of the text encoder and of T5's tokenizer, without the VAE that shares its folder.

    Safetensors where there are any: a pickled twin is not fetched.
    """
    encoder = [name for name in names if name.startswith("text_encoder/")]
    if any(name.endswith(".safetensors") for name in encoder):
        encoder = [name for name in encoder if name.endswith((".safetensors", ".json"))]
    tokenizer = [
        name for name in names if name.startswith("tokenizer/") and not name.endswith(".pth")
    ]
    return encoder + tokenizer


def list_files(repo_id: str, revision: str | None, access: HubAccess) -> tuple[list[str], str]:
    """Names of a repository's files, and the commit that ``revision`` means.

    Raises:
        CheckpointError: as :func:`refusals`.
        GatedRepoError: the hub refused.
    """
    from huggingface_hub import HfApi

    with refusals(repo_id, revision, cached=True):
        api = HfApi(endpoint=access.endpoint, token=access.token)
        info = api.model_info(repo_id, revision=revision)
    return [file.rfilename for file in info.siblings or ()], info.sha or ""


def snapshot(repo_id: str, revision: str | None, files: Sequence[str], access: HubAccess) -> Path:
    """The local folder of a repository with ``files`` in it; offline, with what is there already.

    Raises:
        CheckpointError: as :func:`refusals`, or a file differs from its digest on the hub.
        GatedRepoError: the hub refused.
    """
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Silent(tqdm):  # type: ignore[misc]
        """The library prints nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    with refusals(repo_id, revision, cached=True):
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(files),
                token=access.token,
                endpoint=access.endpoint,
                local_files_only=access.local_files_only,
                tqdm_class=Silent,
            )
        )
    for name in files:
        _check_content(folder / name, repo_id)
    return folder


def _check_content(path: Path, repo_id: str) -> None:
    """The hub's cache names the content of large files by their SHA-256: hold it to that."""
    stated = path.resolve().name
    if len(stated) != SHA256_DIGITS:
        return
    found = digest(path)
    if found != stated:
        raise CheckpointError(
            f"{path}: SHA-256 is {found}, {repo_id} states {stated}; the copy is damaged. "
            f"Delete {path.resolve()} and run again"
        )


@contextlib.contextmanager
def refusals(repo_id: str, revision: str | None, *, cached: bool = False) -> Iterator[None]:
    """Turns what the hub client raises into errors that name the repository and the cure.

    Args:
        cached: the hub client's cache may hold what is asked for, so that going without a
            connection is a cure.

    Raises:
        GatedRepoError: 401 and 403.
        CheckpointError: no such repository, revision or file, too many requests, a server or
            connection error, a disk error.
    """
    import httpx
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, errors.HfHubHTTPError):
            raise _http_refusal(repo_id, at, cause) from error
        if cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled):
            raise _no_connection(repo_id, cause, cached) from error
        raise CheckpointError(
            f"{repo_id}{at}: not in the hub cache of this machine, and no connection may be made; "
            f"run once online, or give a folder"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{repo_id}{at}: the hub client is set to offline (HF_HUB_OFFLINE); unset that"
            f"{_OR_FROM_CACHE if cached else ''}"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _http_refusal(repo_id, at, error) from error
    except httpx.HTTPError as error:
        raise _no_connection(repo_id, error, cached) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repo_id}: no possible name of a repository: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{repo_id}{at}: cannot be fetched: {error}") from error


def _no_connection(repo_id: str, cause: BaseException, cached: bool) -> CheckpointError:
    return CheckpointError(
        f"{repo_id}: no connection to the hub ({type(cause).__name__}: {cause}); check the network"
        f"{_OR_FROM_CACHE if cached else ''}"
    )


def _http_refusal(repo_id: str, at: str, error: Exception) -> CheckpointError:
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    page = f"https://huggingface.co/{repo_id}"
    if status == 401:
        return GatedRepoError(
            f"{repo_id}: the hub answers 401: there is no token, it does not know the token, or "
            f"there is no such repository. Log in with `hf auth login` (a read token suffices) and "
            f"accept the terms at {page}",
            status=401,
            repo_id=repo_id,
        )
    if status == 403:
        return GatedRepoError(
            f"{repo_id}: the hub answers 403: the token is known, but its owner has not been given "
            f"access. Accept the terms at {page} (and give a fine-grained token the right to read "
            f"gated repositories)",
            status=403,
            repo_id=repo_id,
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{repo_id}: no such revision{at}; see {page}/commits/main")
    if status == 404:
        return CheckpointError(
            f"{repo_id}{at}: not on the hub (404); is the name right? See {page}"
        )
    if status == 429:
        return CheckpointError(
            f"{repo_id}: the hub answers 429, too many requests; wait some minutes and run again "
            f"(what has arrived is kept), or log in with `hf auth login`"
        )
    return CheckpointError(
        f"{repo_id}{at}: the hub answers {status or 'nothing'}: {error}; run again later, what has "
        f"arrived is kept"
    )
