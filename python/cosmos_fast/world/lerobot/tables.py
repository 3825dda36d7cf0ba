"""What a dataset's files hold: the rows, the descriptions, the card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.world.lerobot import layout
from cosmos_fast.world.lerobot.parquet import pyarrow

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from cosmos_fast.types import ActionSpec, Size
    from cosmos_fast.world.lerobot.statistics import Statistics

_SCALARS: Final = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_CARD: Final = """---
tags:
- LeRobot
- synthetic
task_categories:
- robotics
configs:
- config_name: default
  data_files: data/*/*.parquet
---

{episodes} episodes, {frames} frames, made with cosmos-fast. Where the column `{synthetic}` of
`{where}` says so, the videos are AI-generated: a world model predicted them from a start frame and
the actions. The column `{provenance}` tells how each was made, as JSON.
"""


def features(spec: ActionSpec, cameras: Mapping[str, Size], fps: float) -> dict[str, Any]:
    """What each column and camera is, as ``info.json`` says it."""
    found: dict[str, Any] = {
        camera: {
            "dtype": "video",
            "shape": [size.height, size.width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": size.height,
                "video.width": size.width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.fps": fps,
                "video.channels": 3,
                "is_depth_map": False,
                "has_audio": False,
            },
        }
        for camera, size in cameras.items()
    }
    found[layout.ACTION] = {"dtype": "float32", "shape": [spec.dim], "names": list(spec.names)}
    scalars = {
        name: {"dtype": kind, "shape": [1], "names": None} for name, kind in _SCALARS.items()
    }
    return found | scalars


def rows_schema(dim: int) -> Any:
    """Of ``data``: one row a frame."""
    arrow = pyarrow()
    action = arrow.float32() if dim == 1 else arrow.list_(arrow.float32(), dim)
    kinds = {layout.ACTION: action} | {
        name: getattr(arrow, kind)() for name, kind in _SCALARS.items()
    }
    return arrow.schema(list(kinds.items()))


def rows_table(columns: Mapping[str, np.ndarray]) -> Any:
    """One episode's rows; written as one row group."""
    arrow = pyarrow()
    action = columns[layout.ACTION]
    dim = action.shape[1] if action.ndim == 2 else 1
    held: dict[str, Any] = {name: arrow.array(values) for name, values in columns.items()
                            if name != layout.ACTION}  # fmt: skip
    flat = arrow.array(action.reshape(-1))
    held[layout.ACTION] = flat if dim == 1 else arrow.FixedSizeListArray.from_arrays(flat, dim)
    schema = rows_schema(dim)
    return arrow.Table.from_arrays([held[name] for name in schema.names], schema=schema)


def flat_statistics(found: Mapping[str, Statistics]) -> dict[str, Any]:
    """Columns ``stats/{feature}/{name}`` of an episode."""
    return {
        f"stats/{feature}/{name}": value.tolist()
        for feature, part in found.items()
        for name, value in part.items()
    }


def write_description(
    root: Path, info: Mapping[str, Any], totals: Mapping[str, Statistics], tasks: Mapping[str, int]
) -> None:
    """``meta`` but for the episodes, and the card."""
    (root / "meta").mkdir(exist_ok=True)
    _write_json(root / layout.INFO, info)
    plain = {key: {name: value.tolist() for name, value in part.items()}
             for key, part in totals.items()}  # fmt: skip
    _write_json(root / layout.STATISTICS, plain)
    pyarrow().parquet.write_table(_tasks_table(tasks), root / layout.TASKS)
    card = _CARD.format(
        episodes=info["total_episodes"],
        frames=info["total_frames"],
        where=layout.EPISODES,
        synthetic=layout.SYNTHETIC,
        provenance=layout.PROVENANCE,
    )
    (root / "README.md").write_text(card, encoding="utf-8")


def _tasks_table(tasks: Mapping[str, int]) -> Any:
    """Readers take the tasks for the index of a pandas table, which its metadata has to say."""
    arrow = pyarrow()
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    about = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind,
             "metadata": None}
            for name, (kind, numpy_kind) in kinds.items()
        ],
        "pandas_version": "2.0.0",
    }  # fmt: skip
    table = arrow.table(
        {
            "task_index": arrow.array(list(tasks.values()), arrow.int64()),
            "task": arrow.array(list(tasks), arrow.string()),
        }
    )
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=4, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
