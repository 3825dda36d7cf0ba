"""A small checkpoint in both layouts, made by the maintainers' tool, to load and to damage."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

TOOL = Path(__file__).resolve().parents[3] / "tools" / "make_random_checkpoint.py"
MODEL = "Cosmos-Predict2-2B-Video2World"


def tool() -> Any:
    """tools/make_random_checkpoint.py as a module."""
    name = "make_random_checkpoint"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TOOL)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def small_checkpoint(root: Path, **options: Any) -> Path:
    """The tiny random checkpoint below ``root``; the original layout's model folder."""
    return tool().make_checkpoint(root, "tiny", **options)
