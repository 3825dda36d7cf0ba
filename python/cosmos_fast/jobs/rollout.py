"""Long videos: clip after clip, each beginning with the last frames of the one before.

As NVIDIA's ``video2world_lvg``, but the frames are handed over in memory: the reference writes them
to a JPEG or an H.264 file and reads them back, which costs quality in every chunk.
"""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, get_args

import numpy as np
import torch

from cosmos_fast.clip import DEFAULT_CRF, ClipWriter, sidecar_text
from cosmos_fast.errors import InputError
from cosmos_fast.jobs.drift import ChunkDrift, drift_table, measure
from cosmos_fast.jobs.engines import check_engine
from cosmos_fast.jobs.job import digest
from cosmos_fast.jobs.kept import KeptClip, KeptClips, described
from cosmos_fast.jobs.prompts import Prompts, known_prompt, prompt_of, refuse_too_few
from cosmos_fast.media import VideoWriter, frames_from
from cosmos_fast.report import Report, Stage
from cosmos_fast.request import resolve
from cosmos_fast.types import Frames, Prompt

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from cosmos_fast.clip import Clip, Sidecar
    from cosmos_fast.engine import Video2World
    from cosmos_fast.parallel import Ranks
    from cosmos_fast.report import StageCallback
    from cosmos_fast.request import Options, Request
    from cosmos_fast.sampling.solver import CancelToken, StepCallback

Handover = Literal["memory", "file"]
"""How frames reach the next chunk: as they are, or through a lossy file as in the reference."""

NUM_CHUNKS: Final = 6
"""The reference's default."""
_JPEG_QUALITY: Final = 85
_FILE_CRF: Final = 15


@dataclass(frozen=True)
class Rollout:
    """What :func:`rollout` returns."""

    frames: Frames
    """uint8 (T, H, W, 3) on the host; each frame at a seam is there once."""
    prompts: tuple[str, ...]
    """One a chunk."""
    drift: tuple[ChunkDrift, ...]
    """One a chunk."""
    report: Report
    """Of all chunks together."""

    def drift_table(self) -> str:
        """The drift as text."""
        return drift_table(self.drift)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        crf: int = DEFAULT_CRF,
        sidecar: Sidecar | None = "later",
    ) -> Path:
        """Writes the video, its manifest and its text; as :meth:`Clip.save`."""
        with ClipWriter(path, self.frames.size, self.frames.fps, self.report.model, crf) as writer:
            writer.write(self.frames)
            writer.finish()
            refined = self.report.upsampler.get("chunk_prompts") or ()
            if sidecar is None or (len(set(self.prompts)) == 1 and not refined):
                return writer.publish(self.report, sidecar)
            text = sidecar_text(self.report.arguments, sidecar)
            if len(set(self.prompts)) > 1:
                text = _sections(self.prompts, text, sidecar, "Prompt")
            if refined:
                text = _sections(refined, text, sidecar, "Refined Prompt")
            return writer.publish(self.report, sidecar, text)


def rollout(
    engine: Video2World,
    source: Any,
    prompts: Prompts,
    negative_prompt: Prompt | None = None,
    *,
    num_chunks: int = NUM_CHUNKS,
    handover: Handover = "memory",
    keep: str | os.PathLike[str] | KeptClips | None = None,
    on_chunk: Callable[[ChunkDrift, int], None] | None = None,
    on_step: StepCallback | None = None,
    on_stage: StageCallback | None = None,
    cancel: CancelToken | None = None,
    **options: Unpack[Options],
) -> Rollout:
    """A video of ``num_chunks`` clips, each continuing the last 1 or 5 frames of the one before.

    Chunk c takes seed + c. Of every chunk but the first, the frames it was given are dropped, so
    that the result has F + (num_chunks - 1) (F - k) frames: F of a clip, k given.

    Of several ranks all make the same call and get the same rollout; the first hands frames over,
    asks a function of prompts and measures the drift. A rank that fails, in ``on_chunk`` too, takes
    the others with it.

    Args:
        source, negative_prompt: as ``generate``'s.
        prompts: see :data:`cosmos_fast.jobs.prompts.Prompts`.
        num_chunks: at least 1.
        handover: "memory"; "file" is the reference's lossy way, for comparison.
        keep: folder in which the first rank keeps every chunk once it is made, uint8 and lossless:
            the same call goes on behind them, whatever ended the last one, and gives the rollout
            that one call would have given, times aside. Prompts of chunks that are there are not
            asked for again; ``num_chunks`` may differ. The folder, which may be a
            :class:`KeptClips` that the caller has entered, is the caller's to remove. None: nothing
            is kept.
        on_chunk: told (its drift, number of chunks) after each chunk that is made.
        on_step, on_stage, cancel, options: as ``generate``'s.

    Raises:
        InputError: also where ``keep`` holds another rollout, or another process has it.
        MediaError: also where ``keep`` cannot be written, or its disk has no room for all chunks.
        CosmosFastError: whatever else ``generate`` raises.
    """
    check_engine(engine)
    if num_chunks < 1:
        raise InputError(f"{num_chunks = }: at least 1 is needed")
    if handover not in get_args(Handover):
        raise InputError(f'{handover = }: "memory" or "file" is needed')
    refuse_too_few(prompts, num_chunks)
    request = resolve(engine.profile, known_prompt(prompts), negative_prompt, **options)
    with (
        engine.together(("rollout", num_chunks, handover, keep is not None)) as ranks,
        ExitStack() as stack,
    ):
        chain = _Chain(engine, request, negative_prompt, options, handover, ranks)
        if keep is not None:
            chain.go_on(keep, stack, source, prompts, num_chunks)
        for chunk in range(chain.length, num_chunks):
            row = chain.add(
                source if chunk == 0 else chain.tail,
                prompt_of(prompts, chunk, chain.tail, ranks),
                {"on_step": on_step, "on_stage": on_stage, "cancel": cancel},
            )
            if on_chunk is not None:
                on_chunk(row, num_chunks)
    return chain.finish()


