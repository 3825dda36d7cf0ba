"""Video2World: one picture or a few frames, and a prompt, become a video.

``generate`` reads like the flow of docs/architecture.md: text, conditioning, solver, decoder.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, Unpack

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
from cosmos_fast.model.flops import forward_flops
from cosmos_fast.model.pixels import to_pixels, to_video
from cosmos_fast.parts import Parts, Precision, choose_device, choose_precision, load_parts
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
from cosmos_fast.sampling import SIGMA_MAX, adams_bashforth, denoiser, guided, reference_noise
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
from cosmos_fast.wording import Desk

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from cosmos_fast.config import Profile
    from cosmos_fast.prompt import GuardrailChoice, Inspection
    from cosmos_fast.prompt.upsampler import UpsamplerChoice, UpsamplerRecord
    from cosmos_fast.sampling import Predictor
    from cosmos_fast.sampling.solver import CancelToken, StepCallback

Value = TypeVar("Value")

CHECKED_TOGETHER = 24
"""Frames that the guardrail looks at together while a video is written."""


class Video2World:
    """A loaded Cosmos-Predict2 Video2World checkpoint.

    Make one with :meth:`from_pretrained`. Calls from several threads queue in order; work runs on
    the caller's current CUDA stream. The process around it is left as it was.
    """

    def __init__(self, parts: Parts, desk: Desk) -> None:
        self._parts = parts
        self._desk = desk
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
        memory: Literal["auto", "resident"] = "auto",
        guardrail: GuardrailChoice = "default",
        upsampler: UpsamplerChoice = None,
        checkpoint_root: str | os.PathLike[str] | None = None,
        vae: str | os.PathLike[str] | None = None,
        text_encoder: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        profile: Profile | None = None,
        rope_table: RopeTable = "reference",
        prompt_cache: bool = True,
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
                fp32 on a CPU. The text encoder keeps the precision it is stored in.
            memory: "auto" and "resident" keep all weights on the device.
            guardrail: "default" is the reference's, which must be there, and none for a toy world;
                ``DefaultGuardrail(...)`` with settings, a ``Guardrail`` of your own checks, or
                ``NoGuardrail(reason=...)``.
            upsampler: what rewrites prompts: a Qwen2.5-VL folder or hub id, ``PromptUpsampler``
                with settings, or any callable ``(prompt, frames, seed=...) -> str``. None takes
                prompts as they are.
            checkpoint_root: folder below which helper checkpoints (VAE, T5, guardrail, upsampler)
                are looked up.
            vae, text_encoder, tokenizer: paths that replace what was found.
            profile: replaces what the checkpoint implies.
            rope_table: "reference" or "float32" rotary angles.
            prompt_cache: keep prompt embeddings on disk, keyed by their content.
            on_stage: told when a stage of loading starts and ends.

        Raises:
            CheckpointError: missing, ambiguous, incomplete or damaged checkpoint.
            GuardrailBlocked: the guardrail is missing, incomplete or damaged.
            InputError: a setting that does not exist.
        """
        if memory not in ("auto", "resident"):
            raise InputError(
                f'{memory = }: "auto" and "resident" exist in this version; both keep all weights '
                f"on the device"
            )
        place = choose_device(device)
        clock = Clock(place, on_stage)
        desk = Desk(guardrail, upsampler, place, checkpoint_root)
        parts = load_parts(
            source,
            device=place,
            dtype=choose_precision(precision, place),
            rope_table=rope_table,
            environment=Environment.read(),
            prompt_cache=prompt_cache,
            clock=clock,
            on_found=desk.find,
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
            },
        )
        desk.load(clock)
        return cls(parts, desk)

    @property
    def profile(self) -> Profile:
        """What the checkpoint implies: defaults and limits of :meth:`generate`."""
        return self._parts.profile

    @property
    def device(self) -> torch.device:
        return self._parts.device

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
            InputError, MediaError, Cancelled, MemoryPlanError, DeviceLost.
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
        inspection = self._desk.inspection()
        with self._run(on_stage) as clock:
            latents, upsampled = self._sample(request, source, clock, on_step, cancel, inspection)
            with clock.stage("decode"):
                frames = joined(list(self._decode(latents, request, cancel)))
            if inspection.active:
                with clock.stage("check video"):
                    frames = inspection.frames(frames)
            report = self._report(request, latents, clock, inspection, upsampled)
        return Clip(frames, Latents(latents, self._parts.vae_identity), report)

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
        """:meth:`generate` and ``Clip.save`` in one: the video is encoded while it is decoded."""
        request = resolve(self.profile, prompt, negative_prompt, **options)
        inspection = self._desk.inspection()
        with self._run(on_stage) as clock:
            model = self._parts.identity()
            with ClipWriter(path, request.size, request.fps, model, crf) as writer:
                latents, upsampled = self._sample(
                    request, source, clock, on_step, cancel, inspection
                )
                frames = []
                with clock.stage("decode"):
                    decoded = self._decode(latents, request, cancel)
                    for chunk in inspection.stream(decoded, at_once=CHECKED_TOGETHER):
                        writer.write(chunk)
                        frames.append(chunk)
                with clock.stage("write"):
                    writer.finish()
                report = self._report(request, latents, clock, inspection, upsampled)
                writer.publish(report, sidecar)
        return Clip(joined(frames), Latents(latents, self._parts.vae_identity), report)

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
        inspection = self._desk.inspection()
        with self._run(on_stage) as clock:
            latents, _ = self._sample(request, source, clock, on_step, cancel, inspection)
            decoded = self._decode(latents, request, cancel)
            yield from inspection.stream(decoded, at_once=1)

    @contextmanager
    def _run(self, on_stage: StageCallback | None) -> Iterator[Clock]:
        """One caller at a time, in order of arrival; device errors become ours."""
        with self._turns:
            if self._lost:
                raise DeviceLost(f"{self._lost}; start the process again")
            try:
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

    @torch.no_grad()
    def _sample(
        self,
        request: Request,
        source: Any,
        clock: Clock,
        on_step: StepCallback | None,
        cancel: CancelToken | None,
        inspection: Inspection,
    ) -> tuple[torch.Tensor, UpsamplerRecord]:
        """float32 (1, 16, T', h, w): the clean latents of the whole clip."""
        self._desk.admit(request, inspection, clock)
        with clock.stage("read"):
            known = frames_from(
                source,
                size=request.size,
                num_frames=request.num_conditional_frames,
                fit=request.fit,
                fps=request.fps,
            )
        wording = self._desk.word(request, known, inspection, clock)
        with clock.stage("text"):
            text = self._embed(wording.prompt)
            against = self._embed(request.negative_prompt) if request.uses_guidance else None
        with clock.stage("encode"):
            given = self._condition(known, request)
        with clock.stage("denoise"):
            predict = self._predictor(text, against, given, request)
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
        return latents, wording.upsampler

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

    def _condition(self, known: Frames, request: Request) -> Conditioning:
        parts = self._parts
        latents = parts.vae.encode(to_video(known, parts.device, parts.dtype))
        return Conditioning.from_first_frames(latents, request.num_latent_frames)

    def _predictor(
        self,
        text: TextEmbedding,
        against: TextEmbedding | None,
        given: Conditioning,
        request: Request,
    ) -> Predictor:
        """Guided prediction; what does not change over the run is made here, once."""
        dit, patch = self._parts.dit, self.profile.dit.patch
        _, _, frames, height, width = request.latent_shape
        layout = TokenLayout((frames, height // patch, width // patch))
        rope = dit.rope(layout)
        modulations = OncePerStep(dit.modulations)

        def branch(embedding: TextEmbedding) -> Predictor:
            context = dit.text_context(embedding.rows[None].to(self.device))

            def velocity(
                x: torch.Tensor, times: torch.Tensor, mask: torch.Tensor, step: int
            ) -> torch.Tensor:
                flow: torch.Tensor = dit(
                    x, times, mask, context, layout, rope=rope, modulations=modulations(times, step)
                )
                return flow

            return denoiser(velocity, given)

        unconditional = None if against is None else branch(against)
        return guided(branch(text), unconditional, request.guidance)

    def _decode(
        self, latents: torch.Tensor, request: Request, cancel: CancelToken | None
    ) -> Iterator[Frames]:
        chunks = self._parts.vae.decode_chunks(latents)
        while True:
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled while decoding")
            with torch.no_grad():
                chunk = next(chunks, None)
                if chunk is None:
                    return
                pixels = to_pixels(chunk)
            yield Frames(pixels, request.fps)

    def _report(
        self,
        request: Request,
        latents: torch.Tensor,
        clock: Clock,
        inspection: Inspection,
        upsampled: UpsamplerRecord,
    ) -> Report:
        parts = self._parts
        branches = 2 if request.uses_guidance else 1
        return Report(
            arguments=request.arguments(),
            stages=tuple(clock.stages),
            step_seconds=clock.step_seconds(),
            forwards_per_step=branches,
            flops_per_forward=forward_flops(self.profile.dit, request.latent_shape[2:]).total,
            backends=dict(parts.ops.names),
            device=parts.device_name,
            precision=str(parts.dtype).removeprefix("torch."),
            guardrail=inspection.record().as_dict(),
            upsampler=upsampled.as_dict(),
            model=parts.identity(),
            latents_sha256=hashlib.sha256(latents.cpu().numpy().tobytes()).hexdigest(),
            peak_device_bytes=peak_device_bytes(self.device),
            peak_host_bytes=peak_host_bytes(),
            notes=request.notes,
            versions=versions(),
        )


class OncePerStep(Generic[Value]):
    """A function of time that both branches of guidance share: evaluated once a step."""

    def __init__(self, function: Callable[[torch.Tensor], Value]) -> None:
        self._function = function
        self._last: tuple[int, Value] | None = None

    def __call__(self, times: torch.Tensor, step: int) -> Value:
        if self._last is None or self._last[0] != step:
            self._last = (step, self._function(times))
        return self._last[1]


def _marking(clock: Clock, on_step: StepCallback | None) -> StepCallback:
    """Marks each evaluation on the clock, then tells the caller."""
    clock.mark_step()

    def after(step: int, total: int, x0: torch.Tensor) -> None:
        clock.mark_step()
        if on_step is not None:
            on_step(step, total, x0)

    return after
