"""The commands of the original's document, and a place in which they can be run."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from random_world import RANDOM_PROFILE, make_random_world

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "Rain falls on an empty harbour while a small ferry leaves the quay."
NEGATIVE = "Blurred and shaking."
EXAMPLE_1 = f"""
    --checkpoint_dir checkpoints
    --input_image_or_video_path assets/video2world/input0.jpg
    --num_input_frames 1
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --offload_prompt_upsampler
    --disable_prompt_upsampler
    --disable_guardrail
    --prompt "{PROMPT}"
    --negative_prompt "{NEGATIVE}"
    --height 432 --width 768 --num_video_frames 81
    --num_steps 35
    --video_save_name video2world_2b
"""
EXAMPLE_1B = f"""
    --checkpoint_dir checkpoints
    --prompt_upsampler_dir Qwen/Qwen2.5-VL-7B-Instruct
    --input_image_or_video_path assets/video2world/input0.jpg
    --num_input_frames 1
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --offload_prompt_upsampler
    --disable_guardrail
    --prompt "A harbour in the rain."
    --negative_prompt "{NEGATIVE}"
    --height 432 --width 768 --num_video_frames 81
    --num_steps 35
    --video_save_name video2world_2b_prompt_upsampled
"""
HIDDEN_2 = """
    --checkpoint_dir checkpoints
    --diffusion_transformer_dir Cosmos-Predict2-14B-Video2World
    --input_image_or_video_path assets/diffusion/video2world_input0.jpg
    --num_input_frames 1
    --offload_tokenizer
    --offload_diffusion_transformer
    --offload_text_encoder_model
    --offload_prompt_upsampler
    --offload_guardrail_models
    --video_save_name diffusion-video2world-14b
"""
HIDDEN_3 = """
    --num_gpus 8
    --checkpoint_dir checkpoints
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --input_image_or_video_path assets/diffusion/video2world_input0.jpg
    --num_input_frames 1
    --offload_prompt_upsampler
    --video_save_name diffusion-video2world-2b
"""
HIDDEN_4 = """
    --checkpoint_dir checkpoints
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --batch_input_path assets/diffusion/batch_inputs/video2world_ps.jsonl
    --num_input_frames 9
    --offload_prompt_upsampler
    --video_save_folder diffusion-video2world-2b-batch
"""
HIDDEN_5 = """
    --checkpoint_dir checkpoints
    --diffusion_transformer_dir Cosmos-Predict2-2B-Video2World
    --batch_input_path assets/diffusion/batch_inputs/video2world_wo_ps.jsonl
    --num_input_frames 9
    --disable_prompt_upsampler
    --video_save_folder diffusion-video2world-2b-batch-wo-ps
"""


def words(command: str) -> list[str]:
    return ["video2world", *shlex.split(command)]


def make_released(root: Path) -> Path:
    """A checkpoint folder as the original's download leaves it, with small random models."""
    profile = replace(RANDOM_PROFILE, toy=False)
    for size in ("2B", "14B"):
        make_random_world(root / f"Cosmos-Predict2-{size}-Video2World", profile)
    return root


def furnish(folder: Path, released: Path) -> None:
    """Puts every path of the original's commands into ``folder``."""
    (folder / "checkpoints").symlink_to(released)
    for name in ("assets/video2world/input0.jpg", "assets/diffusion/video2world_input0.jpg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
        Image.fromarray(picture).save(path)
