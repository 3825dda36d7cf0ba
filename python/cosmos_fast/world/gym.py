"""Worlds as Gymnasium environments; needs the extra ``gym``: ``pip install '.[gym]'``.

A network predicts a whole chunk from a whole chunk of actions, an environment is given one action
at a time, before it tells the next frame. What the other actions of a chunk will be is known to
nobody then; ``hold`` says what is made of that:

    hold           the world looks at an action           chunks predicted for 12 steps
    None (a chunk) when a chunk begins, and holds it      1: frames are served from the chunk
    4              every fourth step, and holds it        3
    1              at every step                          12: an agent that reacts to every frame

Where an action comes that was not assumed, the rest of the chunk is predicted again from the same
state and noise, so that every frame follows from the actions up to it that were looked at, and the
chunk ends in the state that ``World.step`` reaches with them. ``info["action"]`` tells which action
a frame follows from; the first one that is passed over is also logged. An agent that has more than
one action to tell, as policies that act in chunks have, calls ``announce``: those are all looked
at, and cost one prediction a chunk whatever ``hold`` is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cosmos_fast.imports import install_extra

try:
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ImportError(f"cosmos_fast.world.gym needs gymnasium: {install_extra('gym')}") from error

from cosmos_fast.errors import InputError
from cosmos_fast.sampling.noise import MAX_SEED
from cosmos_fast.world.advance import advance
from cosmos_fast.world.call import check_engine, positive
from cosmos_fast.world.episode import Episode
from cosmos_fast.world.world import World

if TYPE_CHECKING:
    from cosmos_fast.engine import Video2World
    from cosmos_fast.types import ActionSpec
    from cosmos_fast.world.noise import NoiseKind

Reward = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
"""``reward(frames before, actions, frames after)``: uint8 (N, H, W, 3), float32 (N, dim), uint8
(N, H, W, 3) to N numbers, or to N numbers and N booleans that end an episode."""

_SPREAD: Final = 3.0
_LOG: Final = logging.getLogger(__name__)


class WorldVectorEnv(VectorEnv[Any, Any, Any]):
    """N worlds, one frame a step, episodes truncated at a horizon.

    Observations are frames, uint8 (H, W, 3). There is no reward but that of the given function.
    A chunk of the released 2B takes seconds on one GPU: this is an evaluator, not a fast simulator.
    """

    def __init__(
        self,
        engine: Video2World,
        starts: Any,
        num_envs: int = 1,
        *,
        horizon: int = 100,
        execute: int | None = None,
        hold: int | None = None,
        reward: Reward | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        action_space: gymnasium.spaces.Box | None = None,
        noise: NoiseKind = "device",
        num_steps: int | None = None,
    ) -> None:
        """
        Args:
            engine: an action-conditioned checkpoint.
            starts: uint8 (M, H, W, 3): an episode starts from one of them, drawn by its seed.
            num_envs: N.
            horizon: steps after which an episode is truncated.
            execute: frames of a chunk that are lived through before the next is predicted from
                them; None is all.
            hold: steps from one look at the actions to the next, within a chunk; None is all of
                ``execute``. 1 looks at every action, for as many predictions as steps.
            reward: None: always 0.
            autoreset_mode: any of Gymnasium's.
            render_mode: None or "rgb_array".
            action_space: of one world, float32 (dim,); None is three standard deviations about
                the mean where the checkpoint tells them, else one in the network's scale.
            noise, num_steps: as ``World``.

        Raises:
            InputError: no engine, a checkpoint without actions, or a value out of range.
        """
        check_engine(engine)
        spec = engine.profile.actions
        if spec is None:
            raise InputError(f"{engine.profile.name} takes no actions: no environment")
        self._starts = np.asarray(starts)
        if self._starts.ndim != 4 or self._starts.dtype != np.uint8 or not len(self._starts):
            raise InputError(
                f"starts of {self._starts.dtype} and shape {self._starts.shape}: uint8 "
                f"(M, H, W, 3) is needed"
            )
        self._execute = spec.chunk if execute is None else execute
        if not 1 <= positive("execute", self._execute) <= spec.chunk:
            raise InputError(f"{execute = }: 1 to {spec.chunk} frames of a chunk are needed")
        self._hold = positive("hold", self._execute if hold is None else hold)
        if render_mode not in (None, "rgb_array"):
            raise InputError(f'{render_mode = }: None or "rgb_array" is possible')
        try:
            self._mode = AutoresetMode(autoreset_mode)
        except ValueError as error:
            raise InputError(f"{autoreset_mode = }: one of {list(AutoresetMode)}") from error
        self.metadata = {
            "render_modes": ["rgb_array"], "render_fps": spec.fps, "autoreset_mode": self._mode,
        }  # fmt: skip
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.single_observation_space = gymnasium.spaces.Box(
            0, 255, self._starts.shape[1:], np.uint8
        )
        self.single_action_space = action_space or _action_space(spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._engine, self._spec, self._reward = engine, spec, reward
        self._horizon = positive("horizon", horizon)
        self._options: dict[str, Any] = {"noise": noise, "num_steps": num_steps}
        self._world = World(engine, num_envs, noise=noise, num_steps=num_steps)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._episodes: list[Episode | None] = [None] * num_envs
        self._done = np.zeros(num_envs, dtype=bool)
        self._told_of_passing = False
        self.model_calls = 0
        """Chunks predicted so far, over all worlds."""

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts all episodes, or those of ``options["reset_mask"]`` (bool (N,))."""
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            seeds: list[int | None] = [int(seed) + k for k in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise InputError(f"{len(seeds)} seeds for {self.num_envs} environments")
        mask = np.ones(self.num_envs, dtype=bool)
        if options and "reset_mask" in options:
            mask = options["reset_mask"]
            right = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.any()
            if not right or mask.shape != (self.num_envs,):
                raise InputError(f"reset_mask = {mask!r}: bool ({self.num_envs},), not all False")
        for k in np.flatnonzero(mask):
            if seeds[k] is not None:
                self._generators[k] = np.random.default_rng(seeds[k])
        self._begin(mask)
        return self._frames(), self._info(mask)

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One frame of every world.

        Args:
            actions: float (N, dim); ``hold`` says when a world looks at its own.

        Raises:
            InputError: wrong shape or values, closed, or a finished episode with autoreset
                disabled. What a prediction raises comes through. Whichever it is, the episodes
                are as they were.
        """
        if self.closed:
            raise InputError("this environment is closed: make another")
        given = _numbers(actions)
        if given.shape != (self.num_envs, self._spec.dim):
            raise InputError(f"actions of shape {given.shape}: ({self.num_envs}, {self._spec.dim})")
        if any(episode is None for episode in self._episodes):
            raise InputError("call reset() before step()")
        if self._mode == AutoresetMode.DISABLED and self._done.any():
            raise InputError(
                f"episodes {np.flatnonzero(self._done).tolist()} have ended: reset them with "
                f'options={{"reset_mask": ...}}'
            )
        fresh = self._done.copy()
        self._predict(given, ~fresh)
        if fresh.any():
            self._begin(fresh)
        before = self._frames()
        self._move(given, ~fresh)
        after = self._frames()
        rewards, terminated = self._rewarded(before, given, after, ~fresh)
        ages = np.array([episode.age for episode in self._episodes if episode])
        truncated = (ages >= self._horizon) & ~fresh
        self._done = terminated | truncated
        info = self._info(np.ones(self.num_envs, dtype=bool))
        if self._mode == AutoresetMode.SAME_STEP and self._done.any():
            after, info = self._same_step(after, info)
        return after, rewards, terminated, truncated, info

    def announce(self, actions: Any) -> None:
        """Tells what will be done from the next step on: float (N, up to chunk, dim).

        Where the next step brings the first of them, the rest of the chunk is predicted from them
        all, once, as ``World.step`` does; else they are forgotten.
        """
        coming = _numbers(actions)
        if coming.ndim != 3 or coming.shape[::2] != (self.num_envs, self._spec.dim):
            raise InputError(f"actions of shape {coming.shape}: ({self.num_envs}, n, dim)")
        for episode, rows in zip(self._episodes, coming, strict=True):
            if episode is not None:
                episode.announced = rows.copy()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The newest frames, uint8 (H, W, 3) each."""
        if self.render_mode is None:
            return None
        return tuple(self._frames())

    def close_extras(self, **kwargs: Any) -> None:
        self._world.close()

    def _begin(self, mask: np.ndarray) -> None:
        chosen = [int(g.integers(len(self._starts))) if m else 0
                  for g, m in zip(self._generators, mask, strict=True)]  # fmt: skip
        seeds = [int(g.integers(MAX_SEED + 1)) if m else 0
                 for g, m in zip(self._generators, mask, strict=True)]  # fmt: skip
        whole = None in self._episodes
        if whole and not mask.all():
            raise InputError("the first reset starts all episodes: leave reset_mask out")
        states = self._world.reset(
            self._starts[chosen], seed=seeds, mask=None if whole else np.asarray(mask)
        )
        for k in np.flatnonzero(mask):
            self._episodes[k] = Episode(states[k], self._starts[chosen[k]].copy())
            self._done[k] = False

    def _chosen(self, mask: np.ndarray) -> list[Episode]:
        return [e for e, chosen in zip(self._episodes, mask, strict=True) if chosen and e]

    def _predict(self, actions: np.ndarray, mask: np.ndarray) -> None:
        """Predicts the chunks that the chosen worlds need for one action; all of them or none."""
        surprised = [
            (episode, told)
            for episode, action in zip(self._chosen(mask), actions[mask], strict=True)
            if (told := episode.surprised_by(action, self._spec.chunk, self._hold)) is not None
        ]
        if not surprised:
            return
        made = advance(
            self._engine,
            [episode.state for episode, _ in surprised],
            np.stack([told[: self._execute] for _, told in surprised]),
            **self._options,
        )
        assert made.frames is not None
        self.model_calls += len(surprised)
        for (episode, told), state, frames in zip(
            surprised, made.state, np.asarray(made.frames), strict=True
        ):
            episode.assumed, episode.ahead, episode.frames = told, state, frames

    def _move(self, actions: np.ndarray, mask: np.ndarray) -> None:
        """Moves the chosen worlds on by one action."""
        episodes = self._chosen(mask)
        for episode in episodes:
            episode.advance(self._execute)
        if not self._told_of_passing and any(
            not np.array_equal(episode.followed, action)
            for episode, action in zip(episodes, actions[mask], strict=True)
        ):
            self._told_of_passing = True
            _LOG.warning(
                "an action was passed over: within a chunk every %d. is looked at (hold = %d); "
                "hold=1 looks at all, for a prediction a step; announce() tells coming ones",
                self._hold, self._hold,
            )  # fmt: skip

    def _frames(self) -> np.ndarray:
        return np.stack([episode.frame for episode in self._episodes if episode])

    def _rewarded(
        self, before: np.ndarray, actions: np.ndarray, after: np.ndarray, lived: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rewards, ended = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        if self._reward is not None:
            found = self._reward(before, actions, after)
            if isinstance(found, tuple):
                found, ends = found
                ended[:] = np.asarray(ends, dtype=bool)
            rewards[:] = np.asarray(found, dtype=np.float64)
        return rewards * lived, ended & lived

    def _info(self, mask: np.ndarray) -> dict[str, Any]:
        info: dict[str, Any] = {}
        source = "none" if self._reward is None else getattr(self._reward, "__name__", "function")
        for k in np.flatnonzero(mask):
            info = self._add_info(info, self._told(int(k), source), int(k))
        return info

    def _told(self, k: int, source: str) -> dict[str, Any]:
        episode = self._episodes[k]
        assert episode is not None
        told: dict[str, Any] = {"age": episode.age, "reward_source": source}
        return told if episode.followed is None else told | {"action": episode.followed.copy()}

    def _same_step(
        self, after: np.ndarray, info: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        ended = self._done.copy()
        final: dict[str, Any] = {}
        for k in np.flatnonzero(ended):
            told = self._told(int(k), info["reward_source"][k])
            final = self._add_info(
                final, {"final_obs": after[k].copy(), "final_info": told}, int(k)
            )
        self._begin(ended)
        return self._frames(), final | self._info(np.ones(self.num_envs, dtype=bool))


class WorldEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One world as an ordinary environment; otherwise as :class:`WorldVectorEnv`."""

    def __init__(self, engine: Video2World, starts: Any, **options: Any) -> None:
        """
        Args:
            engine, starts: as :class:`WorldVectorEnv`.
            options: its others, without ``num_envs`` and ``autoreset_mode``.
        """
        self._vector = WorldVectorEnv(
            engine, starts, 1, autoreset_mode=AutoresetMode.DISABLED, **options
        )
        self.metadata = {
            key: value for key, value in self._vector.metadata.items() if key != "autoreset_mode"
        }
        self.render_mode = self._vector.render_mode
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        frames, info = self._vector.reset(seed=seed)
        return frames[0], _single(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        frames, rewards, terminated, truncated, info = self._vector.step(np.asarray(action)[None])
        return (
            frames[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _single(info)
        )  # fmt: skip

    def render(self) -> Any:
        rendered = self._vector.render()
        return None if rendered is None else rendered[0]

    def close(self) -> None:
        self._vector.close()


def _numbers(actions: Any) -> np.ndarray:
    try:
        return np.asarray(actions, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"actions of type {type(actions).__name__}: numbers are needed") from error


def _action_space(spec: ActionSpec) -> gymnasium.spaces.Box:
    if spec.mean is not None and spec.std is not None:
        mean, reach = np.array(spec.mean), _SPREAD * np.array(spec.std)
    else:
        mean, reach = np.zeros(spec.dim), 1 / np.array(spec.scale)
    return gymnasium.spaces.Box(
        (mean - reach).astype(np.float32), (mean + reach).astype(np.float32), dtype=np.float32
    )


def _single(info: dict[str, Any]) -> dict[str, Any]:
    return {key: value[0] for key, value in info.items() if not key.startswith("_")}
