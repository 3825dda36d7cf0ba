"""What is no engine, such as the name of a checkpoint, where jobs want one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import cosmos_fast as cf

OPENED: Final[dict[str, Callable[[Any, Path], object]]] = {
    "rollout": lambda engine, _: cf.rollout(engine, "start.png", "a ball"),
    "best_of_n": lambda engine, out: cf.best_of_n(engine, "start.png", "a ball", out=out),
    "run_batch": lambda engine, out: cf.run_batch(engine, "jobs.jsonl", out),
}


@pytest.mark.parametrize("engine", ["ballworld", Path("a/folder"), None, 3, cf.Video2World])
@pytest.mark.parametrize("open_", OPENED.values(), ids=OPENED)
def test_what_is_no_engine_is_refused_with_the_way_to_make_one(
    open_: Callable[[Any, Path], object], engine: Any, tmp_path: Path
) -> None:
    with pytest.raises(cf.InputError) as caught:
        open_(engine, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"engine = {engine!r}: a Video2World is needed")
    source = repr(str(engine)) if isinstance(engine, str | Path) else "'ballworld'"
    assert message.endswith(f"Video2World.from_pretrained({source})")
    assert not list(tmp_path.iterdir())
