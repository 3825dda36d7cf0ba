"""One file from the hub: continued where it stopped, and trusted only when its digest fits."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights.digest import remember

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cosmos_fast.weights.hub import HubAccess

ATTEMPTS: Final = 4
"""Tries in a row that bring no byte before a file is given up."""

_SILENCE_SECONDS = 30.0
_RETRIED: Final = (408, 429, 500, 502, 503, 504)


class RemoteFile(NamedTuple):
    """A file of a repository at one commit, and where it goes."""

    repo_id: str
    revision: str
    name: str
    size: int
    sha256: str | None
    """Of its content; None for small files, which the hub knows by ``blob``."""
    blob: str
    """Git's identity of the content."""
    target: Path

    def matches(self, path: Path) -> bool:
        """Whether the content of ``path`` is this file's."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is None:
            content = path.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
            return git.hexdigest() == self.blob
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


def transfer(
    file: RemoteFile,
    staging: Path,
    access: HubAccess,
    on_bytes: Callable[[int], None],
    wait: float = 1.0,
) -> None:
    """Brings one file to its target; what has arrived before is not asked for again.

    Args:
        file: what, and where to.
        staging: folder for what is on its way, on the target's disk.
        access: how to reach the hub.
        on_bytes: told how many more bytes have arrived; a negative number takes some back.
        wait: seconds before a second try; doubles with each further one.

    Raises:
        CheckpointError: the content is not what the hub says, or the server or connection fails;
            what has arrived is kept for the next time.
        GatedRepoError: the hub refuses, told by :func:`refusals`, which the caller sets up.
        OSError: the disk.
    """
    partial = staging / f"{file.sha256 or file.blob}.part"
    resumed = partial.exists() and partial.stat().st_size > 0
    _fill(file, partial, access, on_bytes, wait)
    if resumed and not file.matches(partial):
        # The older part may be at fault: once more, from the start.
        on_bytes(-partial.stat().st_size)
        partial.unlink()
        _fill(file, partial, access, on_bytes, wait)
    if not file.matches(partial):
        partial.unlink()
        raise CheckpointError(
            f"{file.repo_id}: {file.name} arrived with another digest than the hub states "
            f"({file.sha256 or file.blob}); nothing of it was kept. Run again; if it stays so, a "
            f"proxy or mirror on the way changes files"
        )
    file.target.parent.mkdir(parents=True, exist_ok=True)
    partial.chmod(0o644)
    partial.replace(file.target)
    if file.sha256 is not None:
        remember(file.target, file.sha256)


def _fill(
    file: RemoteFile,
    partial: Path,
    access: HubAccess,
    on_bytes: Callable[[int], None],
    wait: float,
) -> None:
    """Appends to ``partial`` until it has the file's size, over several connections if need be."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        if before > file.size:
            partial.unlink()
            on_bytes(-before)
            continue
        if before == file.size and partial.exists():
            return
        try:
            _receive(file, partial, before, access, on_bytes)
        except HfHubHTTPError as error:
            retried = error.response.status_code in _RETRIED
            if not retried or (failures := failures + 1) >= ATTEMPTS:
                raise
        except (httpx.TransportError, httpx.StreamError):
            progress = partial.exists() and partial.stat().st_size > before
            failures = 0 if progress else failures + 1
            if failures >= ATTEMPTS:
                raise
        else:
            arrived = partial.stat().st_size
            failures = 0 if arrived > before else failures + 1
            if arrived < file.size and failures >= ATTEMPTS:
                raise CheckpointError(
                    f"{file.repo_id}: {file.name} ends after {arrived} of {file.size} bytes; run "
                    f"again, what has arrived is kept"
                )
        if failures:
            time.sleep(wait * 2 ** (failures - 1))


def _receive(
    file: RemoteFile,
    partial: Path,
    before: int,
    access: HubAccess,
    on_bytes: Callable[[int], None],
) -> None:
    """One connection's worth of the file.

    Raises:
        httpx.HTTPError: refused, or the connection broke; what came is in ``partial``.
    """
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(file.repo_id, file.name, revision=file.revision, endpoint=access.endpoint)
    headers = build_hf_headers(token=access.token)
    # Compressed on the way, the bytes could be neither counted nor continued.
    headers["Accept-Encoding"] = "identity"
    if before:
        headers["Range"] = f"bytes={before}-"
    request = get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=_SILENCE_SECONDS
    )
    with request as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        continued = before > 0 and response.status_code == 206
        if before and not continued:
            on_bytes(-before)
        with partial.open("ab" if continued else "wb") as out:
            # As they come: gathered into larger pieces, they would be lost with the connection.
            for chunk in response.iter_bytes():
                out.write(chunk)
                on_bytes(len(chunk))
