"""From what a person writes down to the files of a checkpoint, and what they imply."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights import layout
from cosmos_fast.weights.digest import digest_all
from cosmos_fast.weights.hub import HubAccess, HubModel, fetch_model, fetch_text
from cosmos_fast.weights.profiles import implied_profile
from cosmos_fast.weights.sidecar import SIDECAR
from cosmos_fast.weights.tensor_files import files_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.config import Profile
    from cosmos_fast.weights.dit_keys import Layout

_ASSETS: Final = Path(__file__).resolve().parent.parent / "assets"
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class CheckpointFiles:
    """Where the parts of a checkpoint lie, and what it implies."""

    source: str
    """What was asked for."""
    layout: Layout
    """Whose names the transformer's tensors have."""
    dit: Path
    """The transformer: a file, or the index of its shards."""
    vae: Path
    text_encoder: Path | None
    """Folder with config.json and weights; None: not here (yet), see :meth:`require_text`."""
    tokenizer: Path | None
    """Folder with tokenizer.json or spiece.model."""
    profile: Profile
    revision: str | None = None
    """Commit of the hub repository the files come from."""
    ema: bool = False
    """Take the moving average of a training checkpoint's weights."""
    hub: HubModel | None = None
    text_looked_for: tuple[str, ...] = ()
    """Where a text encoder was looked for in vain."""

    def require_text(self) -> tuple[Path, Path]:
        """Folders of the text encoder and of its tokenizer, fetched from the hub if need be.

        Raises:
            CheckpointError: there is none, with the places that were looked at.
        """
        encoder, tokenizer = self.text_encoder, self.tokenizer
        if encoder is None and self.hub is not None:
            folder = fetch_text(self.hub)
            found = layout.find_text(folder, ())
            encoder, tokenizer = found.encoder, tokenizer or found.tokenizer
        if encoder is None:
            raise CheckpointError(
                f"{self.source}: a prompt must be encoded and there is no T5 text encoder; looked "
                f"for {', '.join(self.text_looked_for)}. Give text_encoder= (its folder); programs "
                f"may pass a TextEmbedding or NO_TEXT in place of the prompt"
            )
        if tokenizer is None:
            raise CheckpointError(
                f"{encoder}: no tokenizer.json or spiece.model there or in ../tokenizer; "
                f"give tokenizer="
            )
        return encoder, tokenizer

    def text_identity(self) -> str:
        """What tells this text encoder's embeddings from those of another one.

        The digests of its files; for a hub repository, whose encoder may never be needed, the
        repository and commit.

        Raises:
            CheckpointError: there is no text encoder.
        """
        if self.hub is not None and self.text_encoder is None:
            return f"{self.hub.repo_id}@{self.hub.revision}"
        encoder, tokenizer = self.require_text()
        files = [*files_of(layout.text_weights(encoder)), layout.tokenizer_file(tokenizer)]
        content = digest_all(files)
        return hashlib.sha256("\n".join(content[file] for file in files).encode()).hexdigest()


def find_checkpoint(
    source: str | os.PathLike[str],
    *,
    variant: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    checkpoint_root: str | os.PathLike[str] | None = None,
    vae: str | os.PathLike[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    profile: Profile | None = None,
    ema: bool = False,
    endpoint: str | None = None,
) -> CheckpointFiles:
    """Finds the transformer, VAE and text encoder that ``source`` stands for.

    Args:
        source: the name of a packaged world ("ballworld", "pusherworld"); a folder in NVIDIA's,
            the original's or diffusers' layout; one file; or the id of a hub repository.
        variant: which of several checkpoints ("480p-16fps", "diffusers"). For a single file whose
            name says nothing it states which of the released ones the file is.
        revision: commit, branch or tag of the repository; by default the commit that NVIDIA's own
            code fetches, else the newest.
        token: hub token; by default the one of the login.
        local_files_only: make no connection.
        checkpoint_root: folder below which ``source``, VAE and T5 are also looked for.
        vae: the VAE's file or folder, in place of the one found.
        text_encoder: the T5 encoder's folder, in place of the one found.
        tokenizer: the T5 tokenizer's folder, in place of the one found.
        profile: what the checkpoint implies, in place of what is found; tensors still decide.
        ema: the moving average (``net_ema.``) of a training checkpoint in place of its weights.
        endpoint: hub server; by default the client library's.

    Raises:
        CheckpointError: nothing or too much matches, a part is missing, or what the checkpoint
            implies stays unknown; the message lists what was found and where.
        GatedRepoError: the hub refused the repository.
    """
    with _readable(source):
        root = Path(checkpoint_root).expanduser() if checkpoint_root is not None else None
        local, tried = _local(source, root)
        hub = None
        if local is None:
            if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
                raise CheckpointError(
                    f"{source}: no checkpoint there; looked for {', '.join(tried)}. A folder, "
                    f"a file, a hub id (owner/name) or the name of a packaged world "
                    f"({', '.join(packaged_worlds()) or 'none here'}) is needed"
                )
            access = HubAccess(token=token, endpoint=endpoint, local_files_only=local_files_only)
            hub = fetch_model(source, variant, revision, access)
            local = hub.folder
        chosen = layout.choose(local, variant)
        roots = layout.helper_roots(chosen.home, root)
        vae_file = layout.explicit_vae(Path(vae)) if vae else layout.find_vae(chosen, roots)
        text = layout.find_text(chosen.home, roots)
        if text_encoder:
            text = layout.explicit_text(Path(text_encoder))
        names, implied = implied_profile(chosen, vae_file, profile, ema)
        return CheckpointFiles(
            source=os.fspath(source),
            layout=names,
            dit=chosen.dit,
            vae=vae_file,
            text_encoder=text.encoder,
            tokenizer=layout.explicit_tokenizer(Path(tokenizer)) if tokenizer else text.tokenizer,
            profile=implied,
            revision=hub.revision if hub else None,
            ema=ema,
            hub=hub,
            text_looked_for=text.looked_for,
        )


def packaged_worlds() -> tuple[str, ...]:
    """Names of the small trained worlds that ship with the package."""
    if not _ASSETS.is_dir():
        return ()
    return tuple(sorted(world.name for world in _ASSETS.iterdir() if (world / SIDECAR).is_file()))


def digests(files: CheckpointFiles, text: bool = False) -> dict[str, str]:
    """SHA-256 of each file of transformer and VAE by part and name; with ``text``, of T5's too."""
    parts = {"dit": list(files_of(files.dit)), "vae": list(files_of(files.vae))}
    if text:
        encoder, tokenizer = files.require_text()
        parts["text_encoder"] = list(files_of(layout.text_weights(encoder)))
        parts["tokenizer"] = [layout.tokenizer_file(tokenizer)]
    content = digest_all(file for part in parts.values() for file in part)
    return {f"{part}/{file.name}": content[file] for part in parts for file in parts[part]}


@contextlib.contextmanager
def _readable(source: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read: {error}") from error


def _local(source: str | os.PathLike[str], root: Path | None) -> tuple[Path | None, list[str]]:
    """The folder or file ``source`` means on this machine, if any, and what was tried."""
    if isinstance(source, str) and source in packaged_worlds():
        return _ASSETS / source, []
    given = Path(source).expanduser()
    places = [given]
    if root is not None and not given.is_absolute():
        places = [root / given, root / "nvidia" / given, given]
    for place in places:
        if place.exists():
            return place, []
    return None, [str(place) for place in places]
