"""``cosmos_fast.json``: what a checkpoint's tensors cannot say, in a small file beside them.

    {
      "name": "my world",                        any text
      "size": [96, 160],                         height, width in pixels: multiples of 16
      "num_frames": 33,                          4 n + 1
      "fps": 16,
      "num_steps": 35,
      "guidance": 7.0,
      "negative_prompt": null,                   a text, or null for no text at all
      "rope_scale": [1.0, 1.0, 1.0],             t, h, w; may be left out where config.json has it
      "conditional_frames": [1, 5],              optional
      "toy": false,                              optional
      "max_size": [128, 240, 240],               optional: largest latent grid, t, h, w
      "vae": {"base_dim": 16, ...}               optional: VAEConfig, where no vae/config.json is
    }

A network that makes the pictures of several cameras in one has a further ``cameras``:
{"front": [top, left, height, width], ...}, in pixels of that picture; an action-conditioned one
has ``actions``, the object of ``actions.json``.
Unknown, missing and ill-typed keys are refused: a misspelt one would be a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.config import Profile, VAEConfig
from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.types import NO_TEXT, Camera, NoText, Size
from cosmos_fast.weights.action_files import actions_json, actions_of
from cosmos_fast.weights.architecture import vae_config
from cosmos_fast.weights.tensor_files import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.config import DiTConfig
    from cosmos_fast.types import ActionSpec
    from cosmos_fast.weights.architecture import RopeScale

SIDECAR: Final = "cosmos_fast.json"

_REQUIRED = ("name", "size", "num_frames", "fps", "num_steps", "guidance", "negative_prompt")
_OPTIONAL = ("rope_scale", "conditional_frames", "toy", "max_size", "vae", "actions", "cameras")

MOST_TOY_WEIGHTS: Final = 400_000_000
"""Of a transformer that may call itself a toy, and goes unguarded for it: fewer than any released
one has (0.6 billion)."""
_WEIGHTS_OF_A_BLOCK: Final = 14
"""Times the width squared, at least: four projections of self-attention, two of cross-attention,
eight of the MLP."""


@dataclass(frozen=True)
class Sidecar:
    """The checked content of a ``cosmos_fast.json``."""

    path: Path
    name: str
    size: Size
    num_frames: int
    fps: float
    num_steps: int
    guidance: float
    negative_prompt: str | NoText
    rope_scale: RopeScale | None
    max_size: tuple[int, int, int] | None
    conditional_frames: tuple[int, ...]
    toy: bool
    vae: VAEConfig | None
    actions: ActionSpec | None
    cameras: tuple[Camera, ...]

    def profile(self, dit: DiTConfig, vae: VAEConfig) -> Profile:
        """
        Raises:
            CheckpointError: size or length are none that the networks can make, or a toy is larger
                than toys are.
        """
        weights = dit.num_layers * _WEIGHTS_OF_A_BLOCK * dit.width**2
        if self.toy and weights > MOST_TOY_WEIGHTS:
            raise CheckpointError(
                f'{self.path}: "toy" = true, but its transformer has {weights / 1e9:.1f} billion '
                f"weights or more. A toy goes without a guardrail and has at most "
                f"{MOST_TOY_WEIGHTS / 1e9:.1f}: leave the key out"
            )
        try:
            return Profile(
                name=self.name,
                size=self.size,
                num_frames=self.num_frames,
                fps=self.fps,
                dit=dit,
                vae=vae,
                num_steps=self.num_steps,
                guidance=self.guidance,
                negative_prompt=self.negative_prompt,
                conditional_frames=self.conditional_frames,
                toy=self.toy,
                actions=self.actions,
                cameras=self.cameras,
            )
        except InputError as error:
            raise CheckpointError(f"{self.path}: {error}") from error


def read_sidecar(path: Path) -> Sidecar:
    """
    Raises:
        CheckpointError: a key is unknown, missing, of the wrong type or out of range; named.
    """
    values = read_json(path)
    if unknown := values.keys() - {*_REQUIRED, *_OPTIONAL}:
        raise CheckpointError(
            f"{path}: unknown {', '.join(sorted(unknown))}; known are "
            f"{', '.join((*_REQUIRED, *_OPTIONAL))}"
        )
    if missing := [key for key in _REQUIRED if key not in values]:
        raise CheckpointError(
            f"{path}: {', '.join(missing)} missing; every checkpoint must say them"
        )
    reader = _Reader(path, values)
    negative = values["negative_prompt"]
    if negative is not None and not isinstance(negative, str):
        raise reader.refusal("negative_prompt", "a text, or null for no text")
    height, width = reader.integers("size", 2)
    rope = reader.numbers("rope_scale", 3) if values.get("rope_scale") is not None else None
    limit = reader.integers("max_size", 3) if "max_size" in values else None
    conditional = reader.integers("conditional_frames", None, default=(1, 5))
    toy = values.get("toy", False)
    if not isinstance(toy, bool):
        raise reader.refusal("toy", "true or false")
    vae = values.get("vae")
    if vae is not None and not isinstance(vae, dict):
        raise reader.refusal("vae", "an object")
    return Sidecar(
        path=path,
        name=reader.text("name"),
        size=Size(height, width),
        num_frames=reader.integers("num_frames")[0],
        fps=reader.numbers("fps")[0],
        num_steps=reader.integers("num_steps")[0],
        guidance=reader.guidance(),
        negative_prompt=NO_TEXT if negative is None else negative,
        rope_scale=None if rope is None else (rope[0], rope[1], rope[2]),
        max_size=None if limit is None else (limit[0], limit[1], limit[2]),
        conditional_frames=conditional,
        toy=toy,
        vae=None if vae is None else vae_config(vae, path),
        actions=actions_of(values["actions"], path) if "actions" in values else None,
        cameras=reader.cameras(),
    )


def sidecar_json(profile: Profile) -> dict[str, Any]:
    """What to write beside a checkpoint so that it is read back with this profile."""
    negative = profile.negative_prompt
    vae = {field.name: getattr(profile.vae, field.name) for field in fields(VAEConfig)}
    described = {
        "name": profile.name,
        "size": list(profile.size),
        "num_frames": profile.num_frames,
        "fps": profile.fps,
        "num_steps": profile.num_steps,
        "guidance": profile.guidance,
        "negative_prompt": None if isinstance(negative, NoText) else negative,
        "rope_scale": list(profile.dit.rope_scale),
        "conditional_frames": list(profile.conditional_frames),
        "toy": profile.toy,
        "max_size": list(profile.dit.max_size),
        "vae": {key: list(v) if isinstance(v, tuple) else v for key, v in vae.items()},
    }
    if profile.cameras:
        described["cameras"] = {name: list(box) for name, *box in profile.cameras}
    return described | ({"actions": actions_json(profile.actions)} if profile.actions else {})


@dataclass(frozen=True)
class _Reader:
    path: Path
    values: dict[str, Any]

    def refusal(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {key} = {self.values[key]!r}; {wanted} is needed")

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str) or not value.strip():
            raise self.refusal(key, "a text")
        return value

    def cameras(self) -> tuple[Camera, ...]:
        value = self.values.get("cameras", {})
        boxes = value.values() if isinstance(value, dict) else [None]
        if not all(
            isinstance(box, list) and len(box) == 4 and all(type(side) is int for side in box)
            for box in boxes
        ):
            raise self.refusal("cameras", "an object of [top, left, height, width] by name")
        return tuple(Camera(name, *box) for name, box in value.items())

    def guidance(self) -> float:
        value = self.values["guidance"]
        if type(value) not in (int, float) or not 0 <= value < float("inf"):
            raise self.refusal("guidance", "a number of at least 0")
        return float(value)

    def numbers(self, key: str, count: int | None = None) -> tuple[float, ...]:
        """One positive number (``count`` None) or ``count`` of them in a list."""
        value = self.values[key]
        items = value if isinstance(value, list) and count else [value]
        right = all(type(item) in (int, float) and 0 < item < float("inf") for item in items)
        if not right or len(items) != (count or 1):
            raise self.refusal(key, f"{count} positive numbers" if count else "a positive number")
        return tuple(map(float, items))

    def integers(
        self, key: str, count: int | None = 1, default: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """One positive integer (``count`` 1), a list of ``count``, or of any number (None)."""
        if key not in self.values and default:
            return default
        value = self.values[key]
        wanted = "a positive integer" if count == 1 else f"a list of {count or 'positive'} integers"
        items = [value] if count == 1 else value
        if not isinstance(items, list) or len(items) != (count or len(items) or 1):
            raise self.refusal(key, wanted)
        if not all(type(item) is int and item > 0 for item in items):
            raise self.refusal(key, wanted)
        return tuple(items)
