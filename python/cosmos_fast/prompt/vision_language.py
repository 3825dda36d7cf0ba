"""Qwen2.5-VL, loaded and asked: as a prompt upsampler here, as a critic next door."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.imports import install_extra, untraced
from cosmos_fast.prompt.needs import stated, transformer_bytes
from cosmos_fast.prompt.networks import Drawing, ReadTensors, Seat, filled
from cosmos_fast.prompt.upsampler import INSTRUCTION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import Qwen2_5_VLForConditionalGeneration

    from cosmos_fast.prompt.guardrail import Placement
    from cosmos_fast.types import Frames

_PATCH: Final = 28 * 28
_IMAGE_PIXELS: Final = (256 * _PATCH, 1280 * _PATCH)
_FRAME_PIXELS: Final = (128 * _PATCH, 768 * _PATCH)
_NEW_TOKENS: Final = 512
_TOKENS: Final = 4096
"""Of five frames, four patches to a token, and what is said of them; estimate."""


class QwenUpsampler:
    """Asks a Qwen2.5-VL model; the answer is drawn with a generator of its own.

    It sees the frames that the video continues, as the transformer gets them. (The reference shows
    it a whole video, of which the transformer sees the end.) Only tokens that spell ASCII are
    drawn, as in the reference: T5 knows little else.
    """

    def __init__(
        self, folder: Path, device: torch.device, read: ReadTensors, placement: Placement
    ) -> None:
        """
        Args:
            folder: config, tokenizer, processor and safetensors of a Qwen2.5-VL model.
            device: where it runs.
            read: reads the tensors.
            placement: where it stays between prompts.
        """
        self.name = f"{folder.parent.name}/{folder.name}"
        self._folder = folder
        self._processor: Any = None
        self._drawing: Drawing | None = None
        self._not_ascii: torch.Tensor | None = None
        self._seat = Seat(lambda at: load_network(folder, at, read), device, placement)

    def load(self) -> None:
        """
        Raises:
            CheckpointError: a file is missing or damaged, or it is no Qwen2.5-VL model.
            InputError: Pillow or torchvision is not installed.
        """
        self._drawing = Drawing.from_folder(self._folder)
        self._processor = load_processor(self._folder)
        self._seat.prepare()

    def sleep(self) -> None:
        """Off the device until the next prompt."""
        self._seat.sleep()

    @torch.no_grad()
    def __call__(self, prompt: str, frames: Frames, *, seed: int) -> str:
        """
        Raises:
            InputError: the prompt holds a token of the chat's frame.
        """
        if self._processor is None:
            self.load()
        assert self._drawing is not None
        tokenizer = self._processor.tokenizer
        if said := next((t for t in tokenizer.get_added_vocab() if t in prompt), None):
            raise InputError(
                f"the prompt holds {said!r}, which means something else to {self.name}"
            )
        asked = question(self._processor, INSTRUCTION, prompt, frames)
        with taken(self._seat) as model:
            if self._not_ascii is None:
                self._not_ascii = not_ascii(tokenizer, model.config.get_text_config().vocab_size)
            asked = asked.to(model.device)
            running: Any = model
            told = running.generate(
                **asked,
                generation_config=self._drawing.greedy(_NEW_TOKENS),
                logits_processor=[Masked(self._not_ascii), *steps(self._drawing, seed)],
            )
        length = asked["input_ids"].shape[1]
        return str(tokenizer.decode(told[0, length:], skip_special_tokens=True))


@contextmanager
def taken(seat: Seat[Qwen2_5_VLForConditionalGeneration]) -> Iterator[Any]:
    """The network in ``seat`` until the block ends; then it forgets the last question's positions,
    which are no weight and would stay on the device while the others sleep."""
    with seat.taken() as model:
        try:
            yield model
        finally:
            module: Any
            for module in model.modules():
                if getattr(module, "rope_deltas", None) is not None:
                    module.rope_deltas = None


def working_bytes(folder: Path) -> int:
    """Of the device, beside the weights of the model in ``folder``; an estimate."""
    config = stated(folder)
    seen = transformer_bytes(config.get("vision_config"), 4 * _TOKENS, cached=False)
    text = config.get("text_config", config)  # older files tell the sizes of the text outside
    return max(seen, transformer_bytes(text, _TOKENS, cached=True))


class Masked:
    """A logits processor: some tokens are never drawn."""

    def __init__(self, unwanted: torch.Tensor) -> None:
        self._unwanted = unwanted

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(self._unwanted.to(scores.device), -torch.inf)


class Drawn:
    """A logits processor after which the largest score is a fair draw from the distribution.

    The Gumbel-max trick: argmax(logits + noise) is distributed as softmax(logits). It lets greedy
    decoding sample without the random state of the process.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        waiting = torch.empty(scores.shape, dtype=torch.float32)
        noise = -waiting.exponential_(generator=self._generator).log()
        return scores.float() + noise.to(scores.device)


