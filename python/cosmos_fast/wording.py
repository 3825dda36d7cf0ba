"""From the prompts of a request to those that the text encoder reads.

Guardrail, upsampler, guardrail: every text that reaches a model is checked first, the user's before
the upsampler, the upsampler's and the negative one before T5.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosmos_fast.errors import CheckpointError, GatedRepoError, GuardrailBlocked, InputError
from cosmos_fast.prompt import (
    DefaultGuardrail,
    Gate,
    Guardrail,
    Inspection,
    Sleeper,
    choose_gate,
    grouped,
)
from cosmos_fast.prompt.guardrails import GuardrailFolders, cosmos_guardrail, guardrail_needs
from cosmos_fast.prompt.needs import Need, device_bytes, parked_bytes, told
from cosmos_fast.prompt.upsampler import (
    PromptUpsampler,
    Upsampler,
    UpsamplerChoice,
    UpsamplerRecord,
    name_of,
    upsample,
)
from cosmos_fast.prompt.vision_language import QwenUpsampler, working_bytes
from cosmos_fast.types import NO_TEXT, Frames, Prompt, Size, TextEmbedding
from cosmos_fast.weights import (
    companion_roots,
    find_guardrail,
    find_upsampler,
    read_tensors,
    weight_bytes,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Sequence
    from typing import Any

    import torch

    from cosmos_fast.parallel import Ranks
    from cosmos_fast.prompt import GuardrailChoice
    from cosmos_fast.report import Clock
    from cosmos_fast.request import Request
    from cosmos_fast.weights import CheckpointFiles
    from cosmos_fast.weights.hub import HubAccess


@dataclass(frozen=True)
class Wording:
    """What the text encoder reads, and how the prompt came about."""

    prompt: Prompt
    upsampler: UpsamplerRecord

    def as_dict(self) -> dict[str, Any]:
        """What the report says of the upsampler."""
        return self.upsampler.as_dict()


CHECKED_TOGETHER: Final = 29
"""Frames that the guardrail looks at together, at least: 1 and 28 first, then 32 at a time."""


class Desk:
    """The guardrail and the upsampler of one engine. Of several ranks, the first one has them."""

    def __init__(
        self,
        guardrail: GuardrailChoice,
        upsampler: UpsamplerChoice,
        device: torch.device,
        checkpoint_root: str | os.PathLike[str] | None,
        ranks: Ranks,
    ) -> None:
        self._choices = guardrail, upsampler
        self._device, self._ranks = device, ranks
        self._root = None if checkpoint_root is None else Path(checkpoint_root).expanduser()
        self._gate = Gate.open("none", "not checked", "no checkpoint was found")
        self._upsampler: Upsampler | None = None
        self._guarded = False
        self._needs: list[Need] = []

    @property
    def device_bytes(self) -> int:
        """What the networks of the default guardrail and of the upsampler take of the device, at
        most; what checks and upsamplers of a caller's own take is not known."""
        return device_bytes(self._needs)

    @property
    def parked_bytes(self) -> int:
        """The same, did all of them rest elsewhere while they do not run."""
        return parked_bytes(self._needs)

    @property
    def device_words(self) -> str:
        """Each of these networks and its share."""
        return told(self._needs)

    @property
    def upsampler(self) -> str | None:
        """How reports call the upsampler; None where there is none."""
        return None if self._upsampler is None else name_of(self._upsampler)

    def find(self, files: CheckpointFiles) -> None:
        """Looks for what a checkpoint needs beside it; reads no weights.

        Raises:
            GuardrailBlocked: the guardrail is not there.
            CheckpointError: the upsampler is not there.
            InputError: a choice that does not exist.
        """
        if not self._ranks.first:
            return
        guardrail, upsampler = self._choices
        roots = companion_roots(files, self._root)
        access = files.hub.access if files.hub is not None else None
        self._gate = choose_gate(
            guardrail,
            toy=files.profile.toy,
            build=lambda: _guardrail(
                guardrail, roots, access, self._device, files.profile.size, self._needs
            ),
        )
        self._upsampler = _upsampler(upsampler, roots, access, self._device, self._needs)

    def load(self, clock: Clock) -> None:
        """Makes guardrail and upsampler ready.

        Raises:
            GuardrailBlocked: a check of the guardrail cannot be loaded.
            CheckpointError: the upsampler cannot be loaded.
        """
        self._ranks.on_first(lambda: self._load(clock))
        self._guarded = self._ranks.same(lambda: self._gate.guardrail is not None)

    def _load(self, clock: Clock) -> None:
        if self._gate.guardrail is not None:
            with clock.stage("load guardrail"):
                self._gate.load()
        if isinstance(self._upsampler, QwenUpsampler):
            with clock.stage("load upsampler"):
                self._upsampler.load()

    def sleep(self) -> None:
        """Takes the networks of guardrail and upsampler off the device until their next use."""
        guardrail = self._gate.guardrail
        checks = () if guardrail is None else (*guardrail.prompt_checks, *guardrail.frame_checks)
        for check in checks:
            if isinstance(check, Sleeper):
                check.sleep()
        if isinstance(self._upsampler, QwenUpsampler):
            self._upsampler.sleep()

    def inspection(self) -> Inspection:
        """What the guardrail will see and say during one call."""
        return self._gate.inspection()

    def admit(self, request: Request, inspection: Inspection, clock: Clock) -> None:
        """Has the texts of a request checked, before anything else is done for it.

        Raises:
            GuardrailBlocked: one is refused, or cannot be read.
        """
        if not self._guarded:
            return

        def checked() -> None:
            will_be_written = self.rewrites(request) and request.prompt == ""
            if not will_be_written:
                self.check("prompt", request.prompt, inspection)
            if request.uses_guidance:
                self.check("negative prompt", request.negative_prompt, inspection)

        with clock.stage("check prompt"):
            self._ranks.on_first(checked)

    def check(self, subject: str, prompt: Prompt, inspection: Inspection) -> None:
        """Has one text checked.

        Raises:
            GuardrailBlocked: it is refused, or cannot be read.
            InputError: it is no prompt.
        """
        if not isinstance(prompt, str | TextEmbedding) and prompt is not NO_TEXT:
            raise InputError(f"{subject} = {prompt!r}: a str, a TextEmbedding or NO_TEXT is needed")
        if isinstance(prompt, TextEmbedding):
            inspection.refuse(
                subject,
                "an embedding cannot be read; give the text, or NoGuardrail(reason=...) "
                "when loading",
            )
        if isinstance(prompt, str):
            inspection.prompt(subject, prompt)

    def checked(
        self, chunks: Generator[Frames], inspection: Inspection, at_once: int = CHECKED_TOGETHER
    ) -> Generator[Frames]:
        """What may be published of a decoded video, on every rank.

        Args:
            chunks: as the decoder yields them; closed at the end, whatever that is.
            inspection: of this call.
            at_once: frames that are looked at together, at least.

        Raises:
            GuardrailBlocked: a frame is refused, or could not be checked.
        """
        if not self._guarded:
            yield from chunks
            return
        # Whoever keeps the error of a blocked video must not keep the decoder's stage open.
        with closing(chunks), closing(grouped(chunks, at_once)) as pieces:
            for piece in pieces:

                def seen(piece: Frames = piece) -> list[torch.Tensor]:
                    return [inspection.frames(piece).to("pt")]

                (pixels,) = self._ranks.from_first(seen)
                yield Frames(pixels, piece.fps)

    def word(
        self,
        request: Request,
        frames: Callable[[], Frames],
        inspection: Inspection,
        clock: Clock,
    ) -> Wording | None:
        """The prompt that the text encoder reads, upsampled and checked where that was asked for.

        Args:
            request: whose prompt it is.
            frames: gives the frames that the video continues; called where they are needed.
            inspection: of this call.
            clock: of this call.

        Returns:
            None on other ranks than the first.

        Raises:
            GuardrailBlocked: the upsampler's prompt is refused.
            CosmosFastError: the upsampler fails.
        """
        return self._ranks.on_first(lambda: self._word(request, frames, inspection, clock))

    def _word(
        self,
        request: Request,
        frames: Callable[[], Frames],
        inspection: Inspection,
        clock: Clock,
    ) -> Wording:
        if self._upsampler is None:
            return Wording(request.prompt, UpsamplerRecord(None))
        name = name_of(self._upsampler)
        if not self.rewrites(request):
            reason = "upsample=False" if not request.upsample else "the prompt is no text"
            return Wording(request.prompt, UpsamplerRecord(name, reason=reason))
        known = frames()
        start = time.perf_counter()
        with clock.stage("upsample"):
            text, raw = upsample(self._upsampler, str(request.prompt), known, request.seed)
        record = UpsamplerRecord(
            name,
            ran=True,
            prompt=text,
            raw=raw if raw != text else None,
            seconds=round(time.perf_counter() - start, 6),
        )
        if inspection.active:
            with clock.stage("check upsampled prompt"):
                inspection.prompt("upsampled prompt", text)
        return Wording(text, record)

    def rewrites(self, request: Request) -> bool:
        """Whether the text encoder will read another prompt than the request's."""
        return self._upsampler is not None and request.upsample and isinstance(request.prompt, str)


