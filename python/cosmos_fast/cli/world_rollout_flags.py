"""The flags of ``rollout`` that are about actions."""

from __future__ import annotations

from typing import Final

from cosmos_fast.cli.flags import Choice, Flag, Integer, Location, Number, Text, Word

_PANEL: Final = "Actions"
WORLD_FLAGS: Final = (
    Flag(
        "actions",
        Location(),
        "Recorded actions to carry out: an annotation .json as the reference's, an .npy of one "
        "action a row, or the folder of a LeRobot dataset.",
        _PANEL,
    ),
    Flag(
        "policy",
        Word(metavar="MODULE:FUNCTION"),
        "A function that looks at the newest frame, uint8 (H, W, 3), and answers with the next "
        "actions.",
        _PANEL,
    ),
    Flag(
        "num_actions",
        Integer(1),
        "Actions to carry out; needed with --policy. Default: all that are recorded.",
        _PANEL,
    ),
    Flag(
        "noise",
        Choice(("device", "reference")),
        "Drawn on the device, keyed by seed and chunk, or the reference's own. Default: device.",
        _PANEL,
    ),
    Flag("samples", Integer(1), "Futures of each chunk; reports their disagreement.", _PANEL),
    Flag(
        "stop_at",
        Number(above=True),
        "With --samples: end where they disagree by more than this.",
        _PANEL,
    ),
    Flag(
        "reference",
        None,
        "With --actions: noise, seeds and seams of the reference's autoregressive script, which "
        "repeats a frame and loses one at every seam.",
        _PANEL,
    ),
    Flag("episode", Integer(0), "Which one of a LeRobot dataset. Default: 0.", _PANEL),
    Flag("camera", Word(), "Which camera of a LeRobot dataset, where it has several.", _PANEL),
    Flag(
        "save_dataset",
        Location(metavar="FOLDER"),
        "Write the rollout as a LeRobot dataset too.",
        _PANEL,
    ),
    Flag("task", Text(), "What is done in it, for --save_dataset.", _PANEL),
)
