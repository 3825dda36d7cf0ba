"""Video2World: one picture or a few frames, and a prompt, become a video."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import torch

from cosmos_fast.clip import DEFAULT_CRF, Clip, ClipWriter, Sidecar
from cosmos_fast.config import Environment, RopeTable
from cosmos_fast.errors import DeviceLost, GuardrailBlocked, InputError, MemoryPlanError
from cosmos_fast.generation import Generation, Studio
from cosmos_fast.media import Fit
from cosmos_fast.memory.budget import read_offload
from cosmos_fast.memory.residence import Residence
from cosmos_fast.model.graphs import GRAPH_TOKENS, GraphedDiT
from cosmos_fast.model.pixels import with_host_copies
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
from cosmos_fast.report import Clock, StageCallback, versions
from cosmos_fast.request import Options, Recipe, Request, resolve
from cosmos_fast.turns import Turns
from cosmos_fast.types import Frames, Latents, Prompt, TextEmbedding
from cosmos_fast.wording import Desk
from cosmos_fast.worker import Worker

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from cosmos_fast.config import Profile
    from cosmos_fast.memory.budget import Memory
    from cosmos_fast.memory.plan import Plan
    from cosmos_fast.prompt import GuardrailChoice, GuardrailRecord, Inspection
    from cosmos_fast.prompt.upsampler import UpsamplerChoice
    from cosmos_fast.sampling.solver import CancelToken, StepCallback
    from cosmos_fast.weights import CheckpointFiles


class Video2World:
    """A loaded Cosmos-Predict2 Video2World checkpoint.

    Make one with :meth:`from_pretrained`. Calls from several threads queue in order; work runs on
    the caller's current CUDA stream. The process around it is left as it was.
    """

    def __init__(self, parts: Parts, desk: Desk, ranks: Ranks | None = None) -> None:
        self._parts = parts
        self._desk = desk
        self._ranks = ranks or Ranks(None, parts.device)
        dit = GraphedDiT(parts.dit, GRAPH_TOKENS if parts.graphs else 0)
        parts.residence.on_move = dit.clear
        self._studio = Studio(parts, desk, self._ranks, dit)
        self._turns = Turns()
        self._worker = Worker("cosmos-fast world")
        self._left: torch.cuda.Event | None = None
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
        offload: str | Iterable[str] = (),
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
                "resident" keeps all of them on the device whatever it takes. Of several ranks each
                has this share of its own device; they keep all weights there with "auto".
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
        residence = Residence(place, memory, offload=read_offload(offload), shared=ranks.size > 1)

        def on_found(files: CheckpointFiles) -> None:
            desk.find(files)
            residence.reserve(desk.device_bytes, desk.device_words, desk.parked_bytes)

        same = (
            *(str(source), variant, revision, precision, rope_table, ema, text_precision),
            *(str(memory), sorted(residence.offload)),
        )
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
        speed of the bus. Guardrail and upsampler go too and come back when they are next used, as
        do checks of your own that have a ``sleep()``.

        Raises:
            MemoryPlanError: the host has no memory for the copies; the engine stays awake.
            DeviceLost, RankLost.
        """
        with self._run(None):
            self._desk.sleep()
            self._parts.residence.sleep()
            self._parts.vae.forget()

    def wake(self) -> None:
        """Brings back what :meth:`sleep` took off the device.

        Raises:
            MemoryPlanError: the device has no room for it; the engine sleeps on.
            DeviceLost, RankLost.
        """
        with self._run(None):
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
        with self._making(request, source, on_step, on_stage, cancel) as (making, clock):
            latents = making.latents()
            with clock.stage("decode"):
                frames = list(making.frames(latents))
            report = making.report(latents)
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
        with self._making(request, source, on_step, on_stage, cancel) as (making, clock):
            # The rest of its identity is digests of gigabytes, which may take longer than a clip.
            model = {"name": self.profile.name}
            with ClipWriter(path, request.size, request.fps, model, crf) as writer:
                latents = making.latents()
                frames = []
                decoded = making.frames(latents)
                with clock.stage("decode"), closing(decoded):
                    for chunk, on_host in with_host_copies(decoded):
                        writer.write(on_host)
                        frames.append(chunk)
                with clock.stage("write"):
                    writer.finish()
                report = making.report(latents)
                writer.publish(report, sidecar)
        return Clip(joined(frames), Latents(latents, vae_identity(report.model)), report)

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
        with (
            self._making(request, source, on_step, on_stage, cancel) as (making, _),
            closing(making.frames(making.latents(), at_once=1)) as frames,
        ):
            yield from frames

    @property
    def guardrail(self) -> GuardrailRecord:
        """What stands between this engine's videos and the world."""
        return self.inspection().record()

    def inspection(self) -> Inspection:
        """The guardrail's eyes on one piece of work, for the rooms above."""
        return self._desk.inspection()

    def provenance(self) -> dict[str, Any]:
        """What of this engine changes a video, as plain values, for the rooms above that keep
        unfinished ones: all but the weights, of which :meth:`digests` tells. Of several ranks the
        first knows."""
        parts, files = self._parts, self._parts.files
        return {
            "model": parts.profile.name,
            "revision": files.revision,
            "ema": files.ema,
            "rope_table": parts.dit.rope_table,
            "precision": str(parts.dtype).removeprefix("torch."),
            "text precision": parts.text_precision,
            "device": parts.device_name,
            "ranks": self.ranks,
            "kernel": dict(parts.ops.names),
            "guardrail": self.inspection().identity,
            "upsampler": self._desk.upsampler,
            "version": versions(),
        }

    def digests(self) -> dict[str, str | None]:
        """SHA-256 of the checkpoint's files, by name, and of the text encoder together; may wait
        until gigabytes are read. Of several ranks the first knows."""
        files = self._parts.files
        reads = files.hub is not None or None not in (files.text_encoder, files.tokenizer)
        text = files.text_identity() if reads else None
        return {**self._parts.digests.get(), "text_encoder": text}

    @contextmanager
    def together(self, what: object) -> Iterator[Ranks]:
        """Several calls as one piece of work of all ranks, for the rooms above: one that fails
        between two calls takes the others with it, as it would inside one.

        Args:
            what: described alike on every rank.

        Raises:
            RankLost, InputError: as :meth:`Ranks.together`.
        """
        with self._ranks.together(what):
            yield self._ranks

    @property
    def worker(self) -> Worker:
        """The thread of what the rooms above are given to do later; it lives as long as this."""
        return self._worker

    @property
    def ranks(self) -> int:
        """Processes that share each video of this engine; 1 without ``parallel=``."""
        return self._ranks.size

    @contextmanager
    def lend(self) -> Iterator[Parts]:
        """The loaded networks, for the rooms above, for as long as it is the caller's turn.

        Raises:
            DeviceLost, MemoryPlanError: in place of what torch raises inside.
            InputError: this engine's weights move, and are where they are needed in its own calls
                only; or it is one of several ranks, which share videos and no networks.
        """
        if self._ranks.size > 1:
            raise InputError(
                f"{self._ranks.size} ranks share the videos of this engine, but a world steps on "
                "one device: load it without parallel=, one engine for each device"
            )
        with self._run(None):
            self._parts.residence.require_resident()
            yield self._parts

    @property
    def transformer(self) -> GraphedDiT:
        """The transformer as this engine's own calls run it, replayed where that pays: for a
        caller that :meth:`lend` has given its turn to. A result holds until the next call."""
        return self._studio.dit

    def embed(self, prompt: Prompt, *, inspection: Inspection | None = None) -> TextEmbedding:
        """What the transformer attends to in place of ``prompt``; from the cache where it is.

        Args:
            prompt: a text, ``NO_TEXT`` or an embedding.
            inspection: the guardrail's, of the work that the prompt is for; None is one of its own.

        Raises:
            GuardrailBlocked: the prompt was refused, or could not be checked.
        """
        with self._run(None):
            self._desk.check("prompt", prompt, inspection or self.inspection())
            if self._parts.unknown([prompt]):
                self._parts.place_for_texts()
            return self._studio.embeddings([prompt])[0]

    @contextmanager
    def _making(
        self,
        request: Request,
        source: Any,
        on_step: StepCallback | None,
        on_stage: StageCallback | None,
        cancel: CancelToken | None,
    ) -> Iterator[tuple[Generation, Clock]]:
        """One call, when its turn has come."""
        inspection = self.inspection()
        with self._run(request, on_stage) as clock:
            making = Generation(
                self._studio, request, source, clock, inspection, on_step=on_step, cancel=cancel
            )
            yield making, clock

    @contextmanager
    def _behind_the_last(self) -> Iterator[None]:
        """What the last call left to a device comes first, whichever stream it was on: nobody waits
        at the end of a world's step, and all calls share the places that graphs read and write."""
        if self.device.type != "cuda":
            yield
            return
        stream = torch.cuda.current_stream(self.device)
        if self._left is not None:
            stream.wait_event(self._left)
        try:
            yield
        finally:
            self._left = stream.record_event()

    @contextmanager
    def _run(
        self, request: Request | None, on_stage: StageCallback | None = None
    ) -> Iterator[Clock]:
        """One caller at a time, in order of arrival; device errors become ours."""
        if self._turns.mine:
            raise InputError(
                "this thread has the engine already: in a callback of a running call, or with a "
                "stream that is still open; end the call, or close the stream, first"
            )
        with self._turns:
            if self._lost:
                raise DeviceLost(f"{self._lost}; start the process again")
            try:
                given = request.arguments() if request else None
                with self._ranks.together(given), self._behind_the_last():
                    yield Clock(self.device, on_stage)
            except torch.OutOfMemoryError as error:
                raise MemoryPlanError(
                    f"out of memory on {self.device}: give a smaller memory=, within which weights "
                    f"are streamed, choose a smaller size or fewer frames, or free the device "
                    f"({error})"
                ) from error
            except torch.AcceleratorError as error:
                self._lost = f"{self.device} failed: {error}".splitlines()[0]
                raise DeviceLost(f"{self._lost}; start the process again") from error
            except GuardrailBlocked as blocked:
                if isinstance(cause := blocked.__cause__, torch.AcceleratorError):
                    self._lost = f"{self.device} failed: {cause}".splitlines()[0]
                raise
