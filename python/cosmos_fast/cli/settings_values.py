"""Flags' values picked one by one, each with a note of where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cosmos_fast.cli.settings import Generation, Origin

_FROM_PROFILE: Final = frozenset(
    {"negative_prompt", "height", "width", "num_frames", "fps", "num_steps", "guidance"}
)
"""Fields that the checkpoint's profile fills where nothing else does."""
_DIFFERS: Final = frozenset(
    {"source", "height", "width", "num_frames", "fps", "seed", "fit", "crf", "output"}
)
"""Fields whose default depends on the generation."""


class Values:
    """Picks values by flag name and remembers where each came from."""

    def __init__(
        self, given: Mapping[str, Any], origins: Mapping[str, Origin], generation: Generation
    ) -> None:
        self.given = given
        self.original = generation == "original"
        self.origins: dict[str, Origin] = {}
        self.spelling: dict[str, str] = {}
        self._given_by = origins

    def pick(self, field_name: str, *flags: str, default: Any) -> Any:
        """The value of whichever of ``flags`` was given, or ``default``.

        Args:
            flags: none: the one flag of the field's own name.
        """
        for flag in flags or (field_name,):
            if flag in self.given:
                self.origins[field_name] = self._given_by[flag]
                self.spelling[field_name] = flag
                return self.given[flag]
        self.set_default(field_name, default)
        return default

    def set_default(self, field_name: str, default: object) -> None:
        if field_name in _FROM_PROFILE and default is None:
            self.origins[field_name] = "profile"
        elif field_name in _DIFFERS:
            self.origins[field_name] = "original default" if self.original else "later default"
        else:
            self.origins[field_name] = "default"
