"""Video2World: one picture or a few frames, and a prompt, become a video.

``generate`` reads like the flow of docs/architecture.md: text, conditioning, solver, decoder.
"""

from __future__ import annotations

import hashlib
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
    from collections.abc import Iterator

    from cosmos_fast.config import Profile
    from cosmos_fast.prompt import GuardrailChoice, GuardrailRecord, Inspection
    from cosmos_fast.prompt.upsampler import UpsamplerChoice
    from cosmos_fast.sampling import Predictor, Velocity
    from cosmos_fast.sampling.solver import CancelToken, StepCallback


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
            RankLost: another rank failed to load, or is gone.
        """
        if memory not in ("auto", "resident"):
            raise InputError(
                f'{memory = }: "auto" and "resident" exist in this version; both keep all weights '
                f"on the device"
            )
        place = choose_device(device)
        clock = Clock(place, on_stage)
        ranks = Ranks(parallel, place)
        desk = Desk(guardrail, upsampler, place, checkpoint_root, ranks)
        same = (str(source), variant, revision, precision, rope_table, ema, text_precision)
        with ranks.together(same):
            parts = load_parts(
                source,
                device=place,
                dtype=choose_precision(precision, place),
                rope_table=rope_table,
                environment=Environment.read(),
                prompt_cache=prompt_cache,
                clock=clock,
                text_precision=text_precision,
                ranks=ranks,
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
                decoded = self._decode(latents, request, cancel)
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
                    decoded = self._decode(latents, request, cancel)
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
            decoded = self._decode(latents, request, cancel)
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
        """
        with self._run(None):
            yield self._parts

    def embed(self, prompt: Prompt) -> TextEmbedding:
        """What the transformer attends to in place of ``prompt``; from the cache where it is.

        Raises:
            GuardrailBlocked: the prompt was refused, or could not be checked.
        """
        with self._run(None):
            self._desk.check("prompt", prompt, self.inspection())
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

    @torch.no_grad()
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
        with clock.stage("text"):
            texts = self._texts(request, wording)
        with clock.stage("encode"):
            given = self._condition(known, request)
        with clock.stage("denoise"):
            predict = self._predictor(texts, given, request)
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

    def _texts(self, request: Request, wording: Wording | None) -> list[TextEmbedding]:
        """What the conditional and, with guidance, the unconditional branch attend to."""

        def embedded() -> list[torch.Tensor]:
            assert wording is not None
            prompts = [wording.prompt, request.negative_prompt][: 1 + request.uses_guidance]
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
    ) -> Predictor:
        """Guided prediction; what does not change over the run is made here, once."""
        dit, heads = self._parts.dit, self.profile.dit.num_heads
        shares = self._ranks.share(self._layout(request).grid, heads, len(texts))
        layout = shares.layout
        rope = dit.rope(layout)
        times_KT = torch.stack([frame_times(given, sigma) for sigma in request.sigmas])
        modulations = StepModulations(dit, times_KT)

        def branch(embedding: TextEmbedding, slot: int) -> Velocity:
            context = dit.text_context(embedding.rows[None].to(self.device), embedding.length)

            def velocity(
                x: torch.Tensor, times: torch.Tensor, mask: torch.Tensor, step: int
            ) -> torch.Tensor:
                vectors = modulations(step)
                return self._dit(
                    x, times, mask, context, layout, rope=rope, modulations=vectors, slot=slot
                )

            return velocity

        own = [
            branch(text, index) if shares.computes(index) else None
            for index, text in enumerate(texts)
        ]
        predictors = [denoiser(velocity, given) for velocity in shares.joined(own)]
        return guided(predictors[0], predictors[1] if texts[1:] else None, request.guidance)

    def _decode(
        self, latents: torch.Tensor, request: Request, cancel: CancelToken | None
    ) -> Iterator[Frames]:
        vae = self._parts.vae
        chunks = vae.decode_chunks(latents)
        with self._ranks.rows(*vae.shareable, rows=latents.shape[-2]) as gathered:
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
        graphs = self._dit.replays(self._layout(request), self.device)
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
            notes=request.notes,
            versions=versions(),
        )


def _marking(clock: Clock, on_step: StepCallback | None) -> StepCallback:
    """Marks each evaluation on the clock, then tells the caller."""
    clock.mark_step()

    def after(step: int, total: int, x0: torch.Tensor) -> None:
        clock.mark_step()
        if on_step is not None:
            on_step(step, total, x0)

    return after
