"""``cosmos-fast plan``: what a video needs of a card, before anything is fetched or bought."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.exits import ExitCode, UsageError
from cosmos_fast.cli.flags import (
    AMOUNT,
    Choice,
    Flag,
    FrameCount,
    Integer,
    Location,
    Number,
    Pattern,
    Word,
    parse_flags,
    takes,
)
from cosmos_fast.cli.output import print_json, print_rows
from cosmos_fast.cli.resolve import OFFLOADS

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast import Plan

_STAGES: Final = ("text", "encode", "denoise", "decode")

PLAN_FLAGS: Final = (
    Flag("model", Word(), "Hub id, or a path with a released model's name."),
    Flag(
        "model_size",
        Choice(("2B", "14B"), name="SIZE"),
        "2B or 14B, instead of --model. Default: 2B.",
    ),
    Flag("variant", Word(), "Such as 720p-16fps. Default: 480p-16fps."),
    Flag("gpu", Word(), "A card's name, or measured: the one in this machine. See --list_cards."),
    Flag("list_cards", None, "List the cards that have names, and stop."),
    Flag(
        "memory",
        Pattern(rf"auto|resident|{AMOUNT}", "auto, resident, or an amount such as 8GiB", "AMOUNT"),
        "What the video may take of the card, everything counted: auto is all of it, resident "
        "keeps all weights there. Default: auto.",
    ),
    Flag(
        "host_memory",
        Pattern(AMOUNT, "an amount such as 32GiB", "AMOUNT"),
        "RAM that it may take; what does not fit is read from the files again and again. "
        "Default: as much as it likes.",
    ),
    Flag(
        "reserved",
        Pattern(AMOUNT, "an amount such as 17GiB", "AMOUNT"),
        "Of the card, for what is no part of the plan: the networks of a guardrail (about 17GiB of "
        "NVIDIA's) and of an upsampler, where they stay there. Default: nothing.",
    ),
    Flag("height", Integer(1), "Default: the variant's."),
    Flag("width", Integer(1), "Default: the variant's."),
    Flag("num_video_frames", FrameCount(), "Default: the variant's."),
    Flag("num_conditional_frames", FrameCount(), "Frames given. Default: 1."),
    Flag("num_steps", Integer(1, 1000), "Default: 35."),
    Flag("guidance", Number(), "0: one forward a step instead of two. Default: 7."),
    Flag(
        "text_precision",
        Choice(("bf16", "fp32", "none"), name="KIND"),
        "What T5 is stored in: bf16, fp32, or none where prompts are embedded already. "
        "Default: bf16.",
    ),
    Flag(
        "offload_diffusion_transformer",
        None,
        "It leaves the card when its stage ends.",
        "Offloading",
    ),
    Flag("offload_tokenizer", None, "The VAE leaves the card when its stage ends.", "Offloading"),
    Flag("offload_text_encoder", None, "T5 leaves the card when its stage ends.", "Offloading"),
    Flag("picture", Location(), "Draw slots and copies over time into this .svg or .png file."),
    Flag(
        "picture_stage",
        Choice(_STAGES, name="STAGE"),
        "To draw: text, encode, denoise or decode. Default: denoise.",
    ),
    Flag("json", None, "Print one JSON object on stdout."),
    Flag("debug", None, "Show the traceback of an error."),
)


@takes(PLAN_FLAGS)
def plan(**given: object) -> int:
    """Say what a video needs of a card: no GPU, no weights, nothing fetched.

    For each stage: the most device memory it takes, the weights that stay there meanwhile, how many
    blocks are streamed through how many slots, and how long it takes, with the time in which the
    card waits for weights. Then the smallest memory that would do. Guardrail and upsampler are not
    counted; --reserved leaves room for them. An example, for a card of 8 GB:

    cosmos-fast plan --model_size 2B --gpu rtx4090-pcie4x8 --memory 7GiB --height 432 --width 768

    Cards are known by their data sheets and a few measurements on an H200: times for others are
    estimates. A memory that is too small ends with exit code 1, and the plan for the smallest
    (with --json, below "plan" of the object).
    """
    flags = parse_flags(PLAN_FLAGS, given)
    if flags.get("list_cards"):
        return _list_cards(as_json=bool(flags.get("json")))
    picture = flags.get("picture")
    if picture is not None and picture.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"--picture: {str(picture)!r} is not the name of an .svg or .png file")
    if "model" in flags and "model_size" in flags:
        raise UsageError("--model and --model_size contradict each other; give one of them")
    if ("height" in flags) != ("width" in flags):
        raise UsageError("--height and --width go together; give both or neither")

    from cosmos_fast.errors import MemoryPlanError

    try:
        found = _planned(flags)
    except MemoryPlanError as error:
        if error.plan is not None and not flags.get("json"):
            print("the smallest that would do:", file=sys.stderr)
            print(error.plan.table(), file=sys.stderr)
        raise
    if picture is not None:
        _draw(found, picture, flags.get("picture_stage", "denoise"))
    if flags.get("json"):
        print_json({"status": "ok", "exit_code": 0, "plan": found.as_dict()})
    else:
        print(found.table())
    return ExitCode.OK


def _planned(flags: dict[str, Any]) -> Plan:
    import cosmos_fast as cf

    if "gpu" not in flags:
        raise UsageError(
            "--gpu: name a card (see --list_cards), or measured for the one in this machine"
        )
    size = flags.get("model_size", "2B")
    return cf.plan(
        flags.get("model", f"nvidia/Cosmos-Predict2-{size}-Video2World"),
        memory=flags.get("memory", "auto").lower(),
        gpu=flags["gpu"],
        size=(flags["height"], flags["width"]) if "height" in flags else None,
        num_frames=flags.get("num_video_frames"),
        num_conditional_frames=flags.get("num_conditional_frames", 1),
        num_steps=flags.get("num_steps"),
        guidance=flags.get("guidance"),
        variant=flags.get("variant"),
        host_memory=flags.get("host_memory"),
        reserved=flags.get("reserved", 0),
        text_dtype={"bf16": "bfloat16", "fp32": "float32", "none": "none"}[
            flags.get("text_precision", "bf16")
        ],  # type: ignore[arg-type]
        offload=[part for name in OFFLOADS if flags.get(name) for part in OFFLOADS[name]],
    )


def _draw(found: Plan, path: Path, stage: str) -> None:
    from cosmos_fast.files import write_atomically

    drawing = found.timeline(stage)
    data = drawing.png() if path.suffix.lower() == ".png" else drawing.svg().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def _list_cards(*, as_json: bool) -> int:
    from cosmos_fast.memory import CARDS

    if as_json:
        print_json(
            {"status": "ok", "exit_code": 0, "cards": {n: vars(c) for n, c in CARDS.items()}}
        )
        return ExitCode.OK
    print_rows(
        (
            card.name,
            f"{card.memory_bytes / 2**30:.1f} GiB",
            f"{card.bf16_flops / 1e12:.0f} TFLOP/s bf16",
            f"bus {card.bus_bytes_per_second / 1e9:.1f} GB/s",
        )
        for card in CARDS.values()
    )
    return ExitCode.OK
