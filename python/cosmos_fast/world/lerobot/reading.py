"""Recorded episodes: their start frames, their actions, their statistics."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.media import read_frames, read_span
from cosmos_fast.types import ActionSpec, Size
from cosmos_fast.weights.tensor_files import read_json
from cosmos_fast.world.lerobot.layout import (
    ACTION,
    CAMERA_PREFIX,
    DATA_FILE,
    EPISODES,
    INFO,
    PROVENANCE,
    STATISTICS,
    SYNTHETIC,
    TASKS,
    VIDEO_FILE,
    numbered_file,
)
from cosmos_fast.world.lerobot.parquet import column_names, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cosmos_fast.media import Fit
    from cosmos_fast.types import Frames

_PLACES: Final = ("chunk_index", "file_index")


@dataclass(frozen=True)
class Episode:
    """One recording of a dataset."""

    index: int
    length: int
    """Frames, and actions."""
    tasks: tuple[str, ...]
    """What was to be done."""
    synthetic: bool
    """Made by a model; only datasets of :class:`DatasetWriter` say so."""
    provenance: dict[str, Any]
    """How it was made; empty where nobody says."""
    places: dict[str, Any] = field(repr=False)
    """Its columns that say in which files it lies, and where."""

    @property
    def task(self) -> str:
        """The first task, or nothing."""
        return self.tasks[0] if self.tasks else ""


class Dataset:
    """A LeRobot dataset on disk; files are read when something of theirs is asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Args:
            path: its folder, with ``meta/info.json`` in it.

        Raises:
            InputError: not a dataset of version 3, damaged, or pyarrow is missing.
        """
        self.path: Final = Path(path)
        info = self._json(INFO)
        version = info.get("codebase_version")
        if not isinstance(version, str) or not version.startswith("v3."):
            raise InputError(
                f"{self.path}: a LeRobot dataset of version {version!r}; v3.0 is read: convert it "
                f"with lerobot.scripts.convert_dataset_v21_to_v30"
            )
        features, fps = info.get("features"), info.get("fps")
        if not isinstance(features, dict) or not all(
            isinstance(v, dict) for v in features.values()
        ):
            raise InputError(f"{self.path / INFO}: features = {features!r}: an object is needed")
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
            raise InputError(f"{self.path / INFO}: fps = {fps!r}: a number above 0 is needed")
        self.fps: Final = float(fps)
        """Frames, and actions, a second."""
        self._features: dict[str, dict[str, Any]] = features
        self._data_path = str(info.get("data_path") or DATA_FILE)
        self._video_path = str(info.get("video_path") or VIDEO_FILE)
        self._episodes = self._read_episodes()

    def __len__(self) -> int:
        """Episodes."""
        return len(self._episodes)

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, episodes={len(self)}, cameras={self.cameras})"

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of the colour cameras, such as ``observation.images.top``."""
        return tuple(
            key for key, found in self._features.items()
            if found.get("dtype") in ("video", "image") and not _is_depth(found)
        )  # fmt: skip

    def camera(self, name: str | None = None) -> str:
        """The key of a camera: ``name`` in full or its last word, or the only one there is.

        Raises:
            InputError: no such camera, or none is named and there are several.
        """
        if name is None:
            if len(self.cameras) == 1:
                return self.cameras[0]
            raise InputError(f"{self.path} has {len(self.cameras)} cameras, name one of "
                             f"{', '.join(self.cameras)}")  # fmt: skip
        for key in (name, f"{CAMERA_PREFIX}{name}"):
            if key in self.cameras:
                return key
        raise InputError(f"camera = {name!r}: {self.path} has {', '.join(self.cameras) or 'none'}")

    def episode(self, index: int) -> Episode:
        """
        Raises:
            InputError: there is no such episode.
        """
        if index not in self._episodes:
            raise InputError(f"episode {index}: {self.path} has 0 to {len(self) - 1}")
        return self._episodes[index]

    def actions(self, episode: int, *, key: str = ACTION) -> np.ndarray:
        """What was done at each frame: float64 (length, dim), as recorded.

        Raises:
            InputError: no such episode or column, or damaged files.
        """
        found = self.episode(episode)
        path = self._file(self._data_path, found, "data")
        rows = read_rows(path, [key, "frame_index"], episode_index=episode)
        order = np.argsort(rows["frame_index"], kind="stable")
        try:
            values = np.array(rows[key], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {key} of episode {episode}: {error}") from error
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or len(values) != found.length:
            raise InputError(
                f"{path}: {key} of episode {episode} is of shape {values.shape}, where "
                f"{found.length} rows are expected"
            )
        return values[order]

    def frames(
        self,
        episode: int,
        camera: str | None = None,
        *,
        start: int = 0,
        num_frames: int = 1,
        size: Size | tuple[int, int] | None = None,
        fit: Fit = "cover",
    ) -> Frames:
        """Frames of a camera, the start frame unless told otherwise.

        Args:
            camera: its key or the last word of it; None where there is one.
            start: number of the first frame within the episode.
            size: (height, width) of the result; None: as recorded.

        Returns:
            Frames on the host, uint8 (num_frames, H, W, 3).

        Raises:
            InputError: no such episode, camera or frames.
            MediaError: the video cannot be read.
        """
        key, found = self.camera(camera), self.episode(episode)
        if start < 0 or num_frames < 1 or start + num_frames > found.length:
            raise InputError(
                f"frames {start} to {start + num_frames - 1} of episode {episode}, which has "
                f"{found.length}"
            )
        wanted = self.size(key) if size is None else Size(*size)
        if self._features[key]["dtype"] == "image":
            return self._pictures(found, key, start, num_frames, wanted, fit)
        path = self._file(self._video_path, found, f"videos/{key}", video_key=key)
        first = found.places.get(f"videos/{key}/from_timestamp")
        if not isinstance(first, int | float):
            raise InputError(f"{self.path}: episode {episode} does not say when its {key} begins")
        begin = first + start / self.fps
        return read_span(
            path, start=begin, fps=self.fps, size=wanted, num_frames=num_frames, fit=fit
        )

    def size(self, camera: str | None = None) -> Size:
        """Height and width of a camera's frames as recorded.

        Raises:
            InputError: no such camera, or its shape is not told.
        """
        key = self.camera(camera)
        shape, names = self._features[key].get("shape"), self._features[key].get("names")
        sides = shape if isinstance(shape, list) and len(shape) == 3 else None
        if sides is None or not all(type(side) is int and side > 0 for side in sides):
            raise InputError(
                f"{self.path / INFO}: {key} of shape {shape!r}: three sides are needed"
            )
        first = isinstance(names, list) and names[:1] in (["channel"], ["channels"], ["c"])
        if first or (sides[0] in (1, 3) and sides[2] not in (1, 3)):
            return Size(sides[1], sides[2])
        return Size(sides[0], sides[1])

    def statistics(self, key: str = ACTION) -> dict[str, np.ndarray]:
        """float64 arrays by name (mean, std, min, max, count, ...) over the whole dataset.

        Raises:
            InputError: ``meta/stats.json`` has none of that key.
        """
        found = self._json(STATISTICS).get(key)
        if not isinstance(found, dict):
            raise InputError(f"{self.path / STATISTICS}: no statistics of {key!r}")
        return {name: np.atleast_1d(np.array(value, np.float64)) for name, value in found.items()}

    def action_spec(
        self,
        chunk: int,
        *,
        units: Sequence[str] | None = None,
        scale: Sequence[float] | None = None,
        frame: str = "as recorded",
        key: str = ACTION,
    ) -> ActionSpec:
        """What this dataset's actions mean, with their mean and deviation.

        Args:
            chunk: actions of one evaluation: the checkpoint's.
            units, scale: of each value; None is "1", and 1.
            frame: frame of reference of the values.

        Returns:
            A specification; a value that never changes has a deviation of 1, since it cannot be 0.

        Raises:
            InputError: no action feature or statistics, or they do not fit one another.
        """
        feature = self._features.get(key)
        if feature is None:
            raise InputError(f"{self.path} has no {key!r}: {', '.join(self._features)}")
        found = self.statistics(key)
        if "mean" not in found or "std" not in found:
            raise InputError(f"{self.path / STATISTICS}: {key!r} has no mean and std")
        dim = len(found["mean"])
        std = np.where(found["std"] > 0, found["std"], 1.0)
        return ActionSpec(
            dim=dim,
            chunk=chunk,
            names=_names(feature.get("names"), dim),
            units=tuple(units or ("1",) * dim),
            scale=tuple(scale or (1.0,) * dim),
            frame=frame,
            fps=self.fps,
            mean=tuple(found["mean"].tolist()),
            std=tuple(std.tolist()),
        )

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return read_json(self.path / name)
        except CheckpointError as error:
            raise InputError(f"{self.path}: no LeRobot dataset of version 3: {error}") from error

    def _read_episodes(self) -> dict[int, Episode]:
        tasks = self._tasks()
        found: dict[int, Episode] = {}
        for path in sorted((self.path / EPISODES).glob("*/*.parquet")):
            wanted = [name for name in column_names(path) if not name.startswith("stats/")]
            columns = read_rows(path, wanted)
            for values in zip(*columns.values(), strict=True):
                one = _episode(dict(zip(wanted, values, strict=True)), tasks, path)
                found[one.index] = one
        if not found:
            raise InputError(f"{self.path / EPISODES}: no episodes")
        return dict(sorted(found.items()))

    def _tasks(self) -> dict[int, str]:
        path = self.path / TASKS
        if not path.exists():
            return {}
        names = column_names(path)
        # pandas keeps the task as the table's index, whose column is called what it likes.
        words = next((name for name in names if name != "task_index"), None)
        if words is None:
            return {}
        rows = read_rows(path, ["task_index", words])
        return {int(i): str(t) for i, t in zip(rows["task_index"], rows[words], strict=True)}

    def _file(self, template: str, episode: Episode, group: str, **more: str) -> Path:
        try:
            numbers = {name: int(episode.places[f"{group}/{name}"]) for name in _PLACES}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.path}: episode {episode.index} does not say in which file of {group} it "
                f"lies: {error}"
            ) from error
        return numbered_file(self.path, template, **numbers, **more)

    def _pictures(
        self, episode: Episode, key: str, start: int, number: int, size: Size, fit: Fit
    ) -> Frames:
        """Of a camera whose pictures stand in the rows themselves."""
        from cosmos_fast.types import Frames

        path = self._file(self._data_path, episode, "data")
        rows = read_rows(path, [key, "frame_index"], episode_index=episode.index)
        by_index = dict(zip(rows["frame_index"], rows[key], strict=True))
        made = []
        for index in range(start, start + number):
            held = by_index.get(index)
            content = held.get("bytes") if isinstance(held, dict) else None
            if not isinstance(content, bytes):
                raise InputError(f"{path}: frame {index} of {key} holds no picture")
            with _as_file(content) as name:
                made.append(np.asarray(read_frames(name, size=size, num_frames=1, fit=fit)))
        return Frames(np.concatenate(made), self.fps)


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A name under which this process reads ``content``, which is in memory only."""
    descriptor = os.memfd_create("picture")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _episode(row: dict[str, Any], tasks: dict[int, str], path: Path) -> Episode:
    try:
        index, length = int(row["episode_index"]), int(row["length"])
        named = row.get("tasks")
        if named is None:
            named = [tasks[int(row["task_index"])]] if "task_index" in row else []
        provenance = json.loads(row.get(PROVENANCE) or "{}")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no row about an episode: {error!r}") from error
    words = (named,) if isinstance(named, str) else tuple(map(str, named))
    return Episode(index, length, words, bool(row.get(SYNTHETIC)), provenance, row)


def _names(given: object, dim: int) -> tuple[str, ...]:
    """Of the values of a vector; LeRobot has them as a list, or as a list by group."""
    if isinstance(given, dict):
        given = [name for names in given.values() if isinstance(names, list) for name in names]
    if isinstance(given, list) and len(given) == dim:
        return tuple(map(str, given))
    return tuple(f"{ACTION} {value}" for value in range(dim))


def _is_depth(feature: dict[str, Any]) -> bool:
    told = feature.get("info") or feature.get("video_info") or {}
    return bool(told.get("is_depth_map") or told.get("video.is_depth_map"))
