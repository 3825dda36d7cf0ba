"""Actions on their way in: checked against the checkpoint's range, in the network's scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from cosmos_fast.errors import InputError
from cosmos_fast.types import ActionSpec
from cosmos_fast.weights.tensor_files import read_json

if TYPE_CHECKING:
    import os

from pathlib import Path

_GRIPPER = "continuous_gripper_state"


class Chunk(NamedTuple):
    """A chunk of actions for several worlds, as the network wants them."""

    values_NCD: torch.Tensor
    """float32 (N, chunk, dim) on the device."""
    length: int
    """Actions that were given; the rest repeats the last one."""
    valid_N: torch.Tensor | None
    """bool (N,) on the device: finite and in range; None where the host has seen that they are."""


def chunk_of(spec: ActionSpec, actions: Any, worlds: int, device: torch.device) -> Chunk:
    """Actions of every world for one chunk.

    Actions on the host are checked before anything runs. Those on a device stay there, and the
    check too: waiting for it would cost the pipeline more than the step; see ``WorldStep.valid``.

    Args:
        actions: (N, 1 to chunk, dim), floating or integer, in the units of ``spec``: NumPy, torch,
            lists, or anything with ``__dlpack__`` or ``__cuda_array_interface__``.

    Raises:
        InputError: another shape; on the host, a value that is not finite or far out of range.
    """
    given = tensor_of(actions, "actions")
    if given.is_complex() or given.dtype == torch.bool:
        raise InputError(f"actions of {given.dtype}: numbers are needed")
    if given.ndim != 3 or given.shape[0] != worlds or given.shape[2] != spec.dim:
        raise InputError(
            f"actions of shape {tuple(given.shape)}: ({worlds}, {spec.chunk}, {spec.dim}) is "
            f"needed, (worlds, actions, values); a short tail may have fewer actions"
        )
    length = given.shape[1]
    if not 1 <= length <= spec.chunk:
        raise InputError(f"{length} actions in a chunk: 1 to {spec.chunk} are possible")
    values = in_network_scale(spec, given)
    fine = _fine(spec, values)
    valid_N = None
    if values.device.type == "cpu":
        if not fine.all():
            raise _refusal(spec, given, (~fine).nonzero()[0].tolist())
    else:
        valid_N = fine.all(dim=2).all(dim=1).to(device)
        values = torch.where(fine, values, 0.0)
    last = values[:, -1:].expand(-1, spec.chunk - length, -1)
    return Chunk(torch.cat((values, last), dim=1).to(device), length, valid_N)


def check_range(spec: ActionSpec, actions: torch.Tensor) -> None:
    """Looks at the actions (N, any number, dim) of a whole rollout before it begins.

    Raises:
        InputError: a value that is not finite or far out of range.
    """
    fine = _fine(spec, in_network_scale(spec, actions))
    if not fine.all():
        raise _refusal(spec, actions, (~fine).nonzero()[0].tolist())


def in_network_scale(spec: ActionSpec, actions: torch.Tensor) -> torch.Tensor:
    """float32 of the same shape: in float64 and rounded once, as the reference scales them."""

    values = actions.double()

    def row(numbers: tuple[float, ...]) -> torch.Tensor:
        # Filled where it is: a step copies nothing from the host.
        return torch.cat([values.new_full((1,), number) for number in numbers])

    if spec.mean is not None and spec.std is not None:
        values = (values - row(spec.mean)) / row(spec.std)
    return (values * row(spec.scale)).float()


def load_actions(path: str | os.PathLike[str]) -> np.ndarray:
    """Recorded actions of a file: ``.npy`` with one action a row, or ``.json`` as
    :func:`read_annotation` reads it.

    Returns:
        float64 (T, dim), in the units of the checkpoint's ``ActionSpec``.

    Raises:
        InputError: no such file, another ending, or no rows of finite numbers.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending == ".json":
        rows = read_annotation(path)
    elif ending == ".npy":
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: no array that can be read: {error}") from error
    else:
        raise InputError(f"{path}: actions are read from .json (annotations) and .npy (T, dim)")
    number = np.issubdtype(rows.dtype, np.floating) or np.issubdtype(rows.dtype, np.integer)
    if rows.ndim != 2 or 0 in rows.shape or not number:
        raise InputError(f"{path}: {rows.dtype} of shape {rows.shape}; numbers (T, dim) are needed")
    if not np.isfinite(rows).all():
        action, value = np.argwhere(~np.isfinite(rows))[0]
        raise InputError(f"{path}: value {value} of action {action} is {rows[action, value]}")
    return rows.astype(np.float64)


def read_annotation(path: str | os.PathLike[str]) -> np.ndarray:
    """The actions of an annotation file, as NVIDIA's action script reads it.

    ``action`` is T rows of which the first six numbers count, ``continuous_gripper_state`` T + 1
    numbers of which all but the first become the seventh. The factor 20 on the first six is the
    checkpoint's ``ActionSpec.scale``, applied when the world steps.

    Returns:
        float64 (T, 7).

    Raises:
        InputError: no such file or entries, or lengths that do not fit one another.
    """
    from cosmos_fast.errors import CheckpointError

    try:
        values = read_json(Path(path))
    except CheckpointError as error:
        raise InputError(str(error)) from error
    try:
        rows = np.array([row[:6] for row in values["action"]], dtype=np.float64)
        gripper = np.array(values[_GRIPPER], dtype=np.float64)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{path}: action (rows of at least six numbers) and {_GRIPPER} (one number more than "
            f"there are rows) are needed: {type(error).__name__}: {error}"
        ) from error
    if rows.ndim != 2 or rows.shape[1] != 6 or gripper.shape != (len(rows) + 1,):
        raise InputError(
            f"{path}: action of shape {rows.shape} and {_GRIPPER} of shape {gripper.shape}; "
            f"(T, 6 or more) and (T + 1,) are needed"
        )
    return np.concatenate((rows, gripper[1:, None]), axis=1)


def tensor_of(source: Any, name: str) -> torch.Tensor:
    """An array, wherever it lies, as a tensor that may share its memory.

    Raises:
        InputError: it is no array.
    """
    if isinstance(source, torch.Tensor):
        return source.detach()
    try:
        if isinstance(source, np.ndarray):
            # torch warns of arrays that nobody may write, such as a picture of Pillow's.
            return torch.from_numpy(np.require(source, requirements=("C", "W")))
        if hasattr(source, "__dlpack__"):
            return torch.utils.dlpack.from_dlpack(source)
        if hasattr(source, "__cuda_array_interface__"):
            return torch.as_tensor(source, device="cuda")
        return torch.from_numpy(np.ascontiguousarray(np.asarray(source)))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} of type {type(source).__name__} is no array that torch can share: {error}"
        ) from error


def _fine(spec: ActionSpec, values: torch.Tensor) -> torch.Tensor:
    return values.isfinite() & (values.abs() <= spec.FARTHEST)


def _refusal(spec: ActionSpec, given: torch.Tensor, where: list[int]) -> InputError:
    world, action, value = where
    return InputError(
        f"actions[{world}, {action}, {value}] = {float(given[world, action, value]):g} "
        f"{spec.units[value]} ({spec.names[value]}): not finite, or beyond {spec.FARTHEST:g} in "
        f"the network's scale (factor {spec.scale[value]:g}). Is it in the units of the "
        f"checkpoint's ActionSpec, and not scaled already?"
    )
