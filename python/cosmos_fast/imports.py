"""Heavy libraries are imported at first use, in the middle of the host's work: without a trace."""

from __future__ import annotations

import contextlib
import os
import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_INDUCTOR_CACHE: Final = "TORCHINDUCTOR_CACHE_DIR"


def install_extra(extra: str) -> str:
    """How the packages of an extra are installed: from a clone, or beside a wheel of one's own."""
    return (
        f"pip install '.[{extra}]' in a clone of cosmos-fast, or 'FILE.whl[{extra}]' of its wheel"
    )


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Imports in the block leave random state and environment as the host had them.

    What transformers imports draws from Python's generator (rich does, for names of styles): a
    host that seeded it would get other numbers after its first prompt than after its second. And
    torch's inductor writes the default of its own setting into the environment, where the host's
    child processes would find it.
    """
    state, had_cache = random.getstate(), _INDUCTOR_CACHE in os.environ  # noqa: TID251
    try:
        yield
    finally:
        random.setstate(state)
        if not had_cache:
            os.environ.pop(_INDUCTOR_CACHE, None)  # noqa: TID251
