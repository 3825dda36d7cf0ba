"""Video2World: one picture or a few frames, and a prompt, become a video.

``generate`` reads like the flow of docs/architecture.md: text, conditioning, solver, decoder.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import torch

from cosmos_fast.clip import DEFAULT_CRF, Clip, ClipWriter, Sidecar
from cosmos_fast.config import Environment, RopeTable
from cosmos_fast.errors import (
    Cancelled,
    CosmosFastError,
    DeviceLost,
    GuardrailBlocked,
    InputError,
    MemoryPlanError,
)
from cosmos_fast.media import Fit, frames_from
from cosmos_fast.memory.residence import Residence
from cosmos_fast.model.flops import forward_flops
from cosmos_fast.model.graphs import GRAPH_TOKENS, GraphedDiT
from cosmos_fast.model.modulations import StepModulations
from cosmos_fast.model.pixels import to_pixels, to_video, with_host_copies
from cosmos_fast.parallel import Parallel, Ranks
from cosmos_fast.parts import (
    Parts,
    Precision,
    TextPrecision,
    choose_device,
    choose_precision,
    load_parts,
    vae_identity,
)
from cosmos_fast.prompt import joined
from cosmos_fast.report import (
    Clock,
    Report,
    StageCallback,
    peak_device_bytes,
    peak_host_bytes,
    versions,
)
from cosmos_fast.request import Options, Recipe, Request, resolve
from cosmos_fast.sampling import (
    SIGMA_MAX,
    adams_bashforth,
    denoiser,
    frame_times,
    guided,
    reference_noise,
)
from cosmos_fast.turns import Turns
from cosmos_fast.types import (
    NO_TEXT,
    Conditioning,
    Frames,
    Latents,
    Prompt,
    TextEmbedding,
    TokenLayout,
)
from cosmos_fast.wording import Desk, Wording

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from cosmos_fast.config import Profile
    from cosmos_fast.memory.plan import Memory, Plan
    from cosmos_fast.memory.residence import StageForm
    from cosmos_fast.prompt import GuardrailChoice, GuardrailRecord, Inspection
    from cosmos_fast.prompt.upsampler import UpsamplerChoice
    from cosmos_fast.sampling import Predictor, Velocity
    from cosmos_fast.sampling.solver import CancelToken, StepCallback
    from cosmos_fast.weights import CheckpointFiles

logger = logging.getLogger(__name__)


class Video2World:
    """A loaded Cosmos-Predict2 Video2World checkpoint.

    Make one with :meth:`from_pretrained`. Calls from several threads queue in order; work runs on
    the caller's current CUDA stream. The process around it is left as it was.
    """

    def __init__(self, parts: Parts, desk: Desk, ranks: Ranks | None = None) -> None:
        self._parts = parts
        self._desk = desk
        self._ranks = ranks or Ranks(None, parts.device)
        self._dit = GraphedDiT(parts.dit, GRAPH_TOKENS if parts.unmeasured_kernels else 0)
        parts.residence.on_move = self._dit.clear
        self._turns = Turns()
        self._lost: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        variant: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "auto",
        precision: Precision | Literal["auto"] = "auto",
        memory: Memory = "auto",
        offload: Iterable[str] = (),
        guardrail: GuardrailChoice = "default",
        upsampler: UpsamplerChoice = None,
        checkpoint_root: str | os.PathLike[str] | None = None,
        vae: str | os.PathLike[str] | None = None,
        text_encoder: str | os.PathLike[str] | None = None,
        text_precision: TextPrecision = "stored",
        tokenizer: str | os.PathLike[str] | None = None,
        ema: bool = False,
        profile: Profile | None = None,
        rope_table: RopeTable = "reference",
        prompt_cache: bool = True,
        parallel: Parallel | None = None,
        on_stage: StageCallback | None = None,
    ) -> Self:
        """Loads a checkpoint.

        Args:
            source: hub id, folder or file in NVIDIA's or diffusers' layout, or the name of a toy
                world that ships with the package.
            variant: which one, such as "480p-16fps", where a place holds several.
            revision, token, local_files_only: as in huggingface_hub.
            device: "auto" is the current CUDA device where there is one, else the CPU.
            precision: "bf16" or "fp32" of the transformer and the VAE; "auto" is bf16 on CUDA and
                fp32 on a CPU.
            memory: this engine's whole share of the device, CUDA context and workspaces included:
                "auto" (what is free), an amount such as "12GiB", bytes, or a ``Budget`` that also
                limits host memory. Weights that do not fit are streamed while the device computes.
                "resident" keeps all of them on the device whatever it takes; ranks always do.
            offload: components ("text encoder", "vae encoder", "dit", "vae decoder") that must
                leave the device when their stage ends.
            guardrail: "default" is the reference's, which must be there, and none for a toy world;
                ``DefaultGuardrail(...)`` with settings, a ``Guardrail`` of your own checks, or
                ``NoGuardrail(reason=...)``.
            upsampler: what rewrites prompts: a Qwen2.5-VL folder or hub id, ``PromptUpsampler``
                with settings, or any callable ``(prompt, frames, seed=...) -> str``. None takes
                prompts as they are.
            checkpoint_root: folder below which helper checkpoints (VAE, T5, guardrail, upsampler)
                are looked up.
            vae, text_encoder, tokenizer: paths that replace what was found.
            text_precision: "stored" runs the text encoder as its files hold it, "bf16" and "fp32"
                otherwise; prompts cached for one are not used for another.
            ema: take the moving average of a training checkpoint's weights (``net_ema.``).
            profile: replaces what the checkpoint implies.
            rope_table: "reference" or "float32" rotary angles.
            prompt_cache: keep prompt embeddings on disk, keyed by their content.
            parallel: the ranks that make each video together; all of them load an engine and make
                the same calls.
            on_stage: told when a stage of loading starts and ends.

        Raises:
            CheckpointError: missing, ambiguous, incomplete or damaged checkpoint.
            GuardrailBlocked: the guardrail is missing, incomplete or damaged.
            InputError: a setting that does not exist.
            MemoryPlanError: the host has too little memory for any plan.
            RankLost: another rank failed to load, or is gone.
        """
        place = choose_device(device)
        clock = Clock(place, on_stage)
        ranks = Ranks(parallel, place)
        desk = Desk(guardrail, upsampler, place, checkpoint_root, ranks)
        residence = Residence(place, memory, offload=frozenset(offload), shared=ranks.size > 1)

        def on_found(files: CheckpointFiles) -> None:
            desk.find(files)
            residence.reserve(desk.device_bytes)

        same = (str(source), variant, revision, precision, rope_table, ema, text_precision)
        with ranks.together(same):
            parts = load_parts(
                source,
                residence=residence,
                device=place,
                dtype=choose_precision(precision, place),
                rope_table=rope_table,
                environment=Environment.read(),
                prompt_cache=prompt_cache,
                clock=clock,
                text_precision=text_precision,
                ranks=ranks,
                on_found=on_found,
                find={
                    "variant": variant,
                    "revision": revision,
                    "token": token,
                    "local_files_only": local_files_only,
                    "checkpoint_root": checkpoint_root,
                    "vae": vae,
                    "text_encoder": text_encoder,
                    "tokenizer": tokenizer,
                    "profile": profile,
                    "ema": ema,
                },
            )
            desk.load(clock)
            return cls(parts, desk, ranks)

    @property
    def profile(self) -> Profile:
        """What the checkpoint implies: defaults and limits of :meth:`generate`."""
        return self._parts.profile

    @property
    def device(self) -> torch.device:
        return self._parts.device

    @property
    def memory_plan(self) -> Plan | None:
        """The plan of the last call (before the first: of the profile's own size); None where
        everything stays on the device without one."""
        return self._parts.residence.plan

    def sleep(self) -> None:
        """Gives the device memory back: page-locked copies of the weights stay in host memory.

        Waits for running calls. The next call, or :meth:`wake`, brings the weights back at the
        speed of the bus.
        """
        with self._turns:
            self._parts.residence.sleep()

    def wake(self) -> None:
        """Brings back what :meth:`sleep` took off the device."""
        with self._turns:
            self._parts.residence.wake()

    def generate(
        self,
        source: Any,
        prompt: Prompt,
        negative_prompt: Prompt | None = None,
        *,
        size: tuple[int, int] | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        num_conditional_frames: int | None = None,
        num_steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        fit: Fit = "cover",
        recipe: Recipe = "lossless",
        upsample: bool = True,
        on_step: StepCallback | None = None,
        on_stage: StageCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> Clip:
        """Predicts the video that follows the given frames.

        ``None`` everywhere means the profile's value.

        Args:
            source: path of a picture or video (its last frames are used), or uint8 frames
                (H, W, 3) or (T, H, W, 3) as NumPy, torch on any device, PIL, or anything with
                ``__dlpack__``.
            prompt: text, an embedding, or ``NO_TEXT``.
            negative_prompt: the same; an empty text skips the unconditional branch, so that
                guidance has no effect.
            size: (height, width) in pixels, rounded up to multiples of 16.
            num_frames: pixel frames of the result, 4 n + 1, the given ones included.
            fps: frame rate of the result; the network does not see it.
            num_conditional_frames: pixel frames taken from ``source``: 1 or 5.
            num_steps: solver steps; one more evaluation follows.
            guidance: g in x0_c + g (x0_c - x0_u); one less than the textbook's scale.
            seed: 0 to 2**32 - 1; same engine, arguments and seed give the same bytes.
            fit: "cover" scales and crops, "stretch" ignores the aspect ratio.
            recipe: "lossless".
            upsample: have the prompt rewritten, where the engine has an upsampler.
            on_step: called with (number from 1, total, x0 float32) after each evaluation.
            on_stage: called with (name, "start" | "end", seconds).
            cancel: anything with ``is_set()``, looked at between evaluations and chunks.

        Raises:
            GuardrailBlocked: a prompt or the video was refused, or could not be checked.
            InputError, MediaError, Cancelled, MemoryPlanError, DeviceLost, RankLost.
        """
        request = resolve(
            self.profile,
            prompt,
            negative_prompt,
            size=size,
            num_frames=num_frames,
            fps=fps,
            num_conditional_frames=num_conditional_frames,
            num_steps=num_steps,
            guidance=guidance,
            seed=seed,
            fit=fit,
            recipe=recipe,
            upsample=upsample,
        )
        return self._generate(request, source, on_step, on_stage, cancel)

    def _generate(
        self,
        request: Request,
        source: Any,
        on_step: StepCallback | None,
        on_stage: StageCallback | None,
        cancel: CancelToken | None,
    ) -> Clip:
        inspection = self.inspection()
        with self._run(request, on_stage) as clock:
            cancel = self._ranks.cancel(cancel)
            latents, wording = self._sample(request, source, clock, on_step, cancel, inspection)
            with clock.stage("decode"):
                decoded = self._decode(latents, request, clock, cancel)
                frames = list(self._desk.checked(decoded, inspection))
            report = self._report(request, latents, clock, inspection, wording)
        return Clip(joined(frames), Latents(latents, vae_identity(report.model)), report)

    def generate_to(
        self,
        path: str | os.PathLike[str],
        source: Any,
        prompt: Prompt,
        negative_prompt: Prompt | None = None,
        *,
        crf: int = DEFAULT_CRF,
        sidecar: Sidecar | None = "later",
        on_step: StepCallback | None = None,
        on_stage: StageCallback | None = None,
        cancel: CancelToken | None = None,
        **options: Unpack[Options],
    ) -> Clip:
        """:meth:`generate` and ``Clip.save`` in one: the video is encoded while it is decoded.

        Of several ranks, the first one writes.
        """
        request = resolve(self.profile, prompt, negative_prompt, **options)
        if not self._ranks.first:
            return self._generate(request, source, on_step, on_stage, cancel)
        inspection = self.inspection()
        with self._run(request, on_stage) as clock:
            cancel = self._ranks.cancel(cancel)
            model = self._parts.identity()
            with ClipWriter(path, request.size, request.fps, model, crf) as writer:
                latents, wording = self._sample(request, source, clock, on_step, cancel, inspection)
                frames = []
                with clock.stage("decode"):
                    decoded = self._decode(latents, request, clock, cancel)
                    chunks = self._desk.checked(decoded, inspection)
                    for chunk, on_host in with_host_copies(chunks):
                        writer.write(on_host)
                        frames.append(chunk)
                with clock.stage("write"):
                    writer.finish()
                report = self._report(request, latents, clock, inspection, wording)
                writer.publish(report, sidecar)
        return Clip(joined(frames), Latents(latents, vae_identity(model)), report)

    def stream(
        self,
        source: Any,
        prompt: Prompt,
        negative_prompt: Prompt | None = None,
        *,
        on_step: StepCallback | None = None,
        on_stage: StageCallback | None = None,
        cancel: CancelToken | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Frames]:
        """Like :meth:`generate`, yielding frames as the decoder makes them: 1, then 4 at a time.

        The transformer sees the whole clip at once, so nothing can come before its last step. The
        engine is taken until the iterator ends or is closed.
        """
        request = resolve(self.profile, prompt, negative_prompt, **options)
        return self._stream(request, source, on_step, on_stage, cancel)

    def _stream(
        self,
        request: Request,
        source: Any,
        on_step: StepCallback | None,
        on_stage: StageCallback | None,
        cancel: CancelToken | None,
    ) -> Iterator[Frames]:
        inspection = self.inspection()
        with self._run(request, on_stage) as clock:
            cancel = self._ranks.cancel(cancel)
            latents, _ = self._sample(request, source, clock, on_step, cancel, inspection)
            decoded = self._decode(latents, request, clock, cancel)
            yield from self._desk.checked(decoded, inspection, at_once=1)

    @property
    def guardrail(self) -> GuardrailRecord:
        """What stands between this engine's videos and the world."""
        return self.inspection().record()

    def inspection(self) -> Inspection:
        """The guardrail's eyes on one piece of work, for the rooms above."""
        return self._desk.inspection()

    @contextmanager
    def lend(self) -> Iterator[Parts]:
        """The loaded networks, for the rooms above, for as long as it is the caller's turn.

        Raises:
            DeviceLost, MemoryPlanError: in place of what torch raises inside.
            InputError: this engine's weights move, and are where they are needed in its own calls
                only.
        """
        with self._run(None):
            self._parts.residence.require_resident()
            yield self._parts

    def embed(self, prompt: Prompt) -> TextEmbedding:
        """What the transformer attends to in place of ``prompt``; from the cache where it is.

        Raises:
            GuardrailBlocked: the prompt was refused, or could not be checked.
        """
        with self._run(None):
            self._desk.check("prompt", prompt, self.inspection())
            texts = self._parts.unknown([prompt])
            if texts:
                self._parts.place_for_texts()
            with self._text_encoder(texts):
                return self._embed(prompt)

    @contextmanager
    def _run(
        self, request: Request | None, on_stage: StageCallback | None = None
    ) -> Iterator[Clock]:
        """One caller at a time, in order of arrival; device errors become ours."""
        with self._turns:
            if self._lost:
                raise DeviceLost(f"{self._lost}; start the process again")
            try:
                with self._ranks.together(request.arguments() if request else None):
                    yield Clock(self.device, on_stage)
            except torch.OutOfMemoryError as error:
                raise MemoryPlanError(
                    f"out of memory on {self.device}: choose a smaller size or fewer frames, or "
                    f"free the device ({error})"
                ) from error
            except torch.AcceleratorError as error:
                self._lost = f"{self.device} failed: {error}".splitlines()[0]
                raise DeviceLost(f"{self._lost}; start the process again") from error
            except GuardrailBlocked as blocked:
                if isinstance(cause := blocked.__cause__, torch.AcceleratorError):
                    self._lost = f"{self.device} failed: {cause}".splitlines()[0]
                raise

    def _sample(
        self,
        request: Request,
        source: Any,
        clock: Clock,
        on_step: StepCallback | None,
        cancel: CancelToken | None,
        inspection: Inspection,
    ) -> tuple[torch.Tensor, Wording | None]:
        """float32 (1, 16, T', h, w): the clean latents of the whole clip, and the words for it."""
        self._desk.admit(request, inspection, clock)
        self._place_for(request)
        try:
            return self._sampled(request, source, clock, on_step, cancel, inspection)
        except torch.OutOfMemoryError:
            if not self._may_start_again(clock):
                raise
        self._lower(request, clock)
        return self._sampled(request, source, clock, on_step, cancel, inspection)

    def _place_for(self, request: Request) -> Plan | None:
        """Weights go where ``request`` needs them; the plan, if there is one."""
        return self._parts.place_for(request, prompt_is_final=not self._desk.rewrites(request))

    def _may_start_again(self, clock: Clock) -> bool:
        return not clock.started_again and self._parts.residence.can_lower

    def _lower(self, request: Request, clock: Clock) -> None:
        """The device ran out of memory: a plan one level down, once a call."""
        failed = self._parts.residence.lower()
        plan = self._place_for(request)
        assert plan is not None
        clock.start_again(
            f"out of memory with a plan of {failed.peak_bytes / 2**30:.2f} GiB; started again "
            f"with one of {plan.peak_bytes / 2**30:.2f} GiB"
        )
        logger.warning(clock.notes[-1])

    @torch.no_grad()
    def _sampled(
        self,
        request: Request,
        source: Any,
        clock: Clock,
        on_step: StepCallback | None,
        cancel: CancelToken | None,
        inspection: Inspection,
    ) -> tuple[torch.Tensor, Wording | None]:
        residence = self._parts.residence
        with clock.stage("read"):
            known = self._ranks.on_first(
                lambda: frames_from(
                    source,
                    size=request.size,
                    num_frames=request.num_conditional_frames,
                    fit=request.fit,
                    fps=request.fps,
                )
            )
        wording = self._desk.word(request, known, inspection, clock)
        prompts = [] if wording is None else request.prompts(wording.prompt)
        with clock.stage("text"), self._text_encoder(self._parts.unknown(prompts)):
            texts = self._texts(prompts)
        with clock.stage("encode"), residence.stage("encode"):
            given = self._condition(known, request)
        with clock.stage("denoise"), residence.stage("denoise") as form:
            predict = self._predictor(texts, given, request, form)
            noise = reference_noise(request.latent_shape, request.seed).to(self.device)
            latents = adams_bashforth(
                predict,
                noise * SIGMA_MAX,
                request.sigmas,
                on_step=_marking(clock, on_step),
                cancel=cancel,
            )
            if not torch.isfinite(latents).all():
                raise CosmosFastError(
                    "the denoised latents are not finite: the checkpoint or the device is at fault"
                )
        return latents, wording

    @contextmanager
    def _text_encoder(self, unknown: list[str]) -> Iterator[None]:
        """The text encoder's weights are there for the body, where texts need it."""
        if not unknown or not self._ranks.first:
            yield
            return
        self._parts.text.load()
        with self._parts.residence.stage("text", passes=len(unknown)):
            yield

    def _texts(self, prompts: list[Prompt]) -> list[TextEmbedding]:
        """What the network attends to in place of the first rank's ``prompts``."""

        def embedded() -> list[torch.Tensor]:
            made = [self._embed(prompt) for prompt in prompts]
            lengths = torch.tensor([each.length for each in made])
            return [torch.stack([each.rows.to(self.device) for each in made]), lengths]

        rows, lengths = self._ranks.from_first(embedded)
        return [
            TextEmbedding(each, int(length)) for each, length in zip(rows, lengths, strict=True)
        ]

    def _embed(self, prompt: Prompt) -> TextEmbedding:
        width = self.profile.dit.text_dim
        if prompt is NO_TEXT:
            return TextEmbedding.zeros(width, self.device)
        if isinstance(prompt, TextEmbedding):
            if prompt.rows.shape[1] != width:
                raise InputError(
                    f"a text embedding of width {prompt.rows.shape[1]}: {self.profile.name} "
                    f"attends to rows of width {width}"
                )
            return prompt
        return self._parts.text.embed(str(prompt))

    def _condition(self, known: Frames | None, request: Request) -> Conditioning:
        parts = self._parts

        def encoded() -> list[torch.Tensor]:
            assert known is not None
            return [parts.vae.encode(to_video(known, parts.device, parts.dtype))]

        (latents,) = self._ranks.from_first(encoded)
        return Conditioning.from_first_frames(latents, request.num_latent_frames)

    def _predictor(
        self,
        texts: list[TextEmbedding],
        given: Conditioning,
        request: Request,
        form: StageForm,
    ) -> Predictor:
        """Guided prediction; what does not change over the run is made here, once."""
        dit, heads = self._parts.dit, self.profile.dit.num_heads
        shares = self._ranks.share(self._layout(request).grid, heads, len(texts))
        layout = shares.layout
        rope = dit.rope(layout)
        times_KT = torch.stack([frame_times(given, sigma) for sigma in request.sigmas])
        # Of weights that come and go, everything is made in the order of their coming.
        as_used = not form.kept
        modulations = StepModulations(dit, times_KT, as_used=as_used)

        def branch(embedding: TextEmbedding, slot: int) -> Velocity:
            rows = embedding.rows[None].to(self.device)
            context = dit.text_context(rows, embedding.length, as_used=as_used)

            def velocity(
                x: torch.Tensor, times: torch.Tensor, mask: torch.Tensor, step: int
            ) -> torch.Tensor:
                vectors = modulations(step)
                if form.kept and form.cut is None:
                    return self._dit(
                        x, times, mask, context, layout, rope=rope, modulations=vectors, slot=slot
                    )
                flow: torch.Tensor = dit(
                    x,
                    times,
                    mask,
                    context,
                    layout,
                    rope=rope,
                    modulations=vectors,
                    cut=form.cut,
                )
                return flow

            return velocity

        own = [
            branch(text, index) if shares.computes(index) else None
            for index, text in enumerate(texts)
        ]
        predictors = [denoiser(velocity, given) for velocity in shares.joined(own)]
        return guided(predictors[0], predictors[1] if texts[1:] else None, request.guidance)

    def _decode(
        self, latents: torch.Tensor, request: Request, clock: Clock, cancel: CancelToken | None
    ) -> Iterator[Frames]:
        begun = False
        try:
            for frames in self._decoded(latents, request, cancel):
                begun = True
                yield frames
            return
        except torch.OutOfMemoryError:
            if begun or not self._may_start_again(clock):
                raise
        self._lower(request, clock)
        yield from self._decoded(latents, request, cancel)

    def _decoded(
        self, latents: torch.Tensor, request: Request, cancel: CancelToken | None
    ) -> Iterator[Frames]:
        vae, ranks = self._parts.vae, self._ranks
        with (
            self._parts.residence.stage("decode") as form,
            ranks.rows(*vae.shareable, rows=latents.shape[-2]) as gathered,
        ):
            chunks = vae.decode_chunks(latents, frame_by_frame=form.frame_by_frame)
            while True:
                if cancel is not None and cancel.is_set():
                    raise Cancelled("cancelled while decoding")
                with torch.no_grad():
                    chunk = next(chunks, None)
                    if chunk is None:
                        return
                    pixels = gathered(to_pixels(chunk))
                yield Frames(pixels, request.fps)

    def _launches(self, request: Request) -> str:
        plan = self._parts.residence.plan
        moves = plan is not None and plan.stage("denoise").holdings[0] != "kept"
        graphs = not moves and self._dit.replays(self._layout(request), self.device)
        return "cuda graph" if graphs else "one by one"

    def _layout(self, request: Request) -> TokenLayout:
        _, _, frames, height, width = request.latent_shape
        patch = self.profile.dit.patch
        return TokenLayout((frames, height // patch, width // patch))

    def _report(
        self,
        request: Request,
        latents: torch.Tensor,
        clock: Clock,
        inspection: Inspection,
        wording: Wording | None,
    ) -> Report:
        parts = self._parts
        branches = 2 if request.uses_guidance else 1
        shared = (stage.seconds for stage in clock.stages if stage.name in ("denoise", "decode"))
        return Report(
            arguments=request.arguments(),
            stages=tuple(clock.stages),
            step_seconds=clock.step_seconds(),
            forwards_per_step=branches,
            flops_per_forward=forward_flops(self.profile.dit, request.latent_shape[2:]).total,
            backends={**parts.ops.names, "launches": self._launches(request)},
            device=parts.device_name,
            precision=str(parts.dtype).removeprefix("torch."),
            guardrail=self._ranks.same(lambda: inspection.record().as_dict()),
            upsampler=self._ranks.same(lambda: wording.as_dict() if wording is not None else {}),
            model=self._ranks.same(parts.identity),
            latents_sha256=hashlib.sha256(latents.cpu().numpy().tobytes()).hexdigest(),
            peak_device_bytes=peak_device_bytes(self.device),
            peak_host_bytes=peak_host_bytes(),
            parallel=self._ranks.account(sum(shared)),
            memory=self._memory(clock),
            notes=(*request.notes, *clock.notes),
            versions=versions(),
        )

    def _memory(self, clock: Clock) -> dict[str, Any] | None:
        """The plan's predictions beside what the clock has measured."""
        plan = self._parts.residence.plan
        if plan is None:
            return None
        measured = {stage.name: stage.seconds for stage in clock.stages}
        peak = peak_device_bytes(self.device)
        if peak is not None:  # what was reserved for others is in both
            peak += plan.fixed_bytes - self._parts.residence.reserved_bytes
        return plan.compared(measured, peak)


def _marking(clock: Clock, on_step: StepCallback | None) -> StepCallback:
    """Marks each evaluation on the clock, then tells the caller."""
    clock.mark_step()

    def after(step: int, total: int, x0: torch.Tensor) -> None:
        clock.mark_step()
        if on_step is not None:
            on_step(step, total, x0)

    return after