def _guardrail(
    choice: GuardrailChoice,
    roots: Sequence[Path],
    access: HubAccess | None,
    device: torch.device,
    size: Size,
    needs: list[Need],
) -> Guardrail:
    wanted = choice if isinstance(choice, DefaultGuardrail) else DefaultGuardrail()
    try:
        files = find_guardrail(
            roots,
            access,
            folder=_path(wanted.folder),
            llama_guard=_path(wanted.llama_guard),
        )
        folders = GuardrailFolders(*files)
        needed = guardrail_needs(
            folders, device, weight_bytes, size=size, placement=wanted.placement
        )
    except CheckpointError as error:
        raise GuardrailBlocked(
            f"the guardrail is {error}. Fetch it with cosmos-fast download --guardrail, or go "
            f'without one, on record: guardrail=NoGuardrail(reason="...") or --disable_guardrail',
            cause="missing",
        ) from error
    except Exception as error:
        # A folder that may not be entered, a config of another shape: whatever it is, it blocks.
        told = " ".join(str(error).split())
        raise GuardrailBlocked(
            f"the guardrail cannot be looked through: {type(error).__name__}: {told}; without it "
            f"nothing passes. Make its folders readable, or fetch it again with cosmos-fast "
            f"download --guardrail",
            cause="error",
        ) from error
    needs += needed
    return cosmos_guardrail(
        folders,
        device,
        read_tensors,
        placement=wanted.placement,
        timeout_s=wanted.timeout_s,
    )


def _upsampler(
    choice: UpsamplerChoice,
    roots: Sequence[Path],
    access: HubAccess | None,
    device: torch.device,
    needs: list[Need],
) -> Upsampler | None:
    if isinstance(choice, str):
        choice = PromptUpsampler(choice)
    if isinstance(choice, PromptUpsampler):
        try:
            folder = find_upsampler(choice.model, roots, access)
        except GatedRepoError:
            raise
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Fetch it with cosmos-fast download --prompt_upsampler, or write the "
                f"prompt in full and turn the upsampler off (--disable_prompt_upsampler)"
            ) from error
        working = working_bytes(folder)
        needs.append(Need("upsampler", weight_bytes(folder), working, choice.placement))
        return QwenUpsampler(folder, device, read_tensors, choice.placement)
    if choice is not None and not callable(choice):
        raise InputError(
            f"upsampler = {choice!r}: a model's folder or hub id, PromptUpsampler(...), or a "
            f"callable of (prompt, frames, seed=...) is needed"
        )
    return choice


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
