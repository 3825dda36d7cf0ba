"""Qwen2.5-VL as a critic of videos: NVIDIA's Cosmos-Reason1-7B.

The reference asks it of every candidate of its best-of-N whether it sees anomalies or artefacts,
several times, and counts. The question is in our own words; how the answer is written and drawn is
the reference's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.errors import InputError
from cosmos_fast.prompt.networks import Drawing, ReadTensors, Seat
from cosmos_fast.prompt.vision_language import load_network, load_processor, question, steps, taken
from cosmos_fast.types import Frames

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.prompt.guardrail import Placement

INSTRUCTION: Final = "You examine videos that a model has generated, and find what is wrong."
QUESTION: Final = (
    "Look through the video for anomalies and artefacts: things that appear, vanish, melt, split "
    "or pass through each other; motion that breaks gravity, contact or inertia; limbs, hands and "
    "tools of the wrong number or shape; flicker, smear and texture that crawls; text that "
    "changes. Style, plain scenery and little motion are no fault. Answer in XML of this form:\n"
    "<think>\n<overview>what the video shows, and what strikes you</overview>\n"
    '<component name="a person, a thing or a part of the scene">\n'
    "<analysis>how it looks and moves from the first frame to the last</analysis>\n"
    "<anomaly>Yes or No</anomaly>\n</component>\n"
    "and so on, one component for each that matters\n</think>\n"
    "<answer>Yes or No</answer>\n"
    "The last line says whether the video contains anomalies or artefacts."
)
"""What the critic is asked. Our own words: the reference's are not reproduced."""

RATE: Final = 16.0
"""Frames a second that it sees, at most."""
_TOTAL_PIXELS: Final = 8192 * 28 * 28
_MOST_FRAMES: Final = 768
_NEW_TOKENS: Final = 4096


class QwenCritic:
    """Asks a Qwen2.5-VL model about a video, as often as is wanted; all answers are drawn at once.

    Temperature 0.6, top-p 0.95, top-k 50 and repetition penalty 1.05, as in the reference; the
    random numbers are a generator's of our own.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        read: ReadTensors,
        placement: Placement = "device",
    ) -> None:
        """
        Args:
            folder: config, tokenizer, processor and safetensors of a Qwen2.5-VL model.
            device: where it runs.
            read: reads the tensors.
            placement: where it stays between videos.
        """
        self._folder = folder
        self._processor: Any = None
        self._drawing: Drawing | None = None
        self._seat = Seat(lambda at: load_network(folder, at, read), device, placement)

    def load(self) -> None:
        """
        Raises:
            CheckpointError: a file is missing or damaged, or it is no Qwen2.5-VL model.
            InputError: Pillow or torchvision is not installed.
        """
        self._drawing = replace(
            Drawing.from_folder(self._folder),
            samples=True,
            temperature=0.6,
            top_p=0.95,
            top_k=50,
            repetition_penalty=1.05,
        )
        self._processor = load_processor(self._folder)
        self._seat.prepare()

    @torch.no_grad()
    def __call__(self, frames: Frames, *, trials: int, seed: int) -> list[str]:
        """What it says, once for each trial; special tokens are left out.

        Args:
            frames: the whole video, uint8 (T, H, W, 3).
        """
        if trials < 1:
            raise InputError(f"{trials = }: a critic has to be asked at least once")
        if self._processor is None:
            self.load()
        assert self._drawing is not None
        asked = question(self._processor, INSTRUCTION, QUESTION, seen(frames), _TOTAL_PIXELS)
        # One row for each answer; a row's video is its own, so the tower sees it each time.
        rows = {name: _repeated(value, trials) for name, value in asked.items()}
        with taken(self._seat) as running:
            placed = {
                name: value.to(running.device) if isinstance(value, torch.Tensor) else value
                for name, value in rows.items()
            }
            told = running.generate(
                **placed,
                generation_config=self._drawing.greedy(_NEW_TOKENS),
                logits_processor=steps(self._drawing, seed),
            )
        length = asked["input_ids"].shape[1]
        said = self._processor.tokenizer.batch_decode(told[:, length:], skip_special_tokens=True)
        return [str(text) for text in said]


def seen(frames: Frames) -> Frames:
    """The frames that the critic looks at: evenly spread, an even number, 16 a second at most."""
    count = min(len(frames), _MOST_FRAMES, int(len(frames) * RATE / frames.fps))
    count = max(2, count - count % 2)
    if len(frames) < 2 or count == len(frames):
        return frames
    places = torch.linspace(0, len(frames) - 1, count).round().long()
    pixels = frames.to("pt")
    rate = frames.fps * count / len(frames)
    return Frames(pixels[places.to(pixels.device)], rate)


def _repeated(value: Any, times: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value.repeat(times, *[1] * (value.ndim - 1))
    return value * times  # one entry a video
