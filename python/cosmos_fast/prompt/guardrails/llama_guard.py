"""Llama Guard 3: a language model that reads a prompt and answers "safe" or "unsafe".

Whatever else it answers counts as unsafe. The reference lets a prompt pass on any error, and asks
in the decoding mode of the checkpoint, which draws random numbers; here the likeliest answer
counts, so that the same prompt always gets the same one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.errors import CheckpointError
from cosmos_fast.imports import untraced
from cosmos_fast.prompt.guardrail import Placement, Verdict
from cosmos_fast.prompt.guardrails.plain_text import spelled_out
from cosmos_fast.prompt.needs import stated, transformer_bytes
from cosmos_fast.prompt.networks import Drawing, ReadTensors, Seat, filled

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

CATEGORIES: Final = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex-Related Crimes",
    "S4": "Child Sexual Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Suicide & Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}
_ANSWER_TOKENS: Final = 100
_MARK: Final = re.compile("<[A-Z][A-Z ]+>")
_TOKENS: Final = 1024
"""Of the categories, a long prompt and the answer; estimate."""


class LlamaGuard:
    """Asks a Llama Guard 3 checkpoint about each prompt."""

    name = "llama guard"

    def __init__(
        self, folder: Path, device: torch.device, read: ReadTensors, placement: Placement
    ) -> None:
        """
        Args:
            folder: config.json, tokenizer and safetensors of meta-llama/Llama-Guard-3-8B.
            device: where it runs.
            read: reads the tensors.
            placement: where it stays between prompts.
        """
        self._folder = folder
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._drawing: Drawing | None = None
        self._frame: list[str] = []
        """Marks in plain words that part the conversation from the question about it."""
        self._seat = Seat(lambda at: _load(folder, at, read), device, placement)

    def load(self) -> None:
        """
        Raises:
            CheckpointError: a file is missing or damaged, or the tokenizer has no chat template.
        """
        with untraced():
            from transformers import AutoTokenizer
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(self._folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            # The tokenizers library raises bare Exceptions for files it cannot read.
            raise CheckpointError(f"{self._folder}: no readable tokenizer: {error}") from error
        if not tokenizer.chat_template:
            raise CheckpointError(f"{self._folder}: its tokenizer has no chat template")
        self._tokenizer = tokenizer
        self._frame = _frame_of(tokenizer, self._folder)
        self._drawing = Drawing.from_folder(self._folder)
        self._seat.prepare()

    def sleep(self) -> None:
        """Off the device until the next prompt."""
        self._seat.sleep()

    @torch.no_grad()
    def check(self, prompt: str) -> Verdict:
        """Safe where the answer is "safe" and nothing else."""
        assert self._tokenizer is not None
        assert self._drawing is not None
        if said := _control_words(self._tokenizer, self._frame, prompt):
            return Verdict(False, f"the text holds {said!r}, which only the model's frame may say")
        with self._seat.taken() as llama:
            answer = _ask(llama, self._tokenizer, self._drawing, prompt)
        return verdict_of(answer)


def working_bytes(folder: Path) -> int:
    """Of the device, beside the weights of the model in ``folder``; an estimate."""
    return transformer_bytes(stated(folder), _TOKENS, cached=True)


def verdict_of(answer: str) -> Verdict:
    """What an answer of Llama Guard means: a first line "safe", or "unsafe" and its categories."""
    lines = answer.strip().lower().split("\n")
    if lines == ["safe"]:
        return Verdict(True)
    if lines[0].strip() == "unsafe":
        kinds = [part.strip() for line in lines[1:] for part in line.split(",") if part.strip()]
        named = [f"{kind.upper()} {CATEGORIES.get(kind.upper(), '')}".strip() for kind in kinds]
        return Verdict(False, f"unsafe: {', '.join(named) or 'no category given'}")
    return Verdict(False, f"its answer is neither safe nor unsafe: {answer.strip()[:80]!r}")


def _frame_of(tokenizer: Any, folder: Path) -> list[str]:
    """The marks that a chat template sets around a prompt.

    Raises:
        CheckpointError: the prompt is not in what it makes.
    """
    prompt = "A kettle boils."
    try:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], categories=CATEGORIES, tokenize=False
        )
    except Exception as error:
        # A template is a program: it may raise anything.
        raise CheckpointError(f"{folder}: its chat template fails: {error}") from error
    if prompt not in asked:
        raise CheckpointError(f"{folder}: its chat template leaves the prompt out")
    return _MARK.findall(asked)


def _control_words(tokenizer: Any, frame: list[str], prompt: str) -> str | None:
    """A token or a mark of the chat frame in the prompt: it could end the user's turn and answer
    itself."""
    said = " ".join(spelled_out(prompt).upper().split())
    marks = (mark for mark in frame if mark in said)
    return next((token for token in tokenizer.get_added_vocab() if token in prompt), None) or next(
        marks, None
    )


def _ask(llama: LlamaForCausalLM, tokenizer: Any, drawing: Drawing, prompt: str) -> str:
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        categories=CATEGORIES,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    ).to(llama.device)
    length, longest = asked["input_ids"].shape[1], llama.config.max_position_embeddings
    if length + _ANSWER_TOKENS > longest:
        raise ValueError(f"the prompt has {length} tokens; {longest - _ANSWER_TOKENS} can be read")
    running: Any = llama
    told = running.generate(
        input_ids=asked["input_ids"],
        attention_mask=asked["attention_mask"],
        generation_config=drawing.greedy(_ANSWER_TOKENS),
    )
    return str(tokenizer.decode(told[0, length:], skip_special_tokens=True))


def _load(folder: Path, device: torch.device, read: ReadTensors) -> LlamaForCausalLM:
    with untraced():
        from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable config.json: {error}") from error
    if not isinstance(config, LlamaConfig):
        raise CheckpointError(f"{folder}: a {config.model_type} model; Llama Guard 3 is a llama")
    tensors = read(folder, device=device, dtype=None)
    if config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    make: Any = LlamaForCausalLM
    llama: Any = filled(lambda: make(config), tensors, folder)
    placed: LlamaForCausalLM = llama.to(device)
    return placed
