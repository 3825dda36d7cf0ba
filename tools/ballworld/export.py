"""Turns a training run into the checkpoint that ships: a diffusers pipeline folder in bfloat16.

``python -m tools.ballworld.export outputs/ballworld`` replaces ``assets/ballworld`` as a whole,
once what was written has been read back by this package and by diffusers and transformers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from safetensors import safe_open
from tools.ballworld.networks import DIT, RAW_VAE, part, read
from tools.ballworld.text import t5_config
from tools.ballworld.words import tokenizer

from cosmos_fast.ballworld import FPS, NUM_FRAMES, SIZE
from cosmos_fast.config import Profile
from cosmos_fast.files import TEMPORARY_PREFIX
from cosmos_fast.weights import (
    dit_keys,
    find_checkpoint,
    load_dit,
    load_text_encoder,
    load_vae,
    vae_keys,
)
from cosmos_fast.weights import text_keys as t5_keys
from cosmos_fast.weights.diffusers_folder import write_descriptions, write_json
from cosmos_fast.weights.layout import DIFFUSERS_WEIGHTS
from cosmos_fast.weights.tensor_writers import Spec, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    State = Mapping[str, torch.Tensor]

ASSETS: Final = Path(__file__).resolve().parents[2] / "python" / "cosmos_fast" / "assets"
CARD: Final = Path(__file__).with_name("card.md")
MANIFEST: Final = "manifest.json"
SIZE_LIMIT: Final = 18_000_000
"""Bytes of all files together."""


class Run(NamedTuple):
    """What a training run left, under the package's own names, and the profile it implies."""

    dit: State
    vae: State
    text: State
    profile: Profile
    report: dict[str, Any]


def read_run(folder: Path) -> Run:
    """The moving averages of a run, and the settings that it chose on its validation scenes."""
    report = json.loads((folder / "report.json").read_text())
    chosen = report["held_out"]["settings"]
    with safe_open(folder / "vae.safetensors", "pt") as file:
        about = file.metadata()
    both = read(folder / "dit_average.safetensors")
    profile = Profile(
        name="ballworld",
        size=SIZE,
        num_frames=NUM_FRAMES,
        fps=FPS,
        dit=DIT,
        vae=replace(
            RAW_VAE,
            latents_mean=tuple(json.loads(about["latents_mean"])),
            latents_std=tuple(json.loads(about["latents_std"])),
        ),
        num_steps=chosen["num_steps"],
        guidance=chosen["guidance"],
        toy=True,
    )
    return Run(
        dit=part(both, "dit."),
        vae=part(read(folder / "vae.safetensors"), "average."),
        text=part(both, "text."),
        profile=profile,
        report=report,
    )


def write_checkpoint(run: Run, folder: Path) -> None:
    """Writes every file of the checkpoint into the empty ``folder``."""
    write_descriptions(folder, run.profile)
    config = t5_config().to_diff_dict() | {"architectures": ["T5EncoderModel"], "dtype": "bfloat16"}
    config.pop("transformers_version", None)
    write_json(folder / "text_encoder" / "config.json", config)
    text = t5_keys.text_keys(t5_keys.read_config(config, folder), ())
    for path, tensors in (
        (f"transformer/{DIFFUSERS_WEIGHTS}", dit_keys.diffusers_keys(DIT).rename(run.dit)),
        (f"vae/{DIFFUSERS_WEIGHTS}", vae_keys.diffusers_keys(run.profile.vae).rename(run.vae)),
        ("text_encoder/model.safetensors", text.rename(run.text)),
    ):
        specs = {name: Spec(tuple(each.shape), torch.bfloat16) for name, each in tensors.items()}
        write_safetensors(folder / path, specs, _in_bfloat16(tensors))
    tokenizer().save_pretrained(folder / "tokenizer")
    figures = run.report["held_out"]
    (folder / "README.md").write_text(
        CARD.read_text().format(
            steps=run.profile.num_steps,
            guidance=run.profile.guidance,
            psnr=figures["vae_psnr"],
            direction=figures["tracking"]["direction"],
            **{
                f"{group}_{frame}": figures["tracking"][group][frame]
                for group in ("all", "one_ball", "two_balls")
                for frame in ("frame_8", "frame_16", "frame_32")
            },
        )
    )


def write_manifest(folder: Path) -> None:
    """Names the size and SHA-256 of every other file of ``folder``."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"files": files})


def check(folder: Path, run: Run) -> None:
    """Reads everything back, strictly.

    Raises:
        ValueError: a loader misses a tensor, has one too many, or sees other values.
    """
    files = find_checkpoint(folder)
    if files.profile != run.profile:
        raise ValueError(f"read back as {files.profile}, written was {run.profile}")
    for name, ours, theirs in (
        ("transformer", run.dit, load_dit(files, "cpu", torch.bfloat16)),
        ("vae", run.vae, load_vae(files, "cpu", torch.bfloat16)),
        ("text encoder", run.text, load_text_encoder(files, "cpu")[1]),
    ):
        wrong = [key for key in ours if not torch.equal(ours[key], theirs[key])]
        if wrong or ours.keys() != theirs.keys():
            raise ValueError(f"{name}: {wrong or ours.keys() ^ theirs.keys()} differ after writing")
    load_elsewhere(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > SIZE_LIMIT:
        raise ValueError(f"{size} bytes; at most {SIZE_LIMIT} were promised")


def load_elsewhere(folder: Path) -> dict[str, torch.nn.Module]:
    """Loads the networks through diffusers and transformers.

    Raises:
        ValueError: a tensor is missing, too many or misshapen.
    """
    from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
    from transformers import T5EncoderModel

    loaded: dict[str, torch.nn.Module] = {}
    for kind, name in (
        (CosmosTransformer3DModel, "transformer"),
        (AutoencoderKLWan, "vae"),
        (T5EncoderModel, "text_encoder"),
    ):
        loaded[name], told = kind.from_pretrained(folder / name, output_loading_info=True)
        if odd := {key: found for key, found in told.items() if found}:
            raise ValueError(f"{kind.__name__}: {odd}")
    return loaded


def export(source: Path, destination: Path) -> None:
    """Replaces ``destination`` by the checkpoint of the run in ``source``, or leaves it alone."""
    run = read_run(source)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=destination.parent) as temporary:
        folder = Path(temporary, destination.name)
        folder.mkdir()
        write_checkpoint(run, folder)
        write_manifest(folder)
        check(folder, run)
        if destination.exists():
            shutil.rmtree(destination)
        folder.rename(destination)


def _in_bfloat16(tensors: State) -> Any:
    return lambda name: tensors[name].to(torch.bfloat16).contiguous()


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder that tools.ballworld.train wrote")
    parser.add_argument("--to", type=Path, default=ASSETS / "ballworld")
    arguments = parser.parse_args(words)
    export(arguments.run, arguments.to)
    print((arguments.to / MANIFEST).read_text(), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
