"""One chunk of any worlds: states and actions in, frames and states out.

Axes: N worlds, K samples a world, B of a batch, C channels, T frames, H W pixels, h w latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.errors import CosmosFastError, InputError
from cosmos_fast.parts import vae_identity
from cosmos_fast.sampling import SIGMA_MAX, adams_bashforth, denoiser, guided, sigmas
from cosmos_fast.types import (
    LATENT_CHANNELS,
    NO_TEXT,
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    TEXT_ROWS,
    Conditioning,
    Frames,
    Latents,
    NoText,
    TextEmbedding,
    TokenLayout,
    latent_frames,
)
from cosmos_fast.world.actions import Chunk, chunk_of
from cosmos_fast.world.call import Plan, check_engine, check_states, finite, positive
from cosmos_fast.world.frames import BatchFrames
from cosmos_fast.world.noise import check_noise, chunk_noise
from cosmos_fast.world.state import Tail, WorldState
from cosmos_fast.world.step import WorldStep
from cosmos_fast.world.timing import Marks, StepReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cosmos_fast.engine import Video2World
    from cosmos_fast.model.dit import Modulations
    from cosmos_fast.model.graphs import GraphedDiT
    from cosmos_fast.parts import Parts
    from cosmos_fast.prompt import Inspection
    from cosmos_fast.sampling import Predictor
    from cosmos_fast.sampling.solver import CancelToken
    from cosmos_fast.world.call import OnFrames
    from cosmos_fast.world.noise import NoiseKind

_DEVICE_BATCH: Final = 8


def advance(
    engine: Video2World,
    states: Sequence[WorldState],
    actions: Any = None,
    *,
    samples: int = 1,
    decode: bool = True,
    noise: NoiseKind = "device",
    num_steps: int | None = None,
    guidance: float | None = None,
    batch: int | None = None,
    on_frames: OnFrames | None = None,
    cancel: CancelToken | None = None,
) -> WorldStep:
    """The next chunk of each of ``states``, whatever their pasts.

    A guarded engine follows no text that its guardrail has not seen: the words of a state that
    another engine made, or a file held, are checked first, once. Its frames are checked before
    anybody gets them; a state's ``frames`` are the checked ones, and the next chunk goes on from
    what the model made. With ``decode=False`` nothing is shown, so nothing is checked, and the
    verdict is "not checked": the latents are for costs, and what decodes them into pictures for
    people must have those checked itself.

    Args:
        engine: of the checkpoint of the states.
        states: N of them, of one size; the same one may be there many times.
        actions: (N, chunk, dim) in the units of ``engine.profile.actions``; fewer than a chunk are
            padded, and the padding's frames not ``valid``. None for a checkpoint without actions.
        samples: K futures of each world, of which the state follows the first.
        decode: False leaves pixels out: for costs on latents.
        noise: "device", "shared" or "reference".
        num_steps, guidance: None is the profile's.
        batch: futures computed together; None is 1 on a CPU and 8 elsewhere.
        on_frames: called with ((world, sample), ...), the number of the first new frame and uint8
            (B, T, H, W, 3) as the decoder yields them.
        cancel: anything with ``is_set()``, looked at between evaluations.

    Raises:
        GuardrailBlocked: a state's text or a frame was refused, or could not be checked; so is a
            state whose text came as an embedding, which nobody can read.
        InputError, Cancelled, MemoryPlanError, DeviceLost.
        Whichever it is, ``states`` are as they were.
    """
    check_engine(engine)
    profile = engine.profile
    check_states(engine, states)
    inspection = engine.inspection()
    plan = Plan(
        samples=positive("samples", samples),
        decode=decode,
        noise=check_noise(noise),
        num_steps=positive("num_steps", profile.num_steps if num_steps is None else num_steps),
        guidance=profile.guidance if guidance is None else finite("guidance", guidance),
        batch=_batch(engine) if batch is None else positive("batch", batch),
        on_frames=on_frames,
        cancel=cancel,
    )
    sigmas(plan.num_steps)
    if plan.noise == "reference" and plan.samples > 1:
        raise InputError('noise = "reference" has one future a seed; use samples=1')
    chunk = None
    if profile.actions is not None:
        if actions is None:
            raise InputError(f"{profile.name} predicts what follows actions, and none are given")
        chunk = chunk_of(profile.actions, actions, len(states), engine.device)
    elif actions is not None:
        raise InputError(f"{profile.name} takes no actions; it follows a prompt")
    scripts = {id(state.script): state.script for state in states}
    texts = {key: script.admitted(engine, inspection) for key, script in scripts.items()}
    with engine.lend() as parts, torch.no_grad():
        return _Chunks(
            parts, engine.transformer, tuple(states), texts, chunk, plan, inspection
        ).step()


def _batch(engine: Video2World) -> int:
    """Futures that are computed together unless somebody says otherwise."""
    return 1 if engine.device.type == "cpu" else _DEVICE_BATCH


class _Chunks:
    """The chunks of one call while they are made."""

    def __init__(
        self,
        parts: Parts,
        transformer: GraphedDiT,
        states: tuple[WorldState, ...],
        texts: dict[int, TextEmbedding | NoText],
        chunk: Chunk | None,
        plan: Plan,
        inspection: Inspection,
    ) -> None:
        self.texts, self.transformer = texts, transformer
        self.parts, self.states, self.chunk, self.plan = parts, states, chunk, plan
        self.inspection = inspection
        profile, first = parts.profile, states[0]
        self.given = first.tail.given
        self.new = profile.num_frames - self.given
        self.length = self.new if chunk is None else chunk.length
        self.shape = (
            LATENT_CHANNELS,
            latent_frames(profile.num_frames),
            first.size.height // SPATIAL_STRIDE,
            first.size.width // SPATIAL_STRIDE,
        )
        patch = profile.dit.patch
        self.layout = TokenLayout((self.shape[1], self.shape[2] // patch, self.shape[3] // patch))
        self.marks = Marks(parts.device)

    def step(self) -> WorldStep:
        plan, worlds, device = self.plan, len(self.states), self.parts.device
        with self.marks.stage("encode"):
            given = self._encoded()
        rope = self.parts.dit.rope(self.layout)
        latents = torch.empty((worlds, plan.samples, *self.shape), device=device)
        frames = None
        if plan.decode:
            size = (self.new, *self.states[0].size, 3)
            frames = torch.empty((worlds, plan.samples, *size), dtype=torch.uint8, device=device)
        tails: dict[int, Tail] = {}
        jobs = [(world, sample) for world in range(worlds) for sample in range(plan.samples)]
        for start in range(0, len(jobs), plan.batch):
            group = tuple(jobs[start : start + plan.batch])
            with self.marks.stage("denoise"):
                made = self._denoised(group, given, rope)
            for row, (world, sample) in enumerate(group):
                latents[world, sample] = made[row]
            if frames is None:
                continue
            with self.marks.stage("decode"):
                for row, tail in enumerate(self._decoded(group, made, frames)):
                    if group[row][1] == 0:
                        tails[group[row][0]] = tail
        return self._step(latents, frames, tails, self.inspection.record().as_dict())

    def _encoded(self) -> dict[int, torch.Tensor]:
        """Latents (16, n, h, w) of every tail, each tail once however many states share it."""
        tails = {id(state.tail): state.tail for state in self.states}
        return {key: self._encode_one(tail) for key, tail in tails.items()}

    def _encode_one(self, tail: Tail) -> torch.Tensor:
        parts = self.parts
        if tail.frames is None:
            assert tail.latents is not None
            chunks = [_pixels(video) for video in parts.vae.decode_chunks(tail.latents[None])]
            whole = torch.cat(chunks, dim=1)[0]
            tail.frames = whole[tail.start : tail.start + tail.given].clone()
        video = tail.frames.to(parts.device).permute(3, 0, 1, 2)[None].to(parts.dtype) / 127.5 - 1
        return parts.vae.encode(video)[0]

    def _denoised(
        self, group: tuple[tuple[int, int], ...], given: dict[int, torch.Tensor], rope: Any
    ) -> torch.Tensor:
        """float32 (B, 16, T', h, w): clean latents of some futures."""
        plan, states = self.plan, [self.states[world] for world, _ in group]
        known = torch.stack([given[id(state.tail)] for state in states])
        conditioning = Conditioning.from_first_frames(known, latent_frames(self.given + self.new))
        stride = 1 if self.chunk is None else self.new
        noise = torch.stack(
            [
                chunk_noise(
                    plan.noise,
                    self.shape,
                    self.parts.device,
                    seed=state.seed,
                    chunk=state.chunks,
                    sample=sample,
                    stride=stride,
                )
                for state, (_, sample) in zip(states, group, strict=True)
            ]
        )
        actions = None
        if self.chunk is not None:
            # Not an index: one made from a list is copied to the device, and waited for.
            values_NCD = self.chunk.values_NCD
            actions = torch.stack([values_NCD[world] for world, _ in group])
        predict = self._predictor(conditioning, actions, states, rope)
        latents = adams_bashforth(
            predict, noise * SIGMA_MAX, sigmas(plan.num_steps), cancel=plan.cancel
        )
        if latents.device.type == "cpu" and not latents.isfinite().all():
            raise CosmosFastError(
                "the denoised latents are not finite: the checkpoint or the device is at fault"
            )
        return latents

    def _predictor(
        self,
        given: Conditioning,
        actions: torch.Tensor | None,
        states: list[WorldState],
        rope: Any,
    ) -> Predictor:
        parts, guidance = self.parts, self.plan.guidance
        dit = parts.dit
        action = dit.action_context(actions)
        modulations = _OncePerStep(lambda times: dit.modulations(times, action))

        def branch(texts: list[TextEmbedding | NoText], slot: int) -> Predictor:
            length = max(0 if isinstance(text, NoText) else text.length for text in texts)
            context = dit.text_context(self._rows(texts), length)

            def velocity(
                x: torch.Tensor, times: torch.Tensor, mask: torch.Tensor, step: int
            ) -> torch.Tensor:
                now = modulations(times, step)
                return self.transformer(
                    x, times, mask, context, self.layout, rope=rope, modulations=now, slot=slot
                )

            return denoiser(velocity, given)

        negative = parts.profile.negative_prompt
        unconditional = None
        if guidance != 0 and negative != "":
            if isinstance(negative, str):
                self.inspection.prompt("negative prompt", negative)
            against = parts.text.embed([negative])[0] if isinstance(negative, str) else NO_TEXT
            unconditional = branch([against], 1)
        own = branch([self.texts[id(state.script)] for state in states], 0)
        return guided(own, unconditional, guidance)

    def _rows(self, texts: list[TextEmbedding | NoText]) -> torch.Tensor:
        """(B, 512, C), or (1, 512, C) where all are one."""
        if len({id(text) for text in texts}) == 1:
            texts = texts[:1]
        device = self.parts.device
        nothing = (TEXT_ROWS, self.parts.profile.dit.text_dim)
        rows = [
            torch.zeros(nothing, dtype=torch.bfloat16, device=device)
            if isinstance(text, NoText)
            else text.rows.to(device)
            for text in texts
        ]
        return torch.stack(rows)

    def _decoded(
        self, group: tuple[tuple[int, int], ...], latents: torch.Tensor, frames: torch.Tensor
    ) -> Iterator[Tail]:
        """Fills the new frames of ``group`` in, and yields what each future ends with."""
        last: list[torch.Tensor] = []
        at = 0
        for video in self.parts.vae.decode_chunks(latents):
            pixels = _pixels(video)
            last.append(pixels)
            skip = max(0, self.given - at)
            first, fresh = at + skip - self.given, pixels[:, skip:]
            at += pixels.shape[1]
            if not fresh.shape[1]:
                continue
            if self.inspection.active:
                fresh = self._checked(fresh)
            for row, (world, sample) in enumerate(group):
                frames[world, sample, first : first + fresh.shape[1]] = fresh[row]
            if self.plan.on_frames is not None:
                self.plan.on_frames(group, first, fresh)
        whole = torch.cat(last, dim=1)
        for row, (world, sample) in enumerate(group):
            ending = whole[row, self.length : self.length + self.given].clone()
            shown: torch.Tensor | None = ending
            if self.inspection.active:
                shown = self._shown(world, frames[world, sample, : self.length])
            yield Tail(self.given, frames=ending, shown=shown)

    def _shown(self, world: int, new: torch.Tensor) -> torch.Tensor | None:
        """The last frames of a world as its guardrail let them through."""
        if len(new) >= self.given:
            return new[-self.given :].clone()
        before = self.states[world].tail.shown
        return None if before is None else torch.cat((before.to(new), new))[-self.given :]

    def _checked(self, videos: torch.Tensor) -> torch.Tensor:
        """What may be published of uint8 (B, T, H, W, 3); each future goes on from what it was."""
        fps = self.parts.profile.fps
        return torch.stack(
            [self.inspection.frames(Frames(video, fps)).to("pt") for video in videos]
        )

    def _step(
        self,
        latents: torch.Tensor,
        frames: torch.Tensor | None,
        tails: dict[int, Tail],
        guardrail: dict[str, Any],
    ) -> WorldStep:
        profile, several = self.parts.profile, self.plan.samples > 1
        fps, cameras = profile.fps, profile.cameras
        worlds = len(self.states)
        if frames is None:
            tails = {
                world: Tail(self.given, latents=latents[world, 0].clone(), start=self.length)
                for world in range(worlds)
            }
        states = tuple(
            WorldState(state.seed, state.chunks + 1, state.size, tails[world], state.script,
                       state.profile)
            for world, state in enumerate(self.states)
        )  # fmt: skip
        made = worlds * self.plan.samples * self.length if frames is not None else 0
        return WorldStep(
            frames=None if frames is None else BatchFrames(frames[:, 0], fps, cameras),
            latents=Latents(latents[:, 0], vae_identity(self.parts.identity())),
            state=states,
            valid=self._valid(latents),
            verdict=str(guardrail["verdict"]),
            report=StepReport(self.marks, made, guardrail),
            futures=BatchFrames(frames, fps, cameras) if several and frames is not None else None,
            future_latents=latents if several else None,
            disagreement=self._disagreement(latents) if several else None,
        )

    def _valid(self, latents: torch.Tensor) -> torch.Tensor:
        valid_N = latents.flatten(1).isfinite().all(dim=1)
        if self.chunk is not None and self.chunk.valid_N is not None:
            valid_N = valid_N & self.chunk.valid_N
        there_T = torch.arange(self.new, device=latents.device) < self.length
        return valid_N[:, None] & there_T

    def _disagreement(self, latents_NKCTHW: torch.Tensor) -> torch.Tensor:
        known = latent_frames(self.given)
        variance = latents_NKCTHW[:, :, :, known:].var(dim=1)
        return variance.mean(dim=(1, 3, 4)).sqrt().repeat_interleave(TEMPORAL_STRIDE, dim=1)


class _OncePerStep:
    """AdaLN vectors that both branches of guidance share: made once a step."""

    def __init__(self, modulations: Callable[[torch.Tensor], Modulations]) -> None:
        self._modulations = modulations
        self._last: tuple[int, Modulations] | None = None

    def __call__(self, times: torch.Tensor, step: int) -> Modulations:
        if self._last is None or self._last[0] != step:
            self._last = (step, self._modulations(times))
        return self._last[1]


def _pixels(video_BCTHW: torch.Tensor) -> torch.Tensor:
    """uint8 (B, T, H, W, 3), rounded as ``model.pixels.to_pixels`` rounds one clip."""
    scaled = (video_BCTHW.float() + 1).mul_(127.5).clamp_(0, 255).add_(0.5)
    return scaled.permute(0, 2, 3, 4, 1).to(torch.uint8).contiguous()
