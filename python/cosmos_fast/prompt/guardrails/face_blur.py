"""Faces in frames become five by five squares. Always on: what it finds is reported, not asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from cosmos_fast.prompt.guardrail import Placement, Verdict
from cosmos_fast.prompt.guardrails.retinaface import RetinaFace, anchors, boxes_of, stored_name
from cosmos_fast.prompt.networks import ReadTensors, Seat, filled
from cosmos_fast.types import Frames

if TYPE_CHECKING:
    from pathlib import Path

_CONFIDENCE: Final = 0.7
_OVERLAP: Final = 0.4
_CANDIDATES: Final = 5000
_KEPT: Final = 750
_SMALLEST: Final = 20
_SQUARES: Final = 5
_PIXELS_AT_ONCE: Final = 4 << 20
_FRAMES: Final = 32
"""That come together, at most."""
_BYTES_PER_PIXEL: Final = 256
"""float32: the stem's 64 channels at a quarter of the pixels and the first stage's 256 at a
sixteenth, three at a time, and the picture; estimate."""


class FaceBlur:
    """Finds faces with RetinaFace and makes them unrecognisable."""

    name = "face blur"

    def __init__(
        self, weights: Path, device: torch.device, read: ReadTensors, placement: Placement
    ) -> None:
        """
        Args:
            weights: ``Resnet50_Final.pth``.
            device: where it runs, in float32.
            read: reads the tensors.
            placement: where it stays between videos.
        """
        self._seat = Seat(lambda at: load_retinaface(weights, at, read), device, placement)
        self._device = device

    def load(self) -> None:
        """
        Raises:
            CheckpointError: the file is missing, damaged, or of another network.
        """
        with self._seat.taken():
            pass  # once, even where it is read anew each time: a finished video must not wait

    def sleep(self) -> None:
        """Off the device until the next video."""
        self._seat.sleep()

    @torch.no_grad()
    def check(self, frames: Frames) -> Verdict:
        """Always safe; its frames have their faces blurred."""
        home = frames.to("pt").device
        pixels_THWC = frames.to("pt").to(self._device)
        _, height, width, _ = frames.shape
        with self._seat.taken() as network:
            table = anchors(height, width, self._device)
            found = [
                boxes
                for batch in pixels_THWC.split(max(1, _PIXELS_AT_ONCE // (height * width)))
                for boxes in faces(network, batch, table)
            ]
        blurred = sum(map(len, found))
        details = {"faces": blurred, "frames with faces": sum(1 for boxes in found if boxes)}
        if not blurred:
            return Verdict(True, details=details)
        pixels_THWC = pixels_THWC.clone()
        for frame, boxes in zip(pixels_THWC, found, strict=True):
            for box in boxes:
                pixelate(frame, box)
        return Verdict(True, details=details, frames=Frames(pixels_THWC.to(home), frames.fps))


def working_bytes(height: int, width: int) -> int:
    """Of the device, beside the weights, for frames of that size; an estimate."""
    at_once = max(_PIXELS_AT_ONCE, height * width)
    return min(at_once, _FRAMES * height * width) * _BYTES_PER_PIXEL


def faces(
    network: RetinaFace, frames_BHWC: torch.Tensor, anchors_N4: torch.Tensor
) -> list[list[tuple[int, int, int, int]]]:
    """For each frame the (left, top, right, bottom) of its faces, within the frame.

    Faces narrower and lower than 20 pixels are left out.

    Raises:
        ArithmeticError: a prediction is not finite.
    """
    from torchvision.ops import nms

    height, width = frames_BHWC.shape[1:3]
    predictions = network(frames_BHWC)
    # A score that is no number is not above any bound: it would pass for "no face".
    sums = predictions.boxes_BN4.sum(-1) + predictions.scores_BN
    if not torch.isfinite(sums).all():
        raise ArithmeticError("RetinaFace gives values that are not finite")
    found = []
    for offsets_N4, scores_N in zip(predictions.boxes_BN4, predictions.scores_BN, strict=True):
        sure = scores_N > _CONFIDENCE
        scores, order = scores_N[sure].sort(descending=True)
        boxes = boxes_of(offsets_N4[sure][order], anchors_N4[sure][order])[:_CANDIDATES]
        kept = boxes[nms(boxes, scores[:_CANDIDATES], _OVERLAP)[:_KEPT]].tolist()
        found.append([box for each in kept if (box := _within(each, height, width)) is not None])
    return found


def pixelate(frame_HWC: torch.Tensor, box: tuple[int, int, int, int]) -> None:
    """Reduces what is in ``box`` to 5 by 5 averages of neighbours, in place."""
    left, top, right, bottom = box
    region_HWC = frame_HWC[top:bottom, left:right]
    region_CHW = region_HWC.permute(2, 0, 1)[None].float()
    squares = functional.interpolate(region_CHW, size=(_SQUARES, _SQUARES), mode="bilinear")
    large = functional.interpolate(squares, size=region_HWC.shape[:2], mode="nearest")
    region_HWC.copy_(large[0].permute(1, 2, 0).round())


def _within(box: list[float], height: int, width: int) -> tuple[int, int, int, int] | None:
    left, top, right, bottom = map(int, box)
    if right - left < _SMALLEST and bottom - top < _SMALLEST:
        return None
    left, right = max(left, 0), min(right, width)
    top, bottom = max(top, 0), min(bottom, height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def load_retinaface(weights: Path, device: torch.device, read: ReadTensors) -> RetinaFace:
    """
    Raises:
        CheckpointError: the file is missing, damaged, or of another network.
    """
    tensors = read(weights, device=device, dtype=torch.float32, rename=stored_name)
    network = filled(RetinaFace, tensors, weights).to(device)
    if device.type == "cuda":
        for kernel in network.parameters():
            if kernel.ndim == 4:  # the order in which Hopper's convolutions read
                kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    return network
