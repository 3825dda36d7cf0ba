"""What a world's doors take and give: engines on their way in, frames on their way out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import cosmos_fast as cf
from action_world import actions, pictures
from cosmos_fast.world import CostModel, advance, rollout_actions, rollout_policy

if TYPE_CHECKING:
    from collections.abc import Callable

OPENED: dict[str, Callable[[Any], object]] = {
    "World": cf.World,
    "advance": lambda engine: advance(engine, ()),
    "rollout_actions": lambda engine: rollout_actions(engine, pictures(1)[0], actions(1)[0]),
    "rollout_policy": lambda engine: rollout_policy(engine, pictures(1)[0], lambda _: None, 1),
    "CostModel": lambda engine: CostModel(engine, lambda step, _: step.latents.tensor),
}


@pytest.mark.parametrize("engine", ["pusherworld", Path("a/folder"), None, 3, cf.Video2World])
@pytest.mark.parametrize("open_", OPENED.values(), ids=OPENED)
def test_what_is_no_engine_is_refused_with_the_way_to_make_one(
    open_: Callable[[Any], object], engine: Any
) -> None:
    with pytest.raises(cf.InputError) as caught:
        open_(engine)
    message = str(caught.value)
    assert f"engine = {engine!r}: a Video2World is needed" in message
    source = repr(str(engine)) if isinstance(engine, str | Path) else '"pusherworld"'
    assert message.endswith(f"Video2World.from_pretrained({source})")


def test_an_environment_needs_an_engine_too() -> None:
    gym = pytest.importorskip("cosmos_fast.world.gym")
    with pytest.raises(cf.InputError, match="a Video2World is needed"):
        gym.WorldEnv("pusherworld", np.zeros((1, 32, 48, 3), np.uint8))
