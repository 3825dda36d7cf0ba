"""A generated clip, and how it reaches the disk: video, sidecar, manifest, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cosmos_fast.errors import InputError
from cosmos_fast.media import VideoWriter

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType

    from cosmos_fast.report import Report
    from cosmos_fast.types import Frames, Latents, Size

Sidecar = Literal["later", "original"]
"""Text beside the video: "later" has labelled sections with the user's prompt, "original" is the
prompt that was used and nothing else (the two generations of the reference)."""

DEFAULT_CRF = 15


@dataclass(frozen=True)
class Clip:
    """What ``generate`` returns."""

    frames: Frames
    """uint8 (T, H, W, 3), on the engine's device until someone asks for them."""
    latents: Latents
    """float32 (1, 16, T', H/8, W/8)."""
    report: Report

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        crf: int = DEFAULT_CRF,
        sidecar: Sidecar | None = "later",
    ) -> Path:
        """Writes the video, its manifest (.json) and, unless ``sidecar`` is None, its text (.txt).

        Args:
            path: ends in .mp4, or without loss in .mkv, .npy or ``folder/%05d.png``; missing
                folders are made, an existing file is replaced, a folder of pictures has to be new.
            crf: H.264 quality, 0 (best) to 51; the lossless kinds do without.

        Returns:
            The path of the video.

        Raises:
            InputError: the name ends in something else.
            MediaError: ffmpeg failed, or the folder cannot be written; nothing is left behind.
        """
        with ClipWriter(path, self.frames.size, self.frames.fps, self.report.model, crf) as writer:
            writer.write(self.frames)
            writer.finish()
            return writer.publish(self.report, sidecar)

    def __repr__(self) -> str:
        return f"Clip(frames={self.frames!r}, seconds={self.report.seconds:.2f})"


class ClipWriter:
    """Encodes frames as they come and publishes the three files together.

    The video is finished and verified under a temporary name, then the sidecar and the manifest
    appear, then the video: a clip without its manifest cannot exist.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: Size,
        fps: float,
        model: Mapping[str, Any],
        crf: int = DEFAULT_CRF,
        ffmpeg: Path | None = None,
    ) -> None:
        self.path = Path(path)
        self._size, self._fps, self._crf, self._frames = size, fps, crf, 0
        comment = f"AI-generated video, made with cosmos-fast from {model.get('name', 'a model')}"
        self._video = VideoWriter(
            self.path, size=size, fps=fps, crf=crf, metadata={"comment": comment}, ffmpeg=ffmpeg
        )

    def __enter__(self) -> ClipWriter:
        self._video.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._video.abort()

    def write(self, frames: Frames) -> None:
        self._frames += len(frames)
        self._video.write(np.asarray(frames))

    def finish(self) -> None:
        """Waits for the encoder and verifies what it wrote; nothing has its final name yet."""
        self._unpublished = self._video.finish()

    def publish(self, report: Report, sidecar: Sidecar | None, text: str | None = None) -> Path:
        """Makes all files appear, the video last, or none.

        Args:
            report: goes into the manifest.
            sidecar: form of the text beside the video; None: there is none.
            text: in place of what the form would say.

        Raises:
            MediaError: the disk is full or the folder has gone; nothing is left behind, and what
                was there before is there again.
        """
        if sidecar is None:
            return self.publish_plain(report.as_dict())
        if text is None:
            text = sidecar_text(report.arguments, sidecar, report.upsampler.get("prompt"))
        return self.publish_plain(report.as_dict(), text)

    def publish_plain(self, record: Mapping[str, Any], text: str | None = None) -> Path:
        """As :meth:`publish`: ``record`` is in the manifest, ``text`` is the sidecar, if any."""
        manifest = {
            "schema": 1,
            "generated": True,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "video": {
                "file": self.path.relative_to(companions(self.path)[0].parent).as_posix(),
                "sha256": _sha256(self._unpublished),
                "frames": self._frames,
                "height": self._size.height,
                "width": self._size.width,
                "fps": self._fps,
                "crf": self._crf if self.path.suffix.lower() == ".mp4" else None,
            },
            **record,
        }
        text_path, manifest_path = companions(self.path)
        document = json.dumps(manifest, indent=2, ensure_ascii=False)
        beside = {} if text is None else {text_path: text.encode()}
        self._video.publish({**beside, manifest_path: f"{document}\n".encode()})
        return self.path


def companions(path: Path) -> tuple[Path, Path]:
    """The text and the manifest that stand beside a video, or beside its folder of pictures."""
    if path.suffix.lower() == ".png":
        folder = path.parent
        return folder.with_name(f"{folder.name}.txt"), folder.with_name(f"{folder.name}.json")
    return path.with_suffix(".txt"), path.with_suffix(".json")


def sidecar_text(arguments: Mapping[str, Any], form: Sidecar, upsampled: str | None = None) -> str:
    """The text that stands beside a video, in the form of either generation of the reference.

    Args:
        arguments: of the report.
        form: "original" is the prompt that was used, "later" has the user's and the upsampled one.
        upsampled: what an upsampler made of the prompt, if one did.
    """
    prompt, negative = str(arguments["prompt"]), str(arguments["negative_prompt"])
    if form == "original":
        return prompt if upsampled is None else upsampled
    if form != "later":
        raise InputError(f'sidecar = {form!r}: "later", "original" or None is needed')
    sections = [f"[Prompt]\n{prompt}\n"]
    if negative:
        sections.append(f"[Negative Prompt]\n{negative}\n")
    if upsampled is not None:
        sections.append(f"[Refined Prompt]\n{upsampled}\n")
    return "\n".join(sections)


def _sha256(path: Path) -> str:
    """Of a file's content, or of a folder's pictures one after the other."""
    found = hashlib.sha256()
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()
