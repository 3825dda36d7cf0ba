"""``cosmos-fast video2world-action``: the reference's action script, in its own words."""

from __future__ import annotations

from typing import Any, Final

from cosmos_fast.cli.exits import UsageError
from cosmos_fast.cli.flags import Choice, Flag, Integer, Location, parse_flags, takes
from cosmos_fast.cli.rollout import ROLLOUT_FLAGS
from cosmos_fast.cli.world_rollout import world_rollout
from cosmos_fast.cli.world_rollout_flags import WORLD_FLAGS

_PANEL: Final = "Actions"
_SAID_OTHERWISE: Final = frozenset(
    {flag.name for flag in WORLD_FLAGS}
    | {"input_path", "model_size", "num_conditional_frames", "num_gpus"}
)
ACTION_FLAGS: Final = (
    Flag("input_video", Location(), "Picture or video whose first frame is continued.", _PANEL),
    Flag("input_annotation", Location(), "Annotation .json with the actions.", _PANEL),
    Flag("chunk_size", Integer(1), "Actions of a chunk. Default: 12.", _PANEL),
    Flag("autoregressive", None, "Carry out all whole chunks, not the first alone.", _PANEL),
    Flag("model_size", Choice(("2B",)), "There is one size.", "Model"),
    Flag("num_conditional_frames", Choice(("1",), int), "There is one choice.", _PANEL),
    Flag("num_gpus", Integer(1), "1: a world steps on one GPU.", "Machine"),
    *(flag for flag in ROLLOUT_FLAGS if flag.name not in _SAID_OTHERWISE),
)
_CHUNK: Final = 12


@takes(ACTION_FLAGS)
def video2world_action(**given: object) -> int:
    """Carry out the actions of an annotation file, as the reference's action script does.

    The first chunk alone, with the reference's noise of --seed; or with --autoregressive every
    whole chunk, joined with the script's seams. rollout --actions is the same without its faults.
    """
    flags = parse_flags(ACTION_FLAGS, given)
    for name in ("input_video", "input_annotation"):
        if name not in flags:
            raise UsageError(f"--{name} is required; without it there is nothing to carry out")
    translated: dict[str, Any] = {
        "input_path": flags.pop("input_video"),
        "actions": flags.pop("input_annotation"),
    }
    chunk = flags.pop("chunk_size", _CHUNK)
    if flags.pop("autoregressive", False):
        flags.pop("seed", None)  # each chunk's own: the number of its first action
        translated["reference"] = True
    else:
        translated |= {"num_actions": chunk, "noise": "reference"}
    for name in ("model_size", "num_conditional_frames"):
        flags.pop(name, None)
    return world_rollout(flags | translated, chunk=chunk)
