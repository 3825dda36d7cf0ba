"""The later tool's choices in numbers: sizes by class and aspect, lengths by rate."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SIZES: Final[Mapping[int, Mapping[str, tuple[int, int]]]] = MappingProxyType(
    {
        720: MappingProxyType(
            {
                "1:1": (960, 960),
                "4:3": (704, 960),
                "3:4": (960, 704),
                "16:9": (704, 1280),
                "9:16": (1280, 704),
            }
        ),
        480: MappingProxyType(
            {
                "1:1": (480, 480),
                "4:3": (480, 640),
                "3:4": (640, 480),
                "16:9": (432, 768),
                "9:16": (768, 432),
            }
        ),
    }
)
"""(height, width) of each size class and aspect ratio (width:height) of the released models."""

FRAMES_OF_RATE: Final[Mapping[int, int]] = MappingProxyType({10: 61, 16: 93})
"""Length in frames that the released checkpoint of a frame rate was trained with."""
