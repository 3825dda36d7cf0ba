"""Every flag of ``video2world``: the original document's, the later tool's, and our own."""

from __future__ import annotations

from typing import Final

from cosmos_fast.cli.flags import (
    AMOUNT,
    Choice,
    Flag,
    FrameCount,
    Integer,
    Location,
    Number,
    Pattern,
    Target,
    Text,
    Word,
)

_INPUT: Final = "Input and prompt"
_MODEL: Final = "Model"
_VIDEO: Final = "Video"
_OUTPUT: Final = "Output"
_GUARD: Final = "Prompt upsampler and guardrail"
_MACHINE: Final = "Machine"
_OFFLOAD: Final = "Offloading"
_RUN: Final = "This run"
_IDLE: Final = "Accepted, without effect"

VIDEO2WORLD_FLAGS: Final[tuple[Flag, ...]] = (
    Flag("input_path", Location(), "Picture or video to continue.", _INPUT),
    Flag(
        "input_image_or_video_path",
        Location(),
        "The same, in the original's words (original).",
        _INPUT,
    ),
    Flag("prompt", Text(), "What happens in the video.", _INPUT),
    Flag(
        "negative_prompt",
        Text(),
        "What the video should not look like; empty text turns guidance off. "
        "Default: the model's own.",
        _INPUT,
    ),
    Flag(
        "num_conditional_frames",
        Choice(("1", "5"), int),
        "Frames taken from the end of the input: 1, or 5 of a video. Default: 1.",
        _INPUT,
    ),
    Flag(
        "num_input_frames",
        Choice(("1", "5", "9"), int),
        "The same (original); the released models have not learnt 9.",
        _INPUT,
    ),
    Flag(
        "fit",
        Choice(("cover", "stretch"), name="FIT"),
        "cover: keep the aspect and cut the overhang; stretch: resize to the very size. "
        "Default: cover, original: stretch.",
        _INPUT,
    ),
    Flag(
        "model",
        Word(metavar="HUB_ID|PATH"),
        "Hub id, folder or file of a checkpoint in any layout, or ballworld or pusherworld.",
        _MODEL,
    ),
    Flag(
        "variant",
        Word(),
        "Which checkpoint where a repository or folder holds several, as in 480p-16fps.",
        _MODEL,
    ),
    Flag("vae", Location(), "VAE file or folder, in place of the one beside the model.", _MODEL),
    Flag("text_encoder", Location(), "T5 folder, in place of the one found.", _MODEL),
    Flag("tokenizer", Location(), "T5 tokenizer folder, in place of the one found.", _MODEL),
    Flag("revision", Word(metavar="COMMIT"), "Commit or tag of the hub repository.", _MODEL),
    Flag("local_files_only", None, "Make no connection: take what the hub cache holds.", _MODEL),
    Flag(
        "model_size",
        Choice(("2B", "14B")),
        "Size of the released model. Default: 2B.",
        _MODEL,
    ),
    Flag(
        "resolution",
        Choice(("480", "720"), int),
        "Size class: chooses the released checkpoint and, with --aspect_ratio, height and width. "
        "Default: 720.",
        _MODEL,
    ),
    Flag(
        "dit_path",
        Location(),
        "Transformer file in place of the released one of that size, resolution and rate.",
        _MODEL,
    ),
    Flag(
        "load_ema",
        None,
        "Take the averaged weights of a training checkpoint.",
        _MODEL,
    ),
    Flag("natten", None, "Take the sparse-attention checkpoint (not yet).", _MODEL),
    Flag(
        "checkpoint_dir",
        Location(),
        "Folder below which model folders are looked up (original). Default: checkpoints.",
        _MODEL,
    ),
    Flag(
        "diffusion_transformer_dir",
        Location(),
        "Model folder below --checkpoint_dir (original). Default: that of the released 2B.",
        _MODEL,
    ),
    Flag("aspect_ratio", Choice(("1:1", "4:3", "3:4", "16:9", "9:16")), "Default: 16:9.", _VIDEO),
    Flag("height", Integer(1, 1920), "Pixels, rounded up to 16. Original: 704.", _VIDEO),
    Flag("width", Integer(1, 1920), "Pixels, rounded up to 16. Original: 1280.", _VIDEO),
    Flag(
        "num_video_frames",
        FrameCount(),
        "Length in frames, 1 more than a multiple of 4. Default: the model's, original: 121.",
        _VIDEO,
    ),
    Flag(
        "fps",
        Number(above=True),
        "Frame rate of the file. Without --model, 10 and 16 also choose the released checkpoint "
        "and its length. Default: the model's, original: 24.",
        _VIDEO,
    ),
    Flag(
        "num_steps", Integer(1, 1000), "Solver steps. Default: the model's, 35 if released.", _VIDEO
    ),
    Flag("guidance", Number(), "Default: the model's, 7 if released.", _VIDEO),
    Flag("seed", Integer(0, 2**32 - 1), "Default: 0, original: 1.", _VIDEO),
    Flag(
        "save_path",
        Target(),
        "The .mp4 to write, or, without loss, .mkv, .npy or FOLDER/%05d.png; with .txt and .json "
        "beside it. Default: output/generated_video.mp4.",
        _OUTPUT,
    ),
    Flag(
        "video_save_name",
        Word(),
        "Name of the mp4 without its ending (original). Default: output.",
        _OUTPUT,
    ),
    Flag(
        "video_save_folder", Location(), "Folder of the mp4 (original). Default: outputs.", _OUTPUT
    ),
    Flag(
        "crf",
        Integer(0, 51),
        "H.264 quality, 0 (best) to 51. Default: 15, original: 25.",
        _OUTPUT,
    ),
    Flag("batch_input_json", Location(), "JSON list of videos to make; see batch.", _OUTPUT),
    Flag("batch_input_path", Location(), "The same as JSON lines (original).", _OUTPUT),
    Flag("input_root", Location(), "Folder that the list's inputs lie below. Default: .", _OUTPUT),
    Flag("resume", None, "Keep what earlier runs of the list finished, and go on.", _OUTPUT),
    Flag(
        "disable_prompt_upsampler",
        None,
        "Take the prompt as it is (original). Otherwise the upsampler rewrites it.",
        _GUARD,
    ),
    Flag(
        "disable_prompt_refiner",
        None,
        "Take the prompt as it is. Otherwise the upsampler rewrites it.",
        _GUARD,
    ),
    Flag("offload_prompt_upsampler", None, "Park the upsampler in host memory (original).", _GUARD),
    Flag("offload_prompt_refiner", None, "Park the upsampler in host memory.", _GUARD),
    Flag(
        "prompt_upsampler_dir",
        Location(),
        "Model of the upsampler, below --checkpoint_dir (original). Default: "
        "nvidia/Cosmos-Reason1-7B if it is there, original: Qwen/Qwen2.5-VL-7B-Instruct.",
        _GUARD,
    ),
    Flag("disable_guardrail", None, "Run without guardrail; the manifest says so.", _GUARD),
    Flag("require_guardrail", None, "Check toy worlds as well.", _GUARD),
    Flag(
        "offload_guardrail_models",
        None,
        "Read the guardrail's networks for each use and drop them (original).",
        _GUARD,
    ),
    Flag("offload_guardrail", None, "Park the guardrail's networks in host memory.", _GUARD),
    Flag(
        "device",
        Pattern(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N", "DEVICE"),
        "auto, cpu, cuda or cuda:N. Default: auto.",
        _MACHINE,
    ),
    Flag(
        "precision",
        Choice(("auto", "bf16", "fp32"), name="KIND"),
        "bf16, fp32, or auto: bf16 on a GPU. Default: auto.",
        _MACHINE,
    ),
    Flag(
        "memory",
        Pattern(rf"auto|resident|{AMOUNT}", "auto, resident, or an amount such as 12GiB", "AMOUNT"),
        "This run's whole share of device memory: an amount such as 8GiB (weights that do not fit "
        "are streamed), auto (what is free), or resident. Default: auto.",
        _MACHINE,
    ),
    Flag(
        "host_memory",
        Pattern(AMOUNT, "an amount such as 32GiB", "AMOUNT"),
        "RAM that it may take, such as 32GiB, in each process: weights that fit neither there nor "
        "on the device are read from their files again and again. Default: what is free.",
        _MACHINE,
    ),
    Flag(
        "rope_table",
        Choice(("reference", "float32"), name="TABLE"),
        "Position table: reference, rounded as NVIDIA's code does, or float32, exact. Default: "
        "reference.",
        _MACHINE,
    ),
    Flag(
        "num_gpus",
        Integer(1),
        "GPUs: of one video they share the work, a process each; of a list each makes videos by "
        "itself. Default: 1, or as many as torchrun started.",
        _MACHINE,
    ),
    Flag(
        "offload_diffusion_transformer",
        None,
        "It leaves the device after use; kept in RAM (original: read again).",
        _OFFLOAD,
    ),
    Flag("offload_tokenizer", None, "The same for the VAE (original).", _OFFLOAD),
    Flag("offload_text_encoder_model", None, "The same for T5 (original).", _OFFLOAD),
    Flag("offload_text_encoder", None, "The same for T5.", _OFFLOAD),
    Flag(
        "downcast_text_encoder",
        None,
        "Run T5 in bf16, whatever it is stored in.",
        _MACHINE,
    ),
    Flag(
        "use_cuda_graphs",
        None,
        "Nothing more to do: short clips are replayed as CUDA graphs.",
        _MACHINE,
    ),
    Flag("benchmark", None, "Make the video three more times; report the mean.", _MACHINE),
    Flag("config", Location(), "TOML file of flags, by the same names; flags override it.", _RUN),
    Flag("dry_run", None, "Print the resolved settings, check every path, and stop.", _RUN),
    Flag("json", None, "Print one JSON object on stdout.", _RUN),
    Flag("debug", None, "Show the traceback of an error.", _RUN),
    Flag("tokenizer_dir", Location(), "Left over from Predict1 (original).", _IDLE),
    Flag("image_save_name", Word(), "Belongs to text2image (original).", _IDLE),
    Flag("image_save_folder", Location(), "Belongs to text2image (original).", _IDLE),
)
"""In the order of ``--help``."""

ORIGINAL_GENERATION_FLAGS: Final = (
    "checkpoint_dir",
    "diffusion_transformer_dir",
    "input_image_or_video_path",
    "num_input_frames",
    "video_save_name",
    "video_save_folder",
    "batch_input_path",
)
"""Any of these means that the command is one of the original's."""

OF_LISTS: Final = frozenset(
    {"batch_input_path", "batch_input_json", "input_root", "resume", "num_gpus", "benchmark"}
)
"""Flags that are about many videos, or one alone, or mean something else there."""

SHARED_GPUS: Final = Flag(
    "num_gpus",
    Integer(1),
    "GPUs that share the work of each clip, a process each. Default: 1, or as many as torchrun "
    "started.",
    _MACHINE,
)
"""``--num_gpus`` of commands that make several clips, one after the other."""

EXCLUSIVE_FLAGS: Final[tuple[tuple[str, ...], ...]] = (
    ("input_path", "input_image_or_video_path"),
    ("num_conditional_frames", "num_input_frames"),
    ("model", "dit_path", "diffusion_transformer_dir"),
    ("model", "model_size"),
    ("diffusion_transformer_dir", "model_size"),
    ("save_path", "video_save_name"),
    ("save_path", "video_save_folder"),
    ("batch_input_json", "batch_input_path"),
    *(
        (of_list, of_one)
        for of_list in ("batch_input_json", "batch_input_path")
        for of_one in ("input_path", "input_image_or_video_path", "save_path", "video_save_name")
    ),
    ("disable_guardrail", "require_guardrail"),
)
"""Flags that say the same thing in different words: at most one of each group."""
