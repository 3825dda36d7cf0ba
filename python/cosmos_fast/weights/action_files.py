"""``actions.json``: what the actions of a checkpoint mean, beside its weights.

    {
      "dim": 7, "chunk": 12,
      "names": ["x", ...], "units": ["m", ...], "scale": [20, ...],
      "frame": "end effector", "fps": 4,
      "mean": [...], "std": [...]              optional, together
    }

The same object stands under ``actions`` in a ``cosmos_fast.json``. Weights alone cannot tell 12
actions of 7 values from 14 of 6.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.types import ActionSpec
from cosmos_fast.weights.tensor_files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ACTIONS: Final = "actions.json"
_OPTIONAL: Final = ("mean", "std")
_WORDS: Final = ("names", "units")
_WHOLE: Final = ("dim", "chunk")

RELEASED_ACTIONS: Final = ActionSpec(
    dim=7,
    chunk=12,
    names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    units=("m", "m", "m", "rad", "rad", "rad", "1"),
    scale=(20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 1.0),
    frame="displacement of the end effector; opening of the gripper after it",
    fps=4.0,
)
"""Of ``Cosmos-Predict2-2B-Sample-Action-Conditioned``; its statistics were not released."""


def read_actions(path: Path) -> ActionSpec:
    """
    Raises:
        CheckpointError: no JSON object, or as :func:`actions_of`.
    """
    return actions_of(read_json(path), path)


def actions_of(values: object, path: Path) -> ActionSpec:
    """The specification in a JSON object of the file ``path``.

    Raises:
        CheckpointError: a key is unknown, missing, of the wrong type or out of range; named.
    """
    known = [field.name for field in fields(ActionSpec)]
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: actions = {values!r}; an object is needed")
    if odd := [key for key in values if key not in known]:
        raise CheckpointError(f"{path}: unknown {', '.join(odd)}; known are {', '.join(known)}")
    if missing := [key for key in known if key not in values and key not in _OPTIONAL]:
        raise CheckpointError(f"{path}: {', '.join(missing)} missing in the actions")
    try:
        return ActionSpec(**{key: _value(key, values[key], path) for key in values})
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from error


def actions_json(spec: ActionSpec) -> dict[str, Any]:
    """What :func:`actions_of` reads back."""
    values: Mapping[str, Any] = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None
    }


def _value(key: str, value: object, path: Path) -> Any:
    if key in _WHOLE and type(value) is int:
        return value
    if key == "frame" and isinstance(value, str):
        return value
    if key == "fps" and _is_number(value):
        return _as_float(value)
    if isinstance(value, list):
        if key in _WORDS and all(isinstance(item, str) for item in value):
            return tuple(value)
        if key in ("scale", *_OPTIONAL) and all(_is_number(item) for item in value):
            return tuple(_as_float(item) for item in value)
    kinds = {"frame": "a text", "fps": "a number"} | dict.fromkeys(_WHOLE, "a whole number")
    kinds |= dict.fromkeys(_WORDS, "a list of texts")
    raise CheckpointError(f"{path}: {key} = {value!r}; {kinds.get(key, 'a list of numbers')}")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)  # which of them make sense, ActionSpec knows


def _as_float(value: Any) -> Any:
    """The number as a float; itself where it is too large for one."""
    with suppress(OverflowError):
        return float(value)
    return value
