"""Rollouts: recorded actions, or a policy in the loop, for as many chunks as it takes."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cosmos_fast.clip import DEFAULT_CRF, ClipWriter
from cosmos_fast.errors import InputError
from cosmos_fast.types import Frames
from cosmos_fast.world.actions import check_range, tensor_of
from cosmos_fast.world.call import check_engine, finite, positive
from cosmos_fast.world.cameras import cut, joined
from cosmos_fast.world.world import World

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from cosmos_fast.engine import Video2World
    from cosmos_fast.types import ActionSpec
    from cosmos_fast.world.state import WorldState
    from cosmos_fast.world.timing import WorldReport

Policy = Callable[[np.ndarray], Any]
"""``policy(frame)``: the newest frame, uint8 (H, W, 3), to the next actions (1 to chunk, dim)."""

OnChunk = Callable[[int, int], None]
"""``on_chunk(done, total)``: actions carried out so far, and asked for; after each chunk."""


@dataclass(frozen=True)
class Rollout:
    """One world's video: the given frame, then one frame an action."""

    frames: Frames
    """uint8 (T + 1, H, W, 3), every frame once; with ``reference`` joined as NVIDIA's script."""
    actions: np.ndarray
    """float32 (T, dim): those that were carried out."""
    state: WorldState
    """Where the video ends."""
    report: WorldReport
    disagreement: np.ndarray | None
    """float32 (T,): of the samples at each frame; None for one sample."""
    stopped_at: float | None
    """The disagreement at the end of the chunk that ``stop_at`` kept out; None where none was."""
    model: dict[str, Any]
    settings: dict[str, Any]
    """How it was made: steps, guidance, noise, samples, limit of disagreement, seams."""
    guardrail: dict[str, Any]
    """Of the last chunk; its verdict is "partly checked" where the chunks' differ."""

    @property
    def stopped(self) -> bool:
        """Ended because the samples disagreed."""
        return self.stopped_at is not None

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        crf: int = DEFAULT_CRF,
        source: Mapping[str, Any] = MappingProxyType({}),
    ) -> Path:
        """Writes the video, with a manifest (.json) beside it; it appears whole or not at all.

        Args:
            path, crf: as ``Clip.save``.
            source: where start frame and actions came from, for the manifest; plain values.

        Raises:
            MediaError: ffmpeg failed, or the folder cannot be written.
        """
        fps = self.frames.fps
        with ClipWriter(path, self.frames.size, fps, self.model, crf) as writer:
            writer.write(self.frames)
            writer.finish()
            return writer.publish_plain(self.record(source))

    def by_camera(self) -> dict[str, Frames]:
        """The frames of every camera by its name; empty for a checkpoint of one picture."""
        pixels, cameras = self.frames.to("pt"), self.state.profile.cameras
        return {one.name: Frames(cut(pixels, one), self.frames.fps) for one in cameras}

    def record(self, source: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """Model, guardrail and how the rollout was made, as plain values: its provenance."""
        return {
            "model": self.model,
            "guardrail": self.guardrail,
            "source": dict(source),
            "rollout": {
                "actions": self.actions.tolist(),
                "seed": self.state.seed,
                "chunks": self.state.chunks,
                "stopped": self.stopped,
                "stopped_at": self.stopped_at,
                "disagreement": None if self.disagreement is None else self.disagreement.tolist(),
                "frames_per_second": self.report.frames_per_second,
                **self.settings,
            },
        }


def rollout_actions(
    engine: Video2World,
    frame: Any,
    actions: Any,
    *,
    seed: int = 0,
    samples: int = 1,
    stop_at: float | None = None,
    reference: bool = False,
    on_chunk: OnChunk | None = None,
    **options: Any,
) -> Rollout:
    """Carries out recorded actions, chunk by chunk.

    Every frame comes once and none is lost; a short tail is padded for the network and cut.

    Args:
        engine: an action-conditioned checkpoint.
        frame: uint8 (H, W, 3): where to start; by camera where the checkpoint has several.
        actions: (T, dim) in the units of ``engine.profile.actions``.
        seed: of the world.
        samples: futures of each chunk, whose disagreement is reported.
        stop_at: ends before a chunk at whose end the samples disagree by more than this.
        reference: as NVIDIA's autoregressive script: its NumPy noise with the seed equal to the
            number of the first action, whatever ``seed``; an incomplete last chunk is dropped; of
            every chunk but the first the repeated first frame stays and the last one is lost.
        on_chunk: told how many actions of how many are done.
        options: further ones of ``World.step``.

    Raises:
        InputError: wrong shapes or values, or fewer than one chunk with ``reference``.
    """
    spec = _spec(engine)
    rows = tensor_of(actions, "actions")
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != spec.dim:
        raise InputError(f"actions of shape {tuple(rows.shape)}: (T, {spec.dim}) is needed")
    if reference:
        options |= {"noise": "reference"}
        rows, seed = rows[: len(rows) // spec.chunk * spec.chunk], 0
        if not len(rows):
            raise InputError(f"{len(actions)} actions: the reference rolls out whole {spec.chunk}s")
    check_range(spec, rows[None])
    chunks = list(rows.split(spec.chunk))
    return _Run(engine, seed, samples, stop_at, reference, on_chunk, len(rows), options).made(
        frame, lambda _, chunk: chunks[chunk] if chunk < len(chunks) else None
    )


def rollout_policy(
    engine: Video2World,
    frame: Any,
    policy: Policy | str,
    num_actions: int,
    *,
    seed: int = 0,
    samples: int = 1,
    stop_at: float | None = None,
    on_chunk: OnChunk | None = None,
    **options: Any,
) -> Rollout:
    """Lets a policy act in the world for ``num_actions`` actions.

    Args:
        policy: ``policy(frame)``, or ``"module:function"`` that names one. It sees the newest frame
            and answers with as many actions as it likes to be carried out before it looks again.
        engine, frame, seed, samples, stop_at, on_chunk, options: as :func:`rollout_actions`.

    Raises:
        InputError: as :func:`rollout_actions`; what the policy raises comes through.
    """
    spec = _spec(engine)
    acting = load_policy(policy) if isinstance(policy, str) else policy
    if not callable(acting):
        raise InputError(f"policy = {policy!r}: a function, or module:function, is needed")
    left = [positive("num_actions", num_actions)]

    def ask(newest: np.ndarray, _: int) -> torch.Tensor | None:
        if not left[0]:
            return None
        answer = tensor_of(acting(newest), "the policy's actions")
        if answer.ndim not in (1, 2) or answer.shape[-1] != spec.dim:
            raise InputError(
                f"the policy's actions of shape {tuple(answer.shape)}: (1 to {spec.chunk}, "
                f"{spec.dim}) is needed, or ({spec.dim},) for one"
            )
        rows = answer[None] if answer.ndim == 1 else answer
        rows = rows[: min(left[0], spec.chunk)]
        left[0] -= len(rows)
        return rows

    run = _Run(engine, seed, samples, stop_at, False, on_chunk, num_actions, options)
    return run.made(frame, ask)


def load_policy(name: str) -> Policy:
    """The function that ``"module:function"`` names.

    Raises:
        InputError: no such module or function.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"policy = {name!r}: module:function is needed")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError) as error:  # a TypeError of a name like ".a"
        raise InputError(f"policy = {name!r}: {error}") from error
    if not callable(found):
        raise InputError(f"policy = {name!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Run:
    """A rollout while it is made."""

    engine: Video2World
    seed: int
    samples: int
    stop_at: float | None
    reference: bool
    on_chunk: OnChunk | None
    total: int
    options: dict[str, Any]

    def made(self, frame: Any, ask: Callable[[np.ndarray, int], torch.Tensor | None]) -> Rollout:
        """The rollout whose chunks follow the actions that ``ask`` answers the newest frame and
        the chunk's number with; it ends at None."""
        self._check()
        profile = self.engine.profile
        is_by_camera = isinstance(frame, Mapping)
        start = joined(profile, frame) if is_by_camera else tensor_of(frame, "frame")
        frames, done, apart, records = [start[None]], [], [], []
        stopped_at = None
        with World(self.engine) as world:
            world.reset(start[None], seed=self.seed)
            state = world.states[0]
            for chunk in itertools.count():
                # A copy: what a policy does to its picture does not reach the video.
                rows = ask(frames[-1][-1].cpu().numpy().copy(), chunk)
                if rows is None:
                    break
                step = world.step(rows[None], samples=self.samples, **self.options)
                assert step.frames is not None
                records.append(step.report.guardrail)
                if step.disagreement is not None:
                    found = step.disagreement[0, : len(rows)].cpu().numpy()
                    if self.stop_at is not None and float(found[-1]) > self.stop_at:
                        stopped_at = float(found[-1])
                        break
                    apart.append(found)
                new = step.frames.to("pt")[0, : len(rows)]
                if self.reference and chunk:
                    new = torch.cat((frames[-1][-1:].to(new.device), new))
                frames.append(new)
                done.append(np.asarray(rows.cpu(), dtype=np.float32))
                state = step.state[0]
                if self.on_chunk is not None:
                    self.on_chunk(sum(map(len, done)), self.total)
            report = world.report()
        if self.reference:
            frames = [part[:-1] if number > 1 else part for number, part in enumerate(frames)]
        with self.engine.lend() as parts:
            model = parts.identity()
        device = self.engine.device
        return Rollout(
            frames=Frames(torch.cat([part.to(device) for part in frames]), profile.fps),
            actions=np.concatenate(done or [np.zeros((0, _spec(self.engine).dim), np.float32)]),
            state=state,
            report=report,
            disagreement=np.concatenate(apart) if apart else None,
            stopped_at=stopped_at,
            model=model,
            settings=self._settings(),
            guardrail=_of_all(records),
        )

    def _check(self) -> None:
        """
        Raises:
            InputError: options that a rollout cannot have.
        """
        if not self.options.get("decode", True):
            raise InputError("decode = False: a rollout is made of frames; use World.step")
        if self.stop_at is None:
            return
        if finite("stop_at", self.stop_at) <= 0 or self.samples < 2:
            raise InputError(
                f"stop_at = {self.stop_at} with samples = {self.samples}: a limit above 0 is "
                f"needed, and 2 samples or more, as one future cannot disagree"
            )

    def _settings(self) -> dict[str, Any]:
        profile, options = self.engine.profile, self.options
        steps, guidance = options.get("num_steps"), options.get("guidance")
        return {
            "samples": self.samples,
            "stop_at": self.stop_at,
            "reference": self.reference,
            "noise": options.get("noise", "device"),
            "num_steps": profile.num_steps if steps is None else steps,
            "guidance": profile.guidance if guidance is None else guidance,
        }


def _of_all(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One guardrail record for all chunks."""
    if not records:
        return {}
    alike = all(record["verdict"] == records[-1]["verdict"] for record in records)
    return records[-1] if alike else records[-1] | {"verdict": "partly checked"}


def _spec(engine: Video2World) -> ActionSpec:
    check_engine(engine)
    if engine.profile.actions is None:
        raise InputError(f"{engine.profile.name} takes no actions: it follows prompts")
    return engine.profile.actions
