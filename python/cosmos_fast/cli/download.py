"""``cosmos-fast download``: released checkpoints into a folder, pinned and verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.exits import ExitCode
from cosmos_fast.cli.flags import Choice, Flag, Location, parse_flags, takes
from cosmos_fast.cli.output import print_json, print_rows

if TYPE_CHECKING:
    from cosmos_fast.weights.download import DownloadPlan

MODEL_TYPES: Final = (
    "video2world",
    "sample_gr00t_dreams_gr1",
    "sample_gr00t_dreams_droid",
    "text2image",
    "sample_action_conditioned",
    "multiview",
)
"""What both generations of the download script know; the library says which can be run."""

DOWNLOAD_FLAGS: Final = (
    Flag(
        "model_sizes",
        Choice(("0.6B", "2B", "14B")),
        "One or more sizes. Default: 2B 14B.",
        several=True,
    ),
    Flag(
        "model_types",
        Choice(MODEL_TYPES, name="KIND"),
        "One or more of video2world, sample_gr00t_dreams_gr1 and sample_gr00t_dreams_droid. "
        "Default: video2world.",
        several=True,
    ),
    Flag("fps", Choice(("10", "16")), "Rates of video2world. Default: 16.", several=True),
    Flag("resolution", Choice(("480", "720")), "Of video2world. Default: 720.", several=True),
    Flag("natten", None, "Sparse-attention checkpoints (cannot be run yet, refused)."),
    Flag("checkpoint_dir", Location(), "Folder to fill. Default: checkpoints."),
    Flag(
        "leave_text_encoder",
        None,
        "Leave out T5, 9.7 GB: a prompt needs it, an embedding does not.",
    ),
    Flag("dry_run", None, "List the files and their sizes, and stop."),
    Flag("json", None, "Print one JSON object on stdout."),
    Flag("debug", None, "Show the traceback of an error."),
)
SEVERAL_VALUES: Final = tuple(flag.name for flag in DOWNLOAD_FLAGS if flag.several)
"""Flags that take one or more values, which the parser must be told beforehand."""


@takes(DOWNLOAD_FLAGS)
def download(**given: object) -> int:
    """Fetch released checkpoints: the model's file, its VAE, and T5 as an encoder.

    Only what is needed, at the commits that NVIDIA's own code uses, checked against the hub's
    digests; a broken download goes on where it stopped. Needs a hub token (hf auth login) and the
    model's terms accepted on its page.
    """
    from cosmos_fast.cli.progress import showing
    from cosmos_fast.weights.download import download as fetch
    from cosmos_fast.weights.download import plan_download

    flags = parse_flags(DOWNLOAD_FLAGS, given)
    choices = {
        name: flags[name] for name in (*SEVERAL_VALUES, "natten", "checkpoint_dir") if name in flags
    }
    with showing() as display:
        display.stage("ask the hub", "start", None)
        plan = plan_download(**choices, text_encoder=not flags.get("leave_text_encoder"))
        display.stage("ask the hub", "end", None)
        if not flags.get("dry_run"):
            progress = _Progress(plan.missing_bytes, display.amount)
            fetch(
                plan,
                on_file=lambda file: display.stage(f"{file.repo_id}/{file.name}", "start", None),
                on_bytes=progress.add,
            )
    if flags.get("json"):
        print_json({"status": "ok", "exit_code": 0, **described(plan)})
    elif flags.get("dry_run"):
        print_rows(
            (f"{file.size / 1e9:8.2f} GB", "to fetch" if file in plan.missing else "is there",
             str(file.target))
            for file in plan.files
        )  # fmt: skip
        print(f"{plan.missing_bytes / 1e9:8.2f} GB to fetch of {plan.total_bytes / 1e9:.2f} GB")
    else:
        print(plan.folder)
    return ExitCode.OK


def described(plan: DownloadPlan) -> dict[str, Any]:
    """A plan as plain values, ready for JSON."""
    return {
        "folder": str(plan.folder),
        "total_bytes": plan.total_bytes,
        "missing_bytes": plan.missing_bytes,
        "files": [
            {
                "repository": file.repo_id,
                "revision": file.revision,
                "path": str(Path(file.target)),
                "bytes": file.size,
                "sha256": file.sha256,
                "missing": file in plan.missing,
            }
            for file in plan.files
        ],
    }


class _Progress:
    """Counts what has arrived."""

    def __init__(self, total: int, show: Any) -> None:
        self._total, self._show, self._done = total, show, 0

    def add(self, more: int) -> None:
        self._done += more
        self._show(self._done, self._total)