class _Chain:
    """The chunks so far."""

    def __init__(
        self,
        engine: Video2World,
        request: Request,
        negative_prompt: Prompt | None,
        options: Options,
        handover: Handover,
        ranks: Ranks,
    ) -> None:
        self.tail: Frames | None = None
        """The last k frames, as the next chunk is given them: to rank 0, which alone reads
        sources."""
        self._last: np.ndarray | None = None
        """The same as the chunk before made them."""
        self._engine, self._request, self._options = engine, request, options
        self._negative_prompt, self._handover, self._ranks = negative_prompt, handover, ranks
        self._frames: list[np.ndarray] = []
        self._drift: list[ChunkDrift] = []
        self._reports: list[Report] = []
        self._kept: KeptClips | None = None
        """On rank 0, where clips are kept."""
        self._keeps = False
        self._weights: dict[str, str | None] | None = None
        """Their digests, once somebody has waited for them."""
        self._notes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Chunks that are there."""
        return len(self._reports)

    def go_on(
        self,
        keep: str | os.PathLike[str] | KeptClips,
        stack: ExitStack,
        source: Any,
        prompts: Prompts,
        num_chunks: int,
    ) -> None:
        """Takes the chunks that ``keep`` holds, and keeps those to come."""

        def begin() -> None:
            self._kept = (
                keep if isinstance(keep, KeptClips) else stack.enter_context(KeptClips(keep))
            )
            self._kept.begin(
                self._description(source), self._engine.digests, self._sizes(num_chunks)
            )

        ranks, self._keeps = self._ranks, True
        ranks.on_first(begin)
        while self.length < num_chunks and self._take(prompts):
            pass
        found, whole = self.length, f"{num_chunks} clips were kept from before"
        told = [f"{found} of {whole}"] if found else []
        self._notes = tuple(ranks.same(lambda: [*told, *(self._kept.notes if self._kept else ())]))

    def _take(self, prompts: Prompts) -> bool:
        """Whether the next chunk was there."""
        chunk, ranks = self.length, self._ranks
        prompt = None if callable(prompts) else prompt_of(prompts, chunk, None, ranks)
        clips: list[KeptClip] = []

        def told() -> dict[str, Any] | None:
            assert self._kept is not None
            clip = self._kept.take(chunk, prompt)
            clips.extend([] if clip is None else [clip])
            return None if clip is None else {**clip.told, "names": sorted(clip.pixels)}

        row = ranks.same(told)
        if row is None:
            return False
        sent = ranks.from_first(lambda: [clips[0].pixels[name] for name in row["names"]])
        pixels = {
            name: tensor.cpu().numpy() for name, tensor in zip(row["names"], sent, strict=True)
        }
        self._frames.append(pixels["frames"])
        self._drift.append(ChunkDrift(**row["drift"]))
        self._reports.append(Report.restored(row["report"]))
        self._last = pixels["tail"]
        if ranks.first or "handed" not in pixels:
            self.tail = Frames(pixels.get("handed", self._last), self._request.fps)
        return True

    def _description(self, source: Any) -> dict[str, Any]:
        """All that makes the chunks, but prompts and weights."""
        request = self._request
        given = frames_from(
            source,
            size=request.size,
            num_frames=request.num_conditional_frames,
            fit=request.fit,
            fps=request.fps,
        )
        arguments = request.arguments()
        del arguments["prompt"]
        return {
            "pixels of the source": digest(np.ascontiguousarray(given).tobytes()),
            **arguments,
            "negative_prompt": described(request.negative_prompt),
            "upsample": request.upsample,
            "handover": self._handover,
            **self._engine.provenance(),
        }

    def _sizes(self, num_chunks: int) -> list[int]:
        """Bytes of each chunk's pixels."""
        request = self._request
        given = request.num_conditional_frames
        more = given * (2 if self._handover == "file" else 1)
        picture = request.size.height * request.size.width * 3
        first = (request.num_frames + more) * picture
        return [first, *[first - given * picture] * (num_chunks - 1)]

    def _keep(self, prompt: Prompt) -> None:
        """Of rank 0."""
        assert self._kept is not None
        assert self._last is not None
        pixels = {"frames": self._frames[-1], "tail": self._last}
        if self._handover == "file":
            pixels["handed"] = np.asarray(self.tail)
        if self._weights is None:
            self._weights = self._engine.digests()
        told = {
            "drift": asdict(self._drift[-1]),
            "report": asdict(self._reports[-1]),
            "prompt": described(prompt),
            "weights": self._weights,
        }
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(held)) for name, held in pixels.items()
        }
        self._kept.add(self.length - 1, KeptClip(told, tensors))

    def add(self, source: Any, prompt: Prompt, callbacks: dict[str, Any]) -> ChunkDrift:
        """Generates the next chunk."""
        chunk, given = len(self._drift), self._request.num_conditional_frames
        seed = (self._request.seed + chunk) % 2**32
        options: Options = {**self._options, "seed": seed}
        clip: Clip = self._engine.generate(
            source, prompt, self._negative_prompt, **options, **callbacks
        )
        frames = clip.frames.to("np")
        seam = None
        if chunk:
            assert self._last is not None
            seam = (self._last, frames[:given])
            frames = frames[given:]
        self._frames.append(frames)
        measured = self._ranks.same(lambda: asdict(measure(chunk, seed, frames, seam)))
        self._drift.append(ChunkDrift(**measured))
        self._reports.append(clip.report)
        self.tail = tail = clip.frames[-given:]
        self._last = np.asarray(tail)
        if self._handover == "file":
            lossy = self._ranks.on_first(lambda: through_file(tail, self._request))
            self.tail = lossy or tail
        if self._keeps:
            self._ranks.on_first(lambda: self._keep(prompt))
        return self._drift[-1]

    def finish(self) -> Rollout:
        frames = Frames(np.concatenate(self._frames), self._request.fps)
        prompts = tuple(str(report.arguments["prompt"]) for report in self._reports)
        return Rollout(frames, prompts, tuple(self._drift), self._report(prompts, len(frames)))

    def _report(self, prompts: tuple[str, ...], frames: int) -> Report:
        first, last = self._reports[0], self._reports[-1]
        stages: dict[str, float] = {}
        for report in self._reports:
            for stage in report.stages:
                stages[stage.name] = stages.get(stage.name, 0.0) + stage.seconds
        digests = "".join(report.latents_sha256 for report in self._reports)
        written = [report.upsampler.get("prompt") for report in self._reports]
        checks = [
            {**check, "chunk": chunk}
            for chunk, report in enumerate(self._reports)
            for check in report.guardrail.get("checks", ())
        ]
        return replace(
            last,
            guardrail={**last.guardrail, "checks": checks},
            upsampler={**last.upsampler, "chunk_prompts": written if any(written) else None},
            arguments={
                **first.arguments,
                "num_frames": frames,
                "num_chunks": len(self._drift),
                "handover": self._handover,
                "chunk_prompts": list(prompts) if len(set(prompts)) > 1 else None,
                "drift": [row.as_dict() for row in self._drift],
            },
            stages=tuple(Stage(name, seconds) for name, seconds in stages.items()),
            step_seconds=tuple(s for report in self._reports for s in report.step_seconds),
            latents_sha256=hashlib.sha256(digests.encode()).hexdigest(),
            notes=tuple(
                dict.fromkeys(
                    [*self._notes, *(note for report in self._reports for note in report.notes)]
                )
            ),
        )


