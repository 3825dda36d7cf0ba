"""``cosmos-fast download``: released checkpoints into a folder, pinned and verified."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.exits import ExitCode, UsageError, message_of
from cosmos_fast.cli.flags import Choice, Flag, Location, in_flags, parse_flags, takes
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
    Flag(
        "guardrail",
        None,
        "The guardrail, about 20 GB; asks for accepted terms of Llama-Guard-3-8B. Comes by default "
        "unless --leave_guardrail.",
    ),
    Flag("leave_guardrail", None, "Leave it out: commands then need --disable_guardrail."),
    Flag(
        "prompt_upsampler",
        None,
        "Qwen2.5-VL-7B-Instruct, the original's upsampler, 17 GB. Comes by default with "
        "--checkpoint_dir, the original's flag.",
    ),
    Flag(
        "prompt_refiner",
        None,
        "Cosmos-Reason1-7B, the later tool's upsampler, 17 GB. Comes by default otherwise.",
    ),
    Flag(
        "leave_upsampler",
        None,
        "Leave out both: commands then need --disable_prompt_upsampler (or _refiner).",
    ),
    Flag("dry_run", None, "List the files and their sizes, and stop."),
    Flag("json", None, "Print one JSON object on stdout."),
    Flag("debug", None, "Show the traceback of an error."),
)
_COMPANIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "guardrail": ("nvidia/Cosmos-Guardrail1", "meta-llama/Llama-Guard-3-8B"),
        "prompt_upsampler": ("Qwen/Qwen2.5-VL-7B-Instruct",),
        "prompt_refiner": ("nvidia/Cosmos-Reason1-7B",),
    }
)
"""What each flag fetches beside the model."""
_LATER_ALONE: Final = ("fps", "resolution", "natten")
"""Flags that the original's script does not know."""
SEVERAL_VALUES: Final = tuple(flag.name for flag in DOWNLOAD_FLAGS if flag.several)
"""Flags that take one or more values, which the parser must be told beforehand."""


@takes(DOWNLOAD_FLAGS)
def download(**given: object) -> int:
    """Fetch released checkpoints with all that a command needs, as the reference's scripts do.

    That is the model's file, its VAE, T5 as an encoder, the guardrail, and the prompt upsampler of
    the generation that the flags belong to; --dry_run lists them with their sizes, the --leave_
    flags leave some out. Only what is needed, at the commits that NVIDIA's own code uses, checked
    against the hub's digests; a broken download goes on where it stopped. Needs a hub token (hf
    auth login) and the terms accepted on the pages of the models. Where the hub refuses what stands
    beside the model, the rest is fetched, and the exit code is 1.
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
        plan = plan_download(
            **choices,
            text_encoder=not flags.get("leave_text_encoder"),
            companions=companions_of(flags),
        )
        display.stage("ask the hub", "end", None)
        if not flags.get("dry_run"):
            progress = _Progress(plan.missing_bytes, display.amount)
            fetch(
                plan,
                on_file=lambda file: display.stage(f"{file.repo_id}/{file.name}", "start", None),
                on_bytes=progress.add,
            )
    refused = [in_flags(message_of(error), DOWNLOAD_FLAGS) for error in plan.refused]
    code = ExitCode.FAILED if refused else ExitCode.OK
    if flags.get("json"):
        status: dict[str, Any] = {"status": code.name.lower(), "exit_code": int(code)}
        if refused:
            kind = type(plan.refused[0]).__name__
            status["error"] = {"type": kind, "message": "; ".join(refused)}
        print_json({**status, **described(plan)})
    elif flags.get("dry_run"):
        print_rows(
            (f"{file.size / 1e9:8.2f} GB", "to fetch" if file in plan.missing else "is there",
             str(file.target))
            for file in plan.files
        )  # fmt: skip
        print(f"{plan.missing_bytes / 1e9:8.2f} GB to fetch of {plan.total_bytes / 1e9:.2f} GB")
    else:
        print(plan.folder)
    for message in refused:
        print(f"error: {message}", file=sys.stderr)
    return code


def companions_of(flags: Mapping[str, Any]) -> list[str]:
    """The repositories that are fetched beside the model: asked for, or what a command needs.

    Raises:
        UsageError: flags contradict each other.
    """
    upsamplers = [name for name in ("prompt_upsampler", "prompt_refiner") if flags.get(name)]
    for leave, given in (
        ("leave_guardrail", ["guardrail"] if flags.get("guardrail") else []),
        ("leave_upsampler", upsamplers),
    ):
        if flags.get(leave) and given:
            raise UsageError(f"--{leave} and --{given[0]} contradict each other; give one of them")
    wanted = [] if flags.get("leave_guardrail") else ["guardrail"]
    makes_videos = "video2world" in flags.get("model_types", ("video2world",))
    if not upsamplers and makes_videos and not flags.get("leave_upsampler"):
        original = "checkpoint_dir" in flags and not any(name in flags for name in _LATER_ALONE)
        upsamplers = ["prompt_upsampler" if original else "prompt_refiner"]
    return [repo_id for name in (*wanted, *upsamplers) for repo_id in _COMPANIONS[name]]


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
