"""Frames through SigLIP and a small classifier: the first class must win on every single one.

The reference looks at one frame at a time and lets a frame that fails pass; here frames go through
in batches, and a failure blocks. Axes: B frames of a batch, C channels, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn import functional

from cosmos_fast.errors import CheckpointError
from cosmos_fast.imports import untraced
from cosmos_fast.prompt.guardrail import Placement, Verdict
from cosmos_fast.prompt.needs import stated, transformer_bytes
from cosmos_fast.prompt.networks import ReadTensors, Seat, filled

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import SiglipVisionModel

    from cosmos_fast.types import Frames

CLASSES: Final = (
    "safe",
    "sexual content",
    "violence",
    "drugs",
    "child abuse",
    "hate and harassment",
    "self-harm",
)
_HIDDEN: Final = (512, 256)
_BATCH: Final = 32


class FrameClassifier(nn.Module):
    """SigLIP's image features (B, D) to the logits (B, K) of :data:`CLASSES`."""

    def __init__(self, siglip: nn.Module, width: int, pixels: int) -> None:
        super().__init__()
        self.siglip = siglip
        first, second = _HIDDEN
        self.layers = nn.Sequential(
            nn.Linear(width, first), nn.BatchNorm1d(first), nn.ReLU(),
            nn.Linear(first, second), nn.BatchNorm1d(second), nn.ReLU(),
            nn.Linear(second, len(CLASSES)),
        )  # fmt: skip
        self.pixels = pixels

    def forward(self, frames_BHWC: torch.Tensor) -> torch.Tensor:
        """
        Args:
            frames_BHWC: uint8 RGB, any size.

        Returns:
            float32 (B, K).
        """
        dtype = next(self.siglip.parameters()).dtype
        pixels_BCHW = fitted(frames_BHWC, self.pixels).to(dtype)
        features_BD = self.siglip(pixel_values=pixels_BCHW).pooler_output.float()
        logits_BK: torch.Tensor = self.layers(functional.normalize(features_BD, dim=-1))
        return logits_BK


def fitted(frames_BHWC: torch.Tensor, pixels: int) -> torch.Tensor:
    """Frames as SigLIP's processor prepares them: bicubic to a square, -1 to 1.

    As Pillow does: one way after the other, rounded to whole levels after each.

    Returns:
        float32 (B, 3, pixels, pixels).
    """
    frames_BCHW = frames_BHWC.permute(0, 3, 1, 2).float()
    for size in ((frames_BCHW.shape[-2], pixels), (pixels, pixels)):
        resized = functional.interpolate(frames_BCHW, size=size, mode="bicubic", antialias=True)
        frames_BCHW = resized.round_().clamp_(0, 255)
    return frames_BCHW / 127.5 - 1


class VideoFilter:
    """Blocks a video with a frame whose likeliest class is not "safe"."""

    name = "video filter"

    def __init__(
        self,
        siglip: Path,
        classifier: Path,
        device: torch.device,
        read: ReadTensors,
        placement: Placement,
    ) -> None:
        """
        Args:
            siglip: folder of google/siglip-so400m-patch14-384.
            classifier: ``safety_filter.pt``.
            device: where it runs, on CUDA in half precision.
            read: reads the tensors.
            placement: where it stays between videos.
        """
        dtype = dtype_on(device)
        self._seat = Seat(
            lambda at: load_classifier(siglip, classifier, at, dtype, read), device, placement
        )
        self._device = device

    def load(self) -> None:
        """
        Raises:
            CheckpointError: a file is missing or damaged, or no SigLIP.
        """
        with self._seat.taken():
            pass  # once, even where it is read anew each time: a finished video must not wait

    def sleep(self) -> None:
        """Off the device until the next video."""
        self._seat.sleep()

    @torch.no_grad()
    def check(self, frames: Frames) -> Verdict:
        """The first frame whose likeliest class is not "safe" blocks all."""
        pixels_THWC = frames.to("pt").to(self._device)
        with self._seat.taken() as network:
            logits_TK = torch.cat([network(batch) for batch in pixels_THWC.split(_BATCH)])
        if not torch.isfinite(logits_TK).all():
            raise ArithmeticError("the classifier gives values that are not finite")
        shares_TK = logits_TK.softmax(-1)
        doubt = 1 - float(shares_TK[:, 0].min())
        details = {"frames": len(frames), "largest share of unsafe classes": round(doubt, 4)}
        unsafe = logits_TK.argmax(-1).ne(0).nonzero().flatten().tolist()
        if unsafe:
            found = CLASSES[int(logits_TK[unsafe[0]].argmax())]
            return Verdict(False, f"frame {unsafe[0]} of {len(frames)} looks like {found}", details)
        return Verdict(True, details=details)


def dtype_on(device: torch.device) -> torch.dtype:
    """Of SigLIP. Half precision has as many digits as TF32, in which matrix products often run."""
    return torch.float16 if device.type == "cuda" else torch.float32


def working_bytes(siglip: Path, device: torch.device, height: int, width: int) -> int:
    """Of the device, beside the weights, for frames of that size; an estimate.

    A batch in float32, as it is and made narrower, and SigLIP's activations for it.
    """
    config = stated(siglip)
    vision = config.get("vision_config", config)
    pixels: int = vision.get("image_size", 384)
    tokens = _BATCH * (pixels // vision.get("patch_size", 14)) ** 2
    frames = _BATCH * 3 * height * (width + 2 * pixels) * 4
    itemsize = dtype_on(device).itemsize
    return frames + transformer_bytes(vision, tokens, cached=False, itemsize=itemsize)


def load_classifier(
    siglip: Path, classifier: Path, device: torch.device, dtype: torch.dtype, read: ReadTensors
) -> FrameClassifier:
    """
    Args:
        siglip: folder of a SigLIP model.
        classifier: ``safety_filter.pt``.
        device: where it is wanted.
        dtype: of SigLIP; the classifier runs in float32.
        read: reads the tensors.

    Raises:
        CheckpointError: a file is missing or damaged, or no SigLIP.
    """
    with untraced():
        from transformers import AutoConfig, SiglipConfig, SiglipVisionConfig, SiglipVisionModel

    try:
        config: Any = AutoConfig.from_pretrained(str(siglip), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{siglip}: no readable config.json: {error}") from error
    vision = config.vision_config if isinstance(config, SiglipConfig) else config
    if not isinstance(vision, SiglipVisionConfig):
        raise CheckpointError(f"{siglip}: a {config.model_type} model; SigLIP is needed")
    pixels: Any = vision.image_size

    def build() -> FrameClassifier:
        tower: SiglipVisionModel = SiglipVisionModel(vision)
        return FrameClassifier(tower, vision.hidden_size, pixels)

    with torch.device("meta"):
        # Releases of transformers differ in whether the tower's names carry this prefix.
        inner = next(iter(SiglipVisionModel(vision).state_dict())).startswith("vision_model.")

    def tower_name(name: str) -> str | None:
        if not name.startswith("vision_model."):
            return None  # the text tower, scale and bias
        return f"siglip.{name if inner else name.removeprefix('vision_model.')}"

    tensors = read(siglip, device=device, dtype=dtype, rename=tower_name)
    tensors |= read(
        classifier,
        device=device,
        dtype=torch.float32,
        rename=lambda name: name.removeprefix("network."),
        inside="model",
    )
    return filled(build, tensors, classifier).to(device)