def through_file(tail: Frames, request: Request) -> Frames:
    """``tail`` as the reference hands it over: written to a lossy file, and read back.

    One frame is a JPEG of quality 85, whatever its name says; several are H.264 at CRF 15.

    Raises:
        InputError: Pillow, which writes the JPEG, is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        if len(tail) == 1:
            path = Path(folder, "tail.png")
            _write_jpeg(path, np.asarray(tail)[0])
        else:
            path = Path(folder, "tail.mp4")
            with VideoWriter(path, size=tail.size, fps=tail.fps, crf=_FILE_CRF) as writer:
                writer.write(tail)
        return frames_from(
            path, size=tail.size, num_frames=len(tail), fit=request.fit, fps=tail.fps
        )


def _write_jpeg(path: Path, picture: np.ndarray) -> None:
    try:
        from PIL import Image  # optional: only the comparison with the reference needs it
    except ImportError as error:
        raise InputError('handover="file" writes a JPEG: pip install pillow') from error
    Image.fromarray(picture).save(path, "JPEG", quality=_JPEG_QUALITY)


def _sections(prompts: Sequence[str], text: str, form: Sidecar, title: str) -> str:
    """The sidecar of a video whose chunks have their own prompts; the original's has only them."""
    if form == "original":
        return "\n".join(prompts)
    own = (f"[{title} for chunk {chunk}]\n{prompt}\n" for chunk, prompt in enumerate(prompts))
    return "\n".join([text, *own])
