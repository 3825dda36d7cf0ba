"""World: a thin holder of states for a program that steps several worlds in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch

from cosmos_fast.config import check_size
from cosmos_fast.errors import InputError
from cosmos_fast.sampling.noise import MAX_SEED, check_seed
from cosmos_fast.turns import Turns
from cosmos_fast.types import NO_TEXT, NoText, Size, TextEmbedding
from cosmos_fast.world.actions import tensor_of
from cosmos_fast.world.advance import advance
from cosmos_fast.world.call import check_engine, positive
from cosmos_fast.world.cameras import joined
from cosmos_fast.world.noise import check_noise
from cosmos_fast.world.script import Script, admit
from cosmos_fast.world.state import Tail, WorldState
from cosmos_fast.world.state_files import read_states, write_states
from cosmos_fast.world.timing import History, WorldReport

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from concurrent.futures import Future
    from types import TracebackType

    from cosmos_fast.engine import Video2World
    from cosmos_fast.types import Prompt
    from cosmos_fast.world.noise import NoiseKind
    from cosmos_fast.world.step import WorldStep


@dataclass(frozen=True)
class Snapshot:
    """A handle on the states of a world at one moment; costs nothing, lasts as long as it is held.

    :meth:`World.snapshot` with a path writes a file that outlives the process.
    """

    states: tuple[WorldState, ...]


class World:
    """N worlds that live on an engine; a context manager.

    A world's future depends on its seed, its frames and its actions, never on its neighbours or on
    its place among them: equal bytes on a CPU in float32, equal up to rounding on a GPU.
    """

    def __init__(
        self,
        engine: Video2World,
        num_worlds: int = 1,
        *,
        noise: NoiseKind = "device",
        num_steps: int | None = None,
        batch: int | None = None,
    ) -> None:
        """
        Args:
            engine: whose checkpoint the worlds follow; several worlds may share it.
            num_worlds: N, at least 1.
            noise, num_steps, batch: as :func:`advance`.

        Raises:
            InputError: no engine, or a value out of range.
        """
        check_engine(engine)
        self.engine: Final = engine
        self.num_worlds: Final = positive("num_worlds", num_worlds)
        for name, value in (("num_steps", num_steps), ("batch", batch)):
            if value is not None:
                positive(name, value)
        self._options: dict[str, Any] = {
            "noise": check_noise(noise), "num_steps": num_steps, "batch": batch,
        }  # fmt: skip
        self._states: tuple[WorldState, ...] | None = None
        self._history = History()
        self._turn = Turns()
        self._line = engine.worker.line()
        self._closed = False

    @property
    def states(self) -> tuple[WorldState, ...]:
        """Of all worlds, in order.

        Raises:
            InputError: closed, or never reset.
        """
        self._check_open()
        if self._states is None:
            raise InputError("this world has no frames yet: call reset(frames) first")
        return self._states

    def reset(
        self,
        frames: Any,
        prompts: Sequence[Prompt] | Prompt | None = None,
        *,
        seed: int | Sequence[int] = 0,
        mask: Any = None,
    ) -> tuple[WorldState, ...]:
        """Starts all worlds, or those that ``mask`` names, from given frames.

        Args:
            frames: uint8 (N, H, W, 3) or (N, T, H, W, 3), RGB: NumPy, torch, or anything with
                ``__dlpack__`` or ``__cuda_array_interface__``; on a device they stay there. H and
                W are taken as they are, multiples of 16. The last 1 or 5 of T frames count. By
                camera, such as {"front": (N, h, w, 3), ...}, where the checkpoint has several.
            prompts: one for all or N; texts, embeddings or ``NO_TEXT``; None is ``NO_TEXT``. A
                guarded engine refuses embeddings, which nobody can read.
            seed: world k's is ``seed + k``, or N of them.
            mask: bool (N,): which worlds to reset; the others' rows are not looked at.

        Returns:
            The states of all worlds.

        Raises:
            InputError: wrong shapes, types or values.
            GuardrailBlocked: a prompt was refused, or could not be checked.
            Whichever it is, no world has changed then.
        """
        self._check_open()
        chosen = self._mask(mask)
        pixels = self._pixels(frames)
        seeds, scripts = self._seeds(seed), self._scripts(prompts)
        height, width = pixels.shape[2:4]
        size = Size(height, width)
        check_size(size, self.engine.profile.dit)
        with self._alone():  # the others stay as they are once a step in another thread is over
            self._check_open()
            states = list(self._others(chosen, size, pixels.shape[1]))
            for world in (k for k, wanted in enumerate(chosen) if wanted):
                # A copy: the simulator may write its next picture where this one lies.
                own = pixels[world].to(self.engine.device, copy=True)
                tail = Tail(pixels.shape[1], frames=own, shown=own)
                script, profile = scripts[world], self.engine.profile
                states[world] = WorldState(seeds[world], 0, size, tail, script, profile)
            self._states = tuple(states)
            return self._states

    def step(
        self, actions: Any = None, *, samples: int = 1, decode: bool = True, **options: Any
    ) -> WorldStep:
        """One chunk of every world; the worlds then stand where it ends.

        Args:
            actions: float (N, chunk, dim) in the units of ``engine.profile.actions``; None for a
                checkpoint without actions.
            samples: K futures of each; the worlds follow the first.
            decode: False leaves pixels out, and with them the guardrail: for planning, where
                nobody sees them; the verdict is then "not checked".
            options: ``on_frames``, ``cancel``, ``guidance``, or another ``noise``, ``num_steps``
                or ``batch``, as :func:`advance`.

        Raises:
            GuardrailBlocked: a text or a frame was refused, or could not be checked.
            InputError, Cancelled, MemoryPlanError, DeviceLost.
            Whichever it is, the worlds are as they were.
        """
        with self._alone():
            made = advance(
                self.engine,
                self.states,
                actions,
                samples=samples,
                decode=decode,
                **{**self._options, **options},
            )
            if not self._closed:  # as a callback of this step may have done
                self._states = made.state
            self._history.add(made.report)
        return made

    def submit(self, actions: Any = None, **options: Any) -> Future[WorldStep]:
        """:meth:`step` on the engine's own thread, in order of submission, that of all its worlds.

        Work runs on the caller's current CUDA stream. Callbacks, the future's too, are called on
        that thread: there, do not wait for other submitted steps.
        """
        self._check_open()
        stream: Any = nullcontext()
        if self.engine.device.type == "cuda":
            stream = torch.cuda.stream(torch.cuda.current_stream(self.engine.device))

        def work() -> WorldStep:
            with stream:
                return self.step(actions, **options)

        return self._line.submit(work)

    def fork(self, world: int, copies: int, *, seeds: Sequence[int] | None = None) -> World:
        """A new world of ``copies`` that share the past of one of these; nothing is copied.

        Args:
            seeds: one a copy; None keeps the seed, so that equal actions have equal futures.

        Raises:
            InputError: no such world, or another number of seeds than copies.
        """
        states = self.states
        if not isinstance(world, int | np.integer) or not 0 <= world < len(states):
            raise InputError(f"{world = }: 0 to {len(states) - 1} are there")
        branch = World(self.engine, copies, **self._options)
        parent = states[world]
        branch._states = (parent,) * copies
        if seeds is not None:
            each = _each_seed(seeds, copies, f"{copies}, one a copy,")
            branch._states = tuple(parent.with_seed(seed) for seed in each)
        return branch

    def snapshot(self, path: str | os.PathLike[str] | None = None) -> Snapshot:
        """The states as they are, to go back to; with ``path`` also as a safetensors file.

        Snapshot and file hold the frames that the model continues, unblurred whatever a guardrail
        made of those it published: keep the file as you would the model's raw output.

        Raises:
            InputError: closed, never reset, or the file cannot be written.
        """
        states = self.states
        if path is not None:
            with self.engine.lend() as parts:
                write_states(path, states, parts)
        return Snapshot(states)

    def restore(self, source: Snapshot | str | os.PathLike[str]) -> tuple[WorldState, ...]:
        """Goes back to a snapshot or to what a file holds.

        A guarded engine has texts checked that it has not seen, and the frames of a file.

        Raises:
            GuardrailBlocked: a text or a frame was refused, or could not be checked.
            InputError: another number of worlds, or states of another checkpoint.
            CheckpointError: the file is no snapshot.
        """
        self._check_open()
        if isinstance(source, Snapshot):
            states = source.states
        else:
            with self.engine.lend() as parts:
                states = read_states(source, parts, self.engine.inspection())
        if len(states) != self.num_worlds:
            raise InputError(f"a snapshot of {len(states)} worlds for {self.num_worlds}")
        if any(state.profile != self.engine.profile for state in states):
            raise InputError(f"a snapshot of {states[0].profile.name}, not of this checkpoint")
        admit(self.engine, (state.script for state in states))
        with self._alone():
            self._states = states
        return states

    def report(self) -> WorldReport:
        """Latency, frames per second and stages of the last steps; waits for the device."""
        return self._history.report()

    def close(self) -> None:
        """Lets go of the states. Of this world's submitted steps, the one that has begun is waited
        for, unless this is called in it, and the others are cancelled. May be called again."""
        self._line.finish()
        self._closed = True
        self._states = None

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self.engine.profile.name
        return f"World({name!r}, num_worlds={self.num_worlds}{', closed' * self._closed})"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other threads from changing the states meanwhile.

        Raises:
            InputError: in a callback of this world's own step, where waiting would never end.
        """
        if self._turn.mine:
            raise InputError(
                "this world is in the middle of a step, in one of whose callbacks this is called: "
                "do it when the step is over, or submit() it"
            )
        with self._turn:
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("this world is closed: make another with World(engine, ...)")

    def _mask(self, mask: Any) -> list[bool]:
        if mask is None:
            return [True] * self.num_worlds
        chosen = tensor_of(mask, "mask")
        if chosen.dtype != torch.bool or tuple(chosen.shape) != (self.num_worlds,):
            raise InputError(
                f"mask of {chosen.dtype} and shape {tuple(chosen.shape)}: bool "
                f"({self.num_worlds},) is needed"
            )
        values: list[bool] = chosen.tolist()
        return values

    def _others(self, chosen: list[bool], size: Size, given: int) -> Sequence[Any]:
        """The states so far, None before the first reset; those not chosen fit the new ones."""
        if self._states is None:
            if not all(chosen):
                raise InputError("the first reset starts all worlds: leave mask out")
            return [None] * self.num_worlds
        for world, (state, is_new) in enumerate(zip(self._states, chosen, strict=True)):
            if not is_new and (state.size, state.tail.given) != (size, given):
                raise InputError(
                    f"{given} frames a world of {size}, where world {world}, which is not reset, "
                    f"has {state.tail.given} of {state.size}: worlds that step together have one "
                    f"form; give that, or leave mask out"
                )
        return self._states

    def _pixels(self, frames: Any) -> torch.Tensor:
        """uint8 (N, k, H, W, 3), where they are."""
        profile = self.engine.profile
        if isinstance(frames, Mapping):
            pixels = joined(profile, frames)
        else:
            pixels = tensor_of(frames, "frames")
        shape = tuple(pixels.shape)
        right = pixels.dtype == torch.uint8 and len(shape) in (4, 5) and shape[-1:] == (3,)
        if not right or shape[0] != self.num_worlds or 0 in shape:
            raise InputError(
                f"frames of {str(pixels.dtype).removeprefix('torch.')} and shape {shape}: uint8 "
                f"({self.num_worlds}, H, W, 3) or ({self.num_worlds}, T, H, W, 3), RGB, is needed"
            )
        if len(shape) == 4:
            pixels = pixels[:, None]
        if profile.cameras and shape[-3:-1] != profile.size:
            raise InputError(
                f"frames of shape {shape}: the cameras of {profile.name} lie in pictures of "
                f"{profile.size}"
            )
        legal = [k for k in profile.conditional_frames if k <= pixels.shape[1]]
        if not legal:
            raise InputError(
                f"{pixels.shape[1]} frames a world: {profile.name} needs "
                f"{min(profile.conditional_frames)} at least"
            )
        return pixels[:, -max(legal) :]

    def _seeds(self, seed: Any) -> list[int]:
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
            return [(check_seed(int(seed)) + k) % (MAX_SEED + 1) for k in range(self.num_worlds)]
        return _each_seed(seed, self.num_worlds, f"an integer or {self.num_worlds} of them")

    def _scripts(self, prompts: Any) -> list[Script]:
        if prompts is None or isinstance(prompts, str | TextEmbedding | NoText):
            prompts = [NO_TEXT if prompts is None else prompts] * self.num_worlds
        if not isinstance(prompts, Sequence):
            raise InputError(f"{prompts = }: one for all or {self.num_worlds} of them")
        if len(prompts) != self.num_worlds:
            raise InputError(f"{len(prompts)} prompts for {self.num_worlds} worlds")
        for prompt in prompts:
            if not isinstance(prompt, str | TextEmbedding | NoText):
                raise InputError(
                    f"a prompt of type {type(prompt).__name__}: text, NO_TEXT or a TextEmbedding"
                )
        # Equal texts become one value: what is one is attended to as one.
        keys = [each if isinstance(each, str) else id(each) for each in prompts]
        made: dict[str | int, Script] = {}
        for key, prompt in zip(keys, prompts, strict=True):
            if key not in made:
                made[key] = Script.of(self.engine, prompt)
        return [made[key] for key in keys]


def _each_seed(seeds: Any, number: int, needed: str) -> list[int]:
    """
    Args:
        seeds: a sequence, or an array, of ``number`` integers.

    Raises:
        InputError: it is none; ``needed`` says of what.
    """
    if not hasattr(seeds, "__len__") or isinstance(seeds, str) or len(seeds) != number:
        raise InputError(f"seeds = {seeds!r}: {needed} are needed")
    numbers: list[Any] = seeds.tolist() if isinstance(seeds, torch.Tensor) else list(seeds)
    return [check_seed(each) for each in numbers]
