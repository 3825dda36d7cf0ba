"""One video in the making: text, conditioning, solver, decoder, in their order.

What several videos share (networks, guardrail, ranks) belongs to the engine; what one call needs
lives here for as long as the call does.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cosmos_fast.errors import Cancelled, CosmosFastError, InputError
from cosmos_fast.media import frames_ahead
from cosmos_fast.model.flops import forward_flops
from cosmos_fast.model.modulations import StepModulations
from cosmos_fast.model.pixels import to_pixels, to_video
from cosmos_fast.report import Report, peak_device_bytes, peak_host_bytes, versions
from cosmos_fast.sampling import (
    SIGMA_MAX,
    adams_bashforth,
    denoiser,
    frame_times,
    guided,
    noise_ahead,
)
from cosmos_fast.types import NO_TEXT, Conditioning, Frames, Prompt, TextEmbedding, TokenLayout
from cosmos_fast.wording import CHECKED_TOGETHER, Desk, Wording

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from concurrent.futures import Future

    from cosmos_fast.memory.plan import Plan
    from cosmos_fast.memory.residence import StageForm
    from cosmos_fast.model.graphs import GraphedDiT
    from cosmos_fast.parallel import Ranks
    from cosmos_fast.parts import Parts
    from cosmos_fast.prompt import Inspection
    from cosmos_fast.report import Clock
    from cosmos_fast.request import Request
    from cosmos_fast.sampling import Predictor, Velocity
    from cosmos_fast.sampling.solver import CancelToken, StepCallback

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Studio:
    """What an engine lends to each of its calls."""

    parts: Parts
    desk: Desk
    ranks: Ranks
    dit: GraphedDiT
    """The transformer, replayed from graphs where that pays."""

    def embeddings(self, prompts: Sequence[Prompt]) -> list[TextEmbedding]:
        """What the transformer attends to in place of each of ``prompts``.

        Raises:
            InputError: an embedding of another width, or no prompt at all.
        """
        given = [self._given(prompt) for prompt in prompts]
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        with self._text_encoder(self.parts.unknown(texts)):
            read = iter(self.parts.text.embed(texts))
        return [next(read) if embedding is None else embedding for embedding in given]

    @contextmanager
    def _text_encoder(self, unknown: list[str]) -> Iterator[None]:
        """The text encoder's weights are there for the body, where texts need it."""
        if not unknown or not self.ranks.first:
            yield
            return
        self.parts.text.load()
        with self.parts.residence.stage("text"):
            yield

    def _given(self, prompt: Prompt) -> TextEmbedding | None:
        """The embedding that ``prompt`` is, None where it is a text; errors as above."""
        profile = self.parts.profile
        width = profile.dit.text_dim
        if prompt is NO_TEXT:
            return TextEmbedding.zeros(width, self.parts.device)
        if isinstance(prompt, TextEmbedding):
            if prompt.rows.shape[1] != width:
                raise InputError(
                    f"a text embedding of width {prompt.rows.shape[1]}: {profile.name} "
                    f"attends to rows of width {width}"
                )
            return prompt
        if not isinstance(prompt, str):
            raise InputError(f"{prompt = !r}: a str, a TextEmbedding or NO_TEXT is needed")
        return None


