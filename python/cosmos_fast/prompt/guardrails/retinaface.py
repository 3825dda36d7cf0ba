"""RetinaFace with a ResNet-50: boxes of faces in a picture.

Deng et al., "RetinaFace: Single-stage Dense Face Localisation in the Wild" (arXiv 1905.00641): a
feature pyramid over the last three stages, a context module on each level, and one-by-one heads
for two anchors a position. Names of modules are those of the released ``Resnet50_Final.pth``, and
so are the numbers of its two configurations. Axes: B pictures, N anchors, H/W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHANNELS: Final = 256
_STAGES: Final = (512, 1024, 2048)
_STRIDES: Final = (8, 16, 32)
_ANCHORS: Final = ((16, 32), (64, 128), (256, 512))
_VARIANCES: Final = (0.1, 0.2)
_MEAN_BGR: Final = (104.0, 117.0, 123.0)


class Predictions(NamedTuple):
    """What the heads say of each anchor."""

    boxes_BN4: torch.Tensor
    """Offsets of centre and size, in units of the anchor."""
    scores_BN: torch.Tensor
    """Of being a face, 0 to 1."""


def _convolution(inputs: int, outputs: int, kernel: int, *, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class Pyramid(nn.Module):
    """Three stages to three levels of one width; coarse levels add to finer ones."""

    def __init__(self) -> None:
        super().__init__()
        for number, inputs in enumerate(_STAGES, start=1):
            self.add_module(f"output{number}", _convolution(inputs, _CHANNELS, 1))
        self.merge1 = _convolution(_CHANNELS, _CHANNELS, 3)
        self.merge2 = _convolution(_CHANNELS, _CHANNELS, 3)

    def forward(self, stages: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        fine, middle, coarse = (
            self.get_submodule(f"output{number}")(stage)
            for number, stage in enumerate(stages, start=1)
        )
        middle = self.merge2(middle + functional.interpolate(coarse, size=middle.shape[-2:]))
        fine = self.merge1(fine + functional.interpolate(middle, size=fine.shape[-2:]))
        return [fine, middle, coarse]


class Context(nn.Module):
    """The single-stage headless context module: three fields of view side by side."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter = _CHANNELS // 2, _CHANNELS // 4
        self.conv3X3 = _convolution(_CHANNELS, half, 3, relu=False)
        self.conv5X5_1 = _convolution(_CHANNELS, quarter, 3)
        self.conv5X5_2 = _convolution(quarter, quarter, 3, relu=False)
        self.conv7X7_2 = _convolution(quarter, quarter, 3)
        self.conv7x7_3 = _convolution(quarter, quarter, 3, relu=False)

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        narrow = self.conv5X5_1(level)
        wide = self.conv7x7_3(self.conv7X7_2(narrow))
        return torch.cat([self.conv3X3(level), self.conv5X5_2(narrow), wide], dim=1).relu()


class Head(nn.Module):
    """``width`` numbers for each of the two anchors of a position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self.conv1x1 = nn.Conv2d(_CHANNELS, 2 * width, 1)

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        numbers: torch.Tensor = self.conv1x1(level).permute(0, 2, 3, 1)
        return numbers.reshape(len(level), -1, self._width)


class RetinaFace(nn.Module):
    """Pictures to predictions for every anchor. Its landmark heads are loaded and never run."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50
        from torchvision.models._utils import IntermediateLayerGetter

        stages = {"layer2": "1", "layer3": "2", "layer4": "3"}
        self.body = IntermediateLayerGetter(resnet50(weights=None), stages)
        self.fpn = Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = Context(), Context(), Context()
        self.ClassHead = nn.ModuleList(Head(2) for _ in _STRIDES)
        self.BboxHead = nn.ModuleList(Head(4) for _ in _STRIDES)
        self.LandmarkHead = nn.ModuleList(Head(10) for _ in _STRIDES)

    def forward(self, frames_BHWC: torch.Tensor) -> Predictions:
        """
        Args:
            frames_BHWC: uint8 RGB.
        """
        mean = torch.tensor(_MEAN_BGR, device=frames_BHWC.device)
        bgr_BHWC = frames_BHWC.flip(-1).float() - mean
        stages = self.body(bgr_BHWC.permute(0, 3, 1, 2))
        levels = self.fpn(list(stages.values()))
        contexts = (self.ssh1, self.ssh2, self.ssh3)
        seen = [context(level) for context, level in zip(contexts, levels, strict=True)]

        def all_levels(heads: nn.ModuleList) -> torch.Tensor:
            return torch.cat([head(level) for head, level in zip(heads, seen, strict=True)], dim=1)

        scores = all_levels(self.ClassHead).softmax(-1)[..., 1]
        return Predictions(all_levels(self.BboxHead), scores)


def anchors(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Centre x, centre y, width and height in pixels of every anchor: float32 (N, 4)."""
    levels = []
    for stride, sizes in zip(_STRIDES, _ANCHORS, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        y = (torch.arange(rows, device=device) + 0.5) * stride
        x = (torch.arange(columns, device=device) + 0.5) * stride
        centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        side = torch.tensor(sizes, dtype=torch.float32, device=device)
        level = torch.cat(
            [
                centres[:, :, None].expand(-1, -1, len(sizes), 2),
                side[None, None, :, None].expand(rows, columns, -1, 2),
            ],
            dim=-1,
        )
        levels.append(level.reshape(-1, 4))
    return torch.cat(levels)


def boxes_of(offsets_N4: torch.Tensor, anchors_N4: torch.Tensor) -> torch.Tensor:
    """Left, top, right and bottom in pixels of each prediction: float32 (N, 4)."""
    centre, size = anchors_N4[:, :2], anchors_N4[:, 2:]
    centre = centre + offsets_N4[:, :2] * _VARIANCES[0] * size
    size = size * torch.exp(offsets_N4[:, 2:] * _VARIANCES[1])
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def stored_name(name: str) -> str | None:
    """The name of a stored tensor here: the released file was written by a parallel wrapper."""
    name = name.removeprefix("module.")
    return None if name.startswith("body.fc.") else name
