"""``cosmos-fast convert``: a checkpoint in another layout, checked tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cosmos_fast.cli.exits import ExitCode
from cosmos_fast.cli.flags import Choice, Flag, Location, Word, parse_flags, takes
from cosmos_fast.cli.output import print_json

CONVERT_FLAGS: Final = (
    Flag(
        "to",
        Choice(("diffusers", "nvidia", "file")),
        "diffusers or nvidia: a folder; file: the transformer alone, .safetensors or .pt, under "
        "NVIDIA's names. Default: diffusers, or file where DESTINATION ends so.",
    ),
    Flag(
        "variant",
        Word(),
        "Which checkpoint where SOURCE holds several, as in 480p-16fps.",
    ),
    Flag("revision", Word(metavar="COMMIT"), "Commit or tag of the hub repository."),
    Flag("checkpoint_dir", Location(), "Folder below which VAE and T5 are looked up as well."),
    Flag("vae", Location(), "VAE file or folder, in place of the one found."),
    Flag("text_encoder", Location(), "T5 folder, in place of the one found."),
    Flag("tokenizer", Location(), "T5 tokenizer folder, in place of the one found."),
    Flag("load_ema", None, "Take the averaged weights of a training checkpoint."),
    Flag("plain_names", None, "NVIDIA's names without net. before them."),
    Flag("leave_text_encoder", None, "Do not bring the text encoder along."),
    Flag(
        "text_precision",
        Choice(("stored", "bf16", "fp32")),
        "Of the text encoder that is written. Default: stored.",
    ),
    Flag("local_files_only", None, "Make no connection: take what the hub cache holds."),
    Flag("json", None, "Print one JSON object on stdout."),
    Flag("debug", None, "Show the traceback of an error."),
)


@takes(CONVERT_FLAGS)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Hub id, folder or file of a checkpoint.")
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="Folder or file that is not there yet.")
    ],
    **given: object,
) -> int:
    """Write a checkpoint in another layout: NVIDIA's, diffusers', or a single file.

    Values keep their bytes. Everything is read back and compared before it appears under its name.
    """
    import torch

    from cosmos_fast.cli.progress import showing
    from cosmos_fast.weights import find_checkpoint
    from cosmos_fast.weights.convert import convert as write

    flags = parse_flags(CONVERT_FLAGS, given)
    is_file = destination.suffix in (".safetensors", ".pt")
    dtypes: dict[str, Any] = {"stored": None, "bf16": torch.bfloat16, "fp32": torch.float32}
    with showing() as display:
        files = find_checkpoint(
            source,
            variant=flags.get("variant"),
            revision=flags.get("revision"),
            local_files_only=flags.get("local_files_only", False),
            checkpoint_root=flags.get("checkpoint_dir"),
            vae=flags.get("vae"),
            text_encoder=flags.get("text_encoder"),
            tokenizer=flags.get("tokenizer"),
            ema=flags.get("load_ema", False),
        )
        display.say(f"found {files.profile.name}, {files.layout} layout: {files.dit}")
        write(
            files,
            destination,
            flags.get("to", "file" if is_file else "diffusers"),
            prefix="" if flags.get("plain_names") else "net.",
            text_encoder=not flags.get("leave_text_encoder"),
            text_dtype=dtypes[flags.get("text_precision", "stored")],
            on_file=lambda name: display.say(f"wrote and compared {name}"),
        )
    if flags.get("json"):
        print_json({"status": "ok", "exit_code": 0, "destination": str(destination)})
    else:
        print(destination)
    return ExitCode.OK