class Generation:
    """One call: :meth:`latents`, then :meth:`frames`, then :meth:`report`."""

    def __init__(
        self,
        studio: Studio,
        request: Request,
        source: Any,
        clock: Clock,
        inspection: Inspection,
        *,
        on_step: StepCallback | None,
        cancel: CancelToken | None,
    ) -> None:
        """
        Args:
            studio: of the engine whose turn it is.
            request: what will be made.
            source: the given frames, as ``generate`` takes them.
            clock: times the stages.
            inspection: the guardrail's, of this call.
            on_step: told of each evaluation.
            cancel: looked at between evaluations and chunks.
        """
        self._studio, self._parts, self._ranks = studio, studio.parts, studio.ranks
        self._request, self._source, self._clock = request, source, clock
        self._inspection, self._on_step = inspection, on_step
        self._cancel = self._ranks.cancel(cancel)
        self._wording: Wording | None = None

    def latents(self) -> torch.Tensor:
        """float32 (1, 16, T', h, w): the clean latents of the whole clip."""
        request = self._request
        with noise_ahead(request.latent_shape, request.seed) as noise:
            self._parts.residence.watch()
            self._studio.desk.admit(request, self._inspection, self._clock)
            self._place()
            try:
                return self._sampled(noise)
            except torch.OutOfMemoryError:
                if not self._may_start_again:
                    raise
            self._lower()
            return self._sampled(noise)

    def frames(self, latents: torch.Tensor, at_once: int = CHECKED_TOGETHER) -> Generator[Frames]:
        """The decoded video as the guardrail lets it through, 1 frame and then 4 at a time.

        Close it where it is not read to its end: the decoder's weights are taken until then.

        Args:
            latents: from :meth:`latents`.
            at_once: frames that the guardrail looks at together, at least.
        """
        return self._studio.desk.checked(self._decode(latents), self._inspection, at_once)

    def report(self, latents: torch.Tensor) -> Report:
        """What happened, once everything has."""
        parts, request, clock, wording = self._parts, self._request, self._clock, self._wording
        shared = (stage.seconds for stage in clock.stages if stage.name in ("denoise", "decode"))
        return Report(
            arguments=request.arguments(),
            stages=tuple(clock.stages),
            step_seconds=clock.step_seconds(),
            forwards_per_step=2 if request.uses_guidance else 1,
            flops_per_forward=forward_flops(parts.profile.dit, request.latent_shape[2:]).total,
            backends={**parts.ops.names, "launches": self._launches()},
            device=parts.device_name,
            precision=str(parts.dtype).removeprefix("torch."),
            guardrail=self._ranks.same(lambda: self._inspection.record().as_dict()),
            upsampler=self._ranks.same(lambda: wording.as_dict() if wording is not None else {}),
            model=self._ranks.same(parts.identity),
            latents_sha256=hashlib.sha256(latents.cpu().numpy().tobytes()).hexdigest(),
            peak_device_bytes=peak_device_bytes(parts.device),
            peak_host_bytes=peak_host_bytes(),
            parallel=self._ranks.account(sum(shared)),
            memory=self._memory(),
            notes=(*request.notes, *clock.notes),
            versions=versions(),
        )

    def _place(self) -> Plan | None:
        """Weights go where the request needs them; the plan, if there is one."""
        final = not self._studio.desk.rewrites(self._request)
        return self._parts.place_for(self._request, self._ranks, prompt_is_final=final)

    @property
    def _may_start_again(self) -> bool:
        return not self._clock.started_again and self._parts.residence.can_lower

    def _lower(self) -> None:
        """The device ran out of memory: a plan one level down, once a call."""
        failed = self._parts.residence.lower()
        plan = self._place()
        assert plan is not None
        self._clock.start_again(
            f"out of memory with a plan of {failed.peak_bytes / 2**30:.2f} GiB; started again "
            f"with one of {plan.peak_bytes / 2**30:.2f} GiB"
        )
        logger.warning(self._clock.notes[-1])

    @torch.no_grad()
    def _sampled(self, drawn: Future[torch.Tensor]) -> torch.Tensor:
        """Each stage in its turn; ``drawn`` is waited for where it is needed, and not before."""
        request, clock, residence = self._request, self._clock, self._parts.residence
        with self._reading() as frames:
            if self._wording is None:  # a run that starts again has its words already
                self._wording = self._studio.desk.word(request, frames, self._inspection, clock)
            prompts = [] if self._wording is None else request.prompts(self._wording.prompt)
            with clock.stage("text"):
                texts = self._texts(prompts)
            known = self._ranks.on_first(frames)
        with clock.stage("encode"):
            given = self._condition(known)
        with clock.stage("noise"):
            noise = drawn.result()
        with clock.stage("denoise"), residence.stage("denoise") as form:
            sampled = adams_bashforth(
                self._predictor(texts, given, form),
                noise.to(self._parts.device) * SIGMA_MAX,
                request.sigmas,
                on_step=_marking(clock, self._on_step),
                cancel=self._cancel,
            )
            self._ranks.end_sharing()
            latents = residence.outside(sampled)
            del sampled
            if not torch.isfinite(latents).all():
                raise CosmosFastError(
                    "the denoised latents are not finite: the checkpoint or the device is at fault"
                )
        return latents

    @contextmanager
    def _reading(self) -> Iterator[Callable[[], Frames]]:
        """What gives the first rank its frames: a picture is decoded beside the body until then."""
        request, clock = self._request, self._clock
        notes: list[str] = []

        def begin() -> Frames | Callable[[], Frames]:
            ahead = frames_ahead(
                self._source,
                size=request.size,
                num_frames=request.num_conditional_frames,
                fit=request.fit,
                fps=request.fps,
                notes=notes,
            )
            return stack.enter_context(ahead)

        with ExitStack() as stack:
            with clock.stage("read"):
                given = self._ranks.on_first(begin)

            def frames() -> Frames:
                nonlocal given
                assert given is not None
                if not isinstance(given, Frames):
                    with clock.stage("picture"):
                        given = given()
                return given

            yield frames
        # Once, even where the run started again.
        clock.notes += [note for note in notes if note not in clock.notes]

    def _texts(self, prompts: list[Prompt]) -> list[TextEmbedding]:
        """What the network attends to in place of the first rank's ``prompts``."""

        def embedded() -> list[torch.Tensor]:
            made = self._studio.embeddings(prompts)
            lengths = torch.tensor([each.length for each in made])
            return [torch.stack([each.rows.to(self._parts.device) for each in made]), lengths]

        rows, lengths = self._ranks.from_first(embedded)
        return [
            TextEmbedding(each, int(length)) for each, length in zip(rows, lengths, strict=True)
        ]

    def _condition(self, known: Frames | None) -> Conditioning:
        parts = self._parts

        def encoded() -> list[torch.Tensor]:
            assert known is not None
            with parts.residence.stage("encode"):  # nothing else is left when it ends
                encode, outside = parts.vae.encode, parts.residence.outside
                return [outside(encode(to_video(known, parts.device, parts.dtype)))]

        (latents,) = self._ranks.from_first(encoded)
        return Conditioning.from_first_frames(latents, self._request.num_latent_frames)

    def _predictor(
        self, texts: list[TextEmbedding], given: Conditioning, form: StageForm
    ) -> Predictor:
        """Guided prediction; what does not change over the run is made here, once."""
        request, dit = self._request, self._parts.dit
        heads = self._parts.profile.dit.num_heads
        shares = self._ranks.share(self._layout().grid, heads, len(texts))
        layout = shares.layout.to(self._parts.device)
        rope = dit.rope(layout)
        times_KT = torch.stack([frame_times(given, sigma) for sigma in request.sigmas])
        # Of weights that come and go, everything is made in the order of their coming.
        as_used = not form.kept
        modulations = StepModulations(dit, times_KT, as_used=as_used)

        def branch(embedding: TextEmbedding, slot: int) -> Velocity:
            rows = embedding.rows[None].to(self._parts.device)
            context = dit.text_context(rows, embedding.length, as_used=as_used)

            def velocity(
                x: torch.Tensor, times: torch.Tensor, mask: torch.Tensor, step: int
            ) -> torch.Tensor:
                inputs, now = (x, times, mask, context, layout), modulations(step)
                if form.kept and form.cut is None:
                    return self._studio.dit(*inputs, rope=rope, modulations=now, slot=slot)
                flow: torch.Tensor = dit(*inputs, rope=rope, modulations=now, cut=form.cut)
                return flow

            return velocity

        own = [
            branch(text, index) if shares.computes(index) else None
            for index, text in enumerate(texts)
        ]
        predictors = [denoiser(velocity, given) for velocity in shares.joined(own)]
        return guided(predictors[0], predictors[1] if texts[1:] else None, request.guidance)

    def _decode(self, latents: torch.Tensor) -> Generator[Frames]:
        begun = False
        try:
            with closing(self._decoded(latents)) as chunks:
                for frames in chunks:
                    begun = True
                    yield frames
            return
        except torch.OutOfMemoryError:
            if begun or not self._may_start_again:
                raise
        self._lower()
        yield from self._decoded(latents)

    def _decoded(self, latents: torch.Tensor) -> Generator[Frames]:
        vae, ranks, residence = self._parts.vae, self._ranks, self._parts.residence
        stripe = ranks.rows(latents.shape[-2])
        with residence.stage("decode") as form:
            chunks = vae.decode_chunks(latents, frame_by_frame=form.frame_by_frame, stripe=stripe)
            while True:
                if self._cancel is not None and self._cancel.is_set():
                    raise Cancelled("cancelled while decoding")
                with torch.no_grad():
                    chunk = next(chunks, None)
                    if chunk is None:
                        return
                    pixels = to_pixels(chunk)
                    if stripe is not None:
                        pixels = stripe.gathered(pixels)
                    pixels = residence.outside(pixels)
                    del chunk
                yield Frames(pixels, self._request.fps)

    def _layout(self) -> TokenLayout:
        _, _, frames, height, width = self._request.latent_shape
        patch = self._parts.profile.dit.patch
        return TokenLayout((frames, height // patch, width // patch))

    def _launches(self) -> str:
        plan = self._parts.residence.plan
        moves = plan is not None and plan.stage("denoise").holdings[0] != "kept"
        graphs = not moves and self._studio.dit.replays(self._layout(), self._parts.device)
        return "cuda graph" if graphs else "one by one"

    def _memory(self) -> dict[str, Any] | None:
        """The plan's predictions beside what the clock has measured."""
        residence = self._parts.residence
        if residence.plan is None:
            return None
        measured = {stage.name: stage.seconds for stage in self._clock.stages}
        return residence.plan.compared(measured, residence.taken())


def _marking(clock: Clock, on_step: StepCallback | None) -> StepCallback:
    """Marks each evaluation on the clock, then tells the caller."""
    clock.mark_step()

    def after(step: int, total: int, x0: torch.Tensor) -> None:
        clock.mark_step()
        if on_step is not None:
            on_step(step, total, x0)

    return after
