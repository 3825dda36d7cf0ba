"""Pixels of PIL images, which only people who hold some have installed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from cosmos_fast.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")
_OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


def is_pil(source: Any) -> TypeGuard[Image.Image]:
    """Whether ``source`` is a PIL image; PIL is not imported to find out."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(source, module.Image)


def pixels_of(image: Image.Image, notes: list[str]) -> np.ndarray:
    """The picture as uint8 (H, W, 3): turned as its EXIF data say, transparency on black.

    Args:
        image: of any mode but 32-bit integers and floats, whose range is not known.
        notes: gets a sentence where the picture is turned.

    Raises:
        InputError: a mode whose range is not known, or a file that cannot be read.
    """
    from PIL import ImageOps

    if image.mode not in (*_TRANSPARENT, *_OPAQUE, *_DEEP):
        raise InputError(f'a PIL image of mode {image.mode!r}: pass image.convert("RGB")')
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.size != image.size or upright.getexif() != image.getexif():
            notes.append("the PIL image was turned as its EXIF orientation says")
        if upright.mode in _DEEP:
            grey = np.asarray(upright).astype(np.uint32)
            level = ((grey * 255 + 32_767) // 65_535).astype(np.uint8)
            return np.repeat(level[..., None], 3, axis=2)
        if upright.mode in _TRANSPARENT or "transparency" in upright.info:
            rgba = np.asarray(upright.convert("RGBA")).astype(np.uint16)
            return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
        return np.asarray(upright.convert("RGB"))
    except (OSError, SyntaxError) as error:  # PIL reads lazily, and calls a broken file that
        raise InputError(f"the PIL image cannot be read: {error}") from error
