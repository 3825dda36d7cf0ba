"""Commands of the reference, or of the plan, that do not exist yet: each refuses by name.

They take whatever flags the reference's scripts take, so that a known command line meets one clear
sentence and not a complaint about its first flag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import typer

from cosmos_fast.cli.exits import MissingPartError

FUTURE_COMMANDS: Final[dict[str, str]] = {
    "text2image": "text-to-image part",
    "text2world": "text-to-world part",
    "multiview": "multiview part",
    "video2video-sdedit": "SDEdit part",
    "video2world-gr00t": "GR00T part",
    "video2world-lora": "LoRA part",
}
"""Command and the part of cosmos-fast that it needs."""


def add_future_commands(app: typer.Typer) -> None:
    """Registers every command of :data:`FUTURE_COMMANDS`, hidden from ``--help``."""
    for name, part in FUTURE_COMMANDS.items():
        for spelling in dict.fromkeys((name, name.replace("-", "_"))):
            app.command(
                spelling,
                hidden=True,
                context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
            )(_refusal(name, part))


def _refusal(name: str, part: str) -> Callable[[typer.Context], None]:
    def refuse(context: typer.Context) -> None:
        raise MissingPartError(
            f"{name} needs the {part}, which does not exist yet; video2world makes one video"
        )

    refuse.__doc__ = f"Needs the {part}, which does not exist yet."
    return refuse
