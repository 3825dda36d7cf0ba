"""Generated episodes as a dataset that trains like a recorded one, and says that it is none."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from cosmos_fast.errors import InputError
from cosmos_fast.media import VideoWriter
from cosmos_fast.media.publishing import FolderDraft, publish
from cosmos_fast.types import Size
from cosmos_fast.world.lerobot import layout, tables
from cosmos_fast.world.lerobot.parquet import pyarrow
from cosmos_fast.world.lerobot.statistics import of_frames, of_values, together

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from cosmos_fast.types import ActionSpec, Frames
    from cosmos_fast.world.lerobot.statistics import Statistics
    from cosmos_fast.world.rollout import Rollout

MAIN_CAMERA: Final = f"{layout.CAMERA_PREFIX}main"
_FRAMES_A_FILE: Final = 5000
"""About 200 MB of H.264 at 480 x 640."""
_COMMENT: Final = "AI-generated video, made with cosmos-fast"


class DatasetWriter:
    """Writes episodes as they come; the dataset appears, whole, when all is well.

    Use it as a context manager: a clean end gives the folder its name, an exception leaves nothing.
    One thread at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        actions: ActionSpec,
        cameras: Mapping[str, Size | tuple[int, int]],
        *,
        fps: float | None = None,
        robot_type: str | None = None,
        crf: int = 15,
        frames_a_file: int = _FRAMES_A_FILE,
    ) -> None:
        """
        Args:
            path: a new or empty folder.
            actions: what the episodes' actions mean.
            cameras: (height, width) of each by its key, such as ``observation.images.top``.
            fps: frames a second; None: those of ``actions``.
            robot_type: what LeRobot's ``info.json`` says of the robot.
            crf: H.264 quality, 0 (best) to 51.
            frames_a_file: an episode that begins after so many begins new files.

        Raises:
            InputError: a value is wrong, or pyarrow is missing.
            MediaError: the folder is there and holds files, or cannot be made.
        """
        pyarrow()
        if not cameras or not all(name.strip() and "/" not in name for name in cameras):
            raise InputError(f"cameras = {list(cameras)}: keys without a slash are needed")
        if frames_a_file < 1:
            raise InputError(f"{frames_a_file = }: at least 1 is needed")
        self._spec, self._crf, self._robot_type = actions, crf, robot_type
        self._cameras = {name: Size(*size) for name, size in cameras.items()}
        self._fps, self._frames_a_file = float(fps or actions.fps), frames_a_file
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._statistics: dict[str, list[Statistics]] = {}
        self._frames = 0
        self._file, self._frames_in_file = -1, 0
        self._open = contextlib.ExitStack()
        self._videos: dict[str, VideoWriter] = {}
        self._rows: Any = None
        self._path, self._closed = Path(path), False
        self._draft = FolderDraft(self._path)

    def add(
        self,
        frames: Mapping[str, Any],
        actions: Any,
        task: str,
        *,
        synthetic: bool = True,
        provenance: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """One episode.

        Args:
            frames: by camera, uint8 (T, H, W, 3) on the host: what was seen before each action.
            actions: (T, dim), in the units of the specification.
            task: what is done, in words.
            synthetic: made by a model, not recorded.
            provenance: how it was made; values that JSON can hold.

        Raises:
            InputError: wrong shapes, types or values; nothing was written of this episode.
            MediaError: ffmpeg failed, or the disk is full; the dataset cannot be finished.
        """
        if self._closed:
            raise InputError("this dataset is finished: make another DatasetWriter")
        rows = np.asarray(actions, dtype=np.float32)
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != self._spec.dim:
            raise InputError(f"actions of shape {rows.shape}: (T, {self._spec.dim}) is needed")
        if not np.isfinite(rows).all():
            raise InputError("actions that are not finite cannot be learnt from")
        pictures = self._pictures(frames, len(rows))
        story = _as_json(provenance)
        if self._file < 0 or self._frames_in_file >= self._frames_a_file:
            self._next_file()
        columns = self._columns(rows, self._tasks.setdefault(task, len(self._tasks)))
        found = {name: of_values(values) for name, values in columns.items()}
        for camera, clip in pictures.items():
            self._videos[camera].write(clip)
            found[camera] = of_frames(clip)
        self._rows.write_table(tables.rows_table(columns))
        for name, part in found.items():
            self._statistics.setdefault(name, []).append(part)
        self._episodes.append(
            {
                "episode_index": len(self._episodes),
                "tasks": [task],
                "length": len(rows),
                layout.SYNTHETIC: synthetic,
                layout.PROVENANCE: story,
                "dataset_from_index": self._frames,
                "dataset_to_index": self._frames + len(rows),
                **self._places(len(rows)),
                **tables.flat_statistics(found),
            }
        )
        self._frames += len(rows)
        self._frames_in_file += len(rows)

    def finish(self) -> Path:
        """Writes what describes the dataset, and gives the folder its name.

        Raises:
            InputError: no episode was added.
            MediaError: ffmpeg failed, or the disk is full; nothing is left behind.
        """
        if self._closed:
            return self._path
        try:
            if not self._episodes:
                raise InputError("no episode was added; a dataset needs at least one")
            self._close_file()
            root = self._draft.readable
            tables.write_description(root, self._info(), self._totals(), self._tasks)
            self._write_episodes(root)
            _flush(root)
            publish([self._draft])
        finally:
            self.abort()
        return self._path

    def abort(self) -> None:
        """Leaves nothing behind; after ``finish`` it does nothing."""
        self._closed = True
        for video in self._videos.values():
            video.abort()
        self._open.close()
        self._draft.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()

    def _pictures(self, frames: Mapping[str, Any], length: int) -> dict[str, np.ndarray]:
        if set(frames) != set(self._cameras):
            raise InputError(
                f"frames of {', '.join(map(str, frames)) or 'no camera'}, where this dataset has "
                f"{', '.join(self._cameras)}"
            )
        found = {}
        for camera, size in self._cameras.items():
            clip = np.asarray(frames[camera])
            if clip.dtype != np.uint8 or clip.shape != (length, *size, 3):
                raise InputError(
                    f"{camera}: {clip.dtype} of shape {clip.shape}: uint8 ({length}, "
                    f"{size.height}, {size.width}, 3) is needed, a frame before each action"
                )
            found[camera] = clip
        return found

    def _columns(self, rows: np.ndarray, task: int) -> dict[str, np.ndarray]:
        steps = np.arange(len(rows), dtype=np.int64)
        return {
            layout.ACTION: rows if self._spec.dim > 1 else rows[:, 0],
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(len(rows), len(self._episodes), np.int64),
            "index": steps + self._frames,
            "task_index": np.full(len(rows), task, np.int64),
        }

    def _next_file(self) -> None:
        self._close_file()
        self._file, self._frames_in_file = self._file + 1, 0
        root = self._draft.readable
        for camera, size in self._cameras.items():
            path = layout.numbered_file(
                root, layout.VIDEO_FILE, video_key=camera, **self._numbers()
            )
            writer = VideoWriter(
                path, size=size, fps=self._fps, crf=self._crf, metadata={"comment": _COMMENT}
            )
            self._videos[camera] = writer
        path = layout.numbered_file(root, layout.DATA_FILE, **self._numbers())
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = tables.rows_schema(self._spec.dim)
        self._rows = self._open.enter_context(pyarrow().parquet.ParquetWriter(path, schema))

    def _close_file(self) -> None:
        self._open.close()
        for camera in list(self._videos):
            writer = self._videos[camera]
            writer.finish()
            writer.publish()
            del self._videos[camera]

    def _numbers(self) -> dict[str, int]:
        chunk, file = divmod(self._file, layout.FILES_A_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    def _places(self, length: int) -> dict[str, Any]:
        first, last = self._frames_in_file, self._frames_in_file + length
        found: dict[str, Any] = {}
        for group in ("data", *(f"videos/{camera}" for camera in self._cameras)):
            found |= {f"{group}/{name}": number for name, number in self._numbers().items()}
        for camera in self._cameras:
            found[f"videos/{camera}/from_timestamp"] = first / self._fps
            found[f"videos/{camera}/to_timestamp"] = last / self._fps
        return found

    def _write_episodes(self, root: Path) -> None:
        numbers = {"chunk_index": 0, "file_index": 0}
        path = layout.numbered_file(root, layout.EPISODES_FILE, **numbers)
        more = {f"{layout.EPISODES}/{name}": number for name, number in numbers.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow().Table.from_pylist([episode | more for episode in self._episodes])
        pyarrow().parquet.write_table(table, path)

    def _totals(self) -> dict[str, Statistics]:
        return {name: together(parts) for name, parts in self._statistics.items()}

    def _info(self) -> dict[str, Any]:
        whole = int(self._fps) if self._fps.is_integer() else self._fps
        return {
            "codebase_version": layout.VERSION,
            "fps": whole,
            "features": tables.features(self._spec, self._cameras, whole),
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": layout.FILES_A_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": layout.DATA_FILE,
            "video_path": layout.VIDEO_FILE,
            "robot_type": self._robot_type,
            "splits": {"train": f"0:{len(self._episodes)}"},
        }


def save_dataset(
    path: str | os.PathLike[str],
    rollouts: Sequence[Rollout],
    *,
    tasks: str | Sequence[str],
    sources: Sequence[Mapping[str, Any]] | None = None,
    camera: str = MAIN_CAMERA,
    robot_type: str | None = None,
    crf: int = 15,
) -> Path:
    """Writes rollouts as a LeRobot dataset: an episode each, marked as synthetic.

    A row is the frame before an action and that action; so a rollout's last frame, after which
    nothing is done, is not in it.

    Args:
        path: a new or empty folder, which appears whole or not at all.
        rollouts: at least one, all of one checkpoint and size.
        tasks: what is done in all of them, or in each.
        sources: where start frame and actions of each came from; plain values.
        camera: key of the pictures; a checkpoint of several cameras has a key for each, after
            its name.
        robot_type, crf: as :class:`DatasetWriter`.

    Raises:
        InputError: another number of tasks or sources than of rollouts; a rollout with the
            reference's seams or without actions, or of another checkpoint or size.
        MediaError: ffmpeg failed, or the folder cannot be written.
    """
    words = [tasks] * len(rollouts) if isinstance(tasks, str) else list(tasks)
    origins = [{}] * len(rollouts) if sources is None else list(sources)
    if not rollouts or not len(words) == len(origins) == len(rollouts):
        raise InputError(
            f"{len(rollouts)} rollouts, {len(words)} tasks, {len(origins)} sources: one of each, "
            f"and at least one, is needed"
        )
    spec = rollouts[0].state.profile.actions
    for number, rollout in enumerate(rollouts):
        if spec is None or rollout.state.profile.actions != spec:
            raise InputError(f"rollout {number} is of another kind of actions than the first")
        if rollout.settings["reference"]:
            raise InputError(
                f"rollout {number} has the reference's seams: its frames do not follow its actions"
            )
    assert spec is not None
    sizes = {name: clip.size for name, clip in _clips(rollouts[0], camera).items()}
    with DatasetWriter(path, spec, sizes, robot_type=robot_type, crf=crf) as writer:
        for rollout, task, origin in zip(rollouts, words, origins, strict=True):
            clips = {name: np.asarray(clip)[:-1] for name, clip in _clips(rollout, camera).items()}
            writer.add(clips, rollout.actions, task, provenance=rollout.record(origin))
    return Path(path)


def _clips(rollout: Rollout, camera: str) -> dict[str, Frames]:
    apart = {f"{layout.CAMERA_PREFIX}{name}": clip for name, clip in rollout.by_camera().items()}
    return apart or {camera: rollout.frames}


def _as_json(provenance: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(provenance), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"provenance cannot be written as JSON: {error}") from error


def _flush(root: Path) -> None:
    """To disk, so that a dataset that has its name has its content, whatever happens then."""
    for path in _everything(root):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _everything(root: Path) -> Iterator[Path]:
    for entry in root.iterdir():
        if entry.is_dir():
            yield from _everything(entry)
        yield entry
