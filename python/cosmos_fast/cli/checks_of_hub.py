"""The checks of ``doctor`` that ask the Hugging Face hub: the token, and each gated repository."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cosmos_fast.cli.checks import Check
from cosmos_fast.errors import CheckpointError, GatedRepoError

GATED_REPOSITORIES: Final = (
    "nvidia/Cosmos-Predict2-2B-Video2World",
    "nvidia/Cosmos-Predict2-14B-Video2World",
    "nvidia/Cosmos-Guardrail1",
    "meta-llama/Llama-Guard-3-8B",
)
"""Repositories that ask for a login or for accepted terms, or may come to."""

LOGIN_CURE: Final = "hf auth login, with a read token from https://huggingface.co/settings/tokens"


def hub_checks(*, offline: bool) -> Iterator[Check]:
    """The token, then one check for each repository.

    Args:
        offline: make no connection.
    """
    from huggingface_hub import get_token

    token = get_token()
    if offline:
        found = "there is one; not tried (offline)" if token else "there is none"
        yield Check("hub token", "ok" if token else "warn", found, "" if token else LOGIN_CURE)
        return
    yield token_check(token)
    for repo_id in GATED_REPOSITORIES:
        yield repository_check(repo_id)


def token_check(token: str | None) -> Check:
    """Whether there is a token, and whether the hub knows it."""
    from huggingface_hub import HfApi

    from cosmos_fast.weights.hub import refusals

    if not token:
        return Check("hub token", "warn", "there is none", LOGIN_CURE)
    try:
        with refusals("the login", None):
            name = HfApi().whoami(token=token).get("name", "someone")
    except GatedRepoError as error:
        return Check("hub token", "warn", f"the hub refuses it ({error.status})", LOGIN_CURE)
    except CheckpointError as error:
        return Check("hub token", "warn", *_finding(error, "the login"))
    return Check("hub token", "ok", f"known to the hub as {name}")


def repository_check(repo_id: str) -> Check:
    """Whether this token may read ``repo_id``; 401 and 403 have different cures."""
    from huggingface_hub import HfApi

    from cosmos_fast.weights.hub import refusals

    page = f"https://huggingface.co/{repo_id}"
    name = f"access: {repo_id}"
    try:
        with refusals(repo_id, None):
            HfApi().auth_check(repo_id)
    except GatedRepoError as error:
        if error.status == 401:
            finding = "401: no token, or one that the hub does not know"
            return Check(name, "warn", finding, f"{LOGIN_CURE}; then accept the terms at {page}")
        finding = "403: the token is known, but its owner has no access"
        return Check(name, "warn", finding, f"accept the terms at {page}")
    except CheckpointError as error:
        return Check(name, "warn", *_finding(error, repo_id))
    return Check(name, "ok", "may be read")


def _finding(error: CheckpointError, subject: str) -> tuple[str, str]:
    """What was found, and its cure; the check's own name says of what."""
    finding, _, cure = str(error).removeprefix(f"{subject}: ").partition("; ")
    return finding, cure or "check the network"
