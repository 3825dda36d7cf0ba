"""A disc on a table, driven by a planar velocity, pushes a block: MuJoCo moves and renders it.

Set MUJOCO_GL to ``egl`` (with a GPU) or ``osmesa`` before the first import; MuJoCo reads it then.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import mujoco
import numpy as np

SIDE: Final = 96
"""Pixels of the square picture; the table's coordinates go from -1 to 1."""
FPS: Final = 10.0
CHUNK: Final = 12
DISC_RADIUS: Final = 0.11
BLOCK_HALF: Final = 0.17
DISC_COLOUR: Final = (0.10, 0.35, 0.90)
BLOCK_COLOUR: Final = (0.90, 0.25, 0.10)
TABLE_COLOUR: Final = (0.82, 0.80, 0.74)
_REACH: Final = 0.86
"""How far from the middle both may come."""
_SUBSTEPS: Final = 20

_MODEL: Final = f"""
<mujoco>
  <option timestep="{1 / FPS / _SUBSTEPS}" gravity="0 0 0" integrator="implicitfast"/>
  <visual>
    <headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/>
    <quality offsamples="8" shadowsize="0"/>
    <global offwidth="{SIDE}" offheight="{SIDE}"/>
  </visual>
  <worldbody>
    <camera name="top" pos="0 0 20" fovy="5.755"/>
    <geom type="plane" size="3 3 .1" rgba="{" ".join(map(str, TABLE_COLOUR))} 1" contype="0"
          conaffinity="0"/>
    <body name="disc" pos="0 0 .1">
      <joint name="disc_x" type="slide" axis="1 0 0" range="-{_REACH} {_REACH}" limited="true"/>
      <joint name="disc_y" type="slide" axis="0 1 0" range="-{_REACH} {_REACH}" limited="true"/>
      <geom type="cylinder" size="{DISC_RADIUS} .1" mass="1" friction=".3"
            rgba="{" ".join(map(str, DISC_COLOUR))} 1"/>
    </body>
    <body name="block" pos="0 0 .1">
      <joint name="block_x" type="slide" axis="1 0 0" range="-{_REACH} {_REACH}" limited="true"
             damping="4" frictionloss=".6"/>
      <joint name="block_y" type="slide" axis="0 1 0" range="-{_REACH} {_REACH}" limited="true"
             damping="4" frictionloss=".6"/>
      <joint name="block_turn" type="hinge" axis="0 0 1" damping=".06" frictionloss=".03"/>
      <geom type="box" size="{BLOCK_HALF} {BLOCK_HALF} .1" mass=".5" friction=".3"
            rgba="{" ".join(map(str, BLOCK_COLOUR))} 1"/>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="disc_x" kv="60"/>
    <velocity joint="disc_y" kv="60"/>
  </actuator>
</mujoco>
"""


class Start(NamedTuple):
    """Where an episode begins, on the table."""

    disc: np.ndarray
    """float64 (2,)."""
    block: np.ndarray
    """float64 (3,): x, y and the turn in radians."""


class Pusher:
    """One table."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(_MODEL)
        self.data = mujoco.MjData(self.model)
        self._renderer: mujoco.Renderer | None = None

    def reset(self, start: Start) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = (*start.disc, *start.block)
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> None:
        """One frame's time under a velocity (2,), clipped to -1 to 1."""
        self.data.ctrl[:] = np.clip(action, -1, 1)
        mujoco.mj_step(self.model, self.data, nstep=_SUBSTEPS)

    def frame(self) -> np.ndarray:
        """uint8 (96, 96, 3), y upwards."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, SIDE, SIDE)
        self._renderer.update_scene(self.data, "top")
        picture: np.ndarray = self._renderer.render().copy()
        return picture

    @property
    def disc(self) -> np.ndarray:
        """float64 (2,): where it is."""
        return self.data.qpos[:2].copy()

    @property
    def block(self) -> np.ndarray:
        """float64 (2,): where its centre is."""
        return self.data.qpos[2:4].copy()

    @property
    def turn(self) -> float:
        return float(self.data.qpos[4])

    def to_pixels(self, what: str) -> np.ndarray:
        """float64 (2,): where "block" or "disc" is in the picture."""
        return to_pixels(self.block if what == "block" else self.disc)

    def state(self) -> np.ndarray:
        """All there is to know, for :meth:`set_state`."""
        size = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION)
        found = np.empty(size)
        mujoco.mj_getState(self.model, self.data, found, mujoco.mjtState.mjSTATE_INTEGRATION)
        return found

    def set_state(self, state: np.ndarray) -> None:
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self.model, self.data)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def draw_start(rng: np.random.Generator) -> Start:
    """A disc and a block that do not touch."""
    while True:
        disc, block = rng.uniform(-0.75, 0.75, (2, 2))
        if np.linalg.norm(disc - block) > DISC_RADIUS + 1.5 * BLOCK_HALF:
            return Start(disc, np.array([*block, rng.uniform(-np.pi / 4, np.pi / 4)]))


def to_pixels(position: np.ndarray) -> np.ndarray:
    """Table coordinates (..., 2) as (x, y) in pixels, y downwards."""
    flipped = np.asarray(position) * (1, -1)
    return (flipped + 1) * SIDE / 2


def to_table(pixels: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_pixels`."""
    return (np.asarray(pixels) * 2 / SIDE - 1) * (1, -1)