def not_ascii(tokenizer: Any, vocabulary: int) -> torch.Tensor:
    """bool (vocabulary,): tokens that spell something else than ASCII; special ones stay."""
    unwanted = torch.ones(vocabulary, dtype=torch.bool)
    known = min(vocabulary, len(tokenizer))
    spelt = tokenizer.batch_decode([[token] for token in range(known)])
    unwanted[:known] = torch.tensor([not text.isascii() for text in spelt])
    unwanted[[token for token in tokenizer.all_special_ids if token < vocabulary]] = False
    return unwanted


def steps(drawing: Drawing, seed: int) -> list[Any]:
    """The logits processors of a way of drawing, with our own random numbers."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if not drawing.samples:
        return []
    found: list[Any] = []
    if drawing.temperature != 1:
        found.append(TemperatureLogitsWarper(drawing.temperature))
    if drawing.top_k:
        found.append(TopKLogitsWarper(drawing.top_k))
    if drawing.top_p < 1:
        found.append(TopPLogitsWarper(drawing.top_p))
    return [*found, Drawn(seed)]


def question(
    processor: Any, instruction: str, prompt: str, frames: Frames, total_pixels: int | None = None
) -> Any:
    """What the network reads: the system's words, the user's, and then the picture or the video.

    Args:
        total_pixels: of a video after its reduction, over pairs of frames: each frame gets an even
            share of it, within what is allowed to one frame.
    """
    pictures = frames.to("pt").permute(0, 3, 1, 2).cpu()
    kind = "image" if len(frames) == 1 else "video"
    least, most = _IMAGE_PIXELS if kind == "image" else _FRAME_PIXELS
    if total_pixels is not None and kind == "video":
        most = max(min(most, total_pixels * 2 // len(pictures)), int(least * 1.05))
    size = {"shortest_edge": least, "longest_edge": most}
    text = processor.apply_chat_template(
        [
            {"role": "system", "content": [{"type": "text", "text": instruction}]},
            {"role": "user", "content": [{"type": "text", "text": prompt}, {"type": kind}]},
        ],
        add_generation_prompt=True,
        tokenize=False,
        chat_template=processor.chat_template or processor.tokenizer.chat_template,
    )
    if kind == "image":
        return processor(text=[text], images=[pictures[0]], return_tensors="pt", size=size)
    # A pair of frames makes one patch in time: an odd number has its last frame twice.
    if len(pictures) % 2:
        pictures = torch.cat([pictures, pictures[-1:]])
    # Newer processors ask whether to hold each frame to a budget of the whole: a few frames are.
    asks = hasattr(processor.video_processor, "cap_pixels_per_frame")
    capped = {"cap_pixels_per_frame": True} if asks else {}
    metadata = {"fps": frames.fps, "total_num_frames": len(pictures)}
    return processor(
        text=[text],
        videos=[pictures],
        video_metadata=[metadata],
        do_sample_frames=False,
        **capped,
        return_tensors="pt",
        size=size,
    )


def load_processor(folder: Path) -> Any:
    """What turns words and frames into the network's inputs.

    Raises:
        CheckpointError: a file is missing or damaged.
        InputError: Pillow or torchvision is not installed.
    """
    with untraced():
        from transformers import Qwen2_5_VLProcessor
    try:
        return Qwen2_5_VLProcessor.from_pretrained(str(folder), local_files_only=True)
    except ImportError as error:
        told = " ".join(str(error).split())
        raise InputError(
            f"Qwen2.5-VL needs Pillow and torchvision ({told}); {install_extra('upsampler')}"
        ) from error
    except Exception as error:
        # The tokenizers library raises bare Exceptions for files it cannot read.
        raise CheckpointError(f"{folder}: no readable processor: {error}") from error


def load_network(
    folder: Path, device: torch.device, read: ReadTensors
) -> Qwen2_5_VLForConditionalGeneration:
    """
    Raises:
        CheckpointError: a file is missing or damaged, or it is no Qwen2.5-VL model.
    """
    with untraced():
        from transformers import (
            AutoConfig,
            Qwen2_5_VLConfig,
            Qwen2_5_VLForConditionalGeneration,
        )
    try:
        config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable config.json: {error}") from error
    if not isinstance(config, Qwen2_5_VLConfig):
        raise CheckpointError(f"{folder}: a {config.model_type} model; Qwen2.5-VL is needed")
    tensors = read(folder, device=device, dtype=None, rename=stored_name)
    text = config.get_text_config()
    if getattr(text, "tie_word_embeddings", False) or config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors["model.language_model.embed_tokens.weight"])
    make: Any = Qwen2_5_VLForConditionalGeneration
    model: Any = filled(lambda: make(config), tensors, folder)
    placed: Qwen2_5_VLForConditionalGeneration = model.to(device)
    return placed


def stored_name(name: str) -> str:
    """The network's name of a stored tensor: the released files have those of older releases."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(
        ("model.visual.", "model.language_model.")
    ):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name
