"""Several cameras in one picture: put together on the way in, cut apart on the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cosmos_fast.errors import InputError
from cosmos_fast.world.actions import tensor_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cosmos_fast.config import Profile
    from cosmos_fast.types import Camera


def joined(profile: Profile, frames: Mapping[str, Any]) -> torch.Tensor:
    """The whole pictures of frames by camera, where those are; what no camera covers is black.

    Args:
        frames: of every camera of the checkpoint, uint8 (..., h, w, 3) of its own size; all of one
            leading shape, on one device.

    Returns:
        uint8 (..., H, W, 3).

    Raises:
        InputError: another camera, one too few, or another type, shape or device.
    """
    wanted = [camera.name for camera in profile.cameras]
    if not wanted:
        raise InputError(f"frames by camera: {profile.name} makes one picture; give it as an array")
    if sorted(map(str, frames)) != sorted(wanted):
        raise InputError(
            f"frames of {', '.join(map(str, frames)) or 'no camera'}: {profile.name} has "
            f"{', '.join(wanted)}"
        )
    parts = {name: tensor_of(frames[name], f"frames of {name}") for name in wanted}
    first = parts[wanted[0]]
    whole = torch.zeros(
        (*first.shape[:-3], *profile.size, 3), dtype=torch.uint8, device=first.device
    )
    for camera in profile.cameras:
        part = parts[camera.name]
        shape = (*first.shape[:-3], *camera.size, 3)
        if part.dtype != torch.uint8 or part.shape != shape or part.device != first.device:
            raise InputError(
                f"frames of {camera.name}: {str(part.dtype).removeprefix('torch.')} of shape "
                f"{tuple(part.shape)} on {part.device}: uint8 {shape} on {first.device} is needed"
            )
        cut(whole, camera).copy_(part)
    return whole


def cut(pixels: torch.Tensor, camera: Camera) -> torch.Tensor:
    """One camera's part of (..., H, W, 3): a view."""
    _, top, left, height, width = camera
    return pixels[..., top : top + height, left : left + width, :]


def camera_named(cameras: tuple[Camera, ...], name: str) -> Camera:
    """
    Raises:
        InputError: there is none of that name.
    """
    for camera in cameras:
        if camera.name == name:
            return camera
    there = ", ".join(camera.name for camera in cameras) or "one picture, not of several cameras"
    raise InputError(f"camera {name!r}: the checkpoint has {there}")
