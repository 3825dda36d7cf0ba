"""Turns a training run into the checkpoint that ships: ``python -m tools.pusherworld.export RUN``.

A folder in diffusers' layout in bfloat16, without a text encoder. ``assets/pusherworld`` is
replaced as a whole once everything was read back, and found by its name from then on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from tools.ballworld.networks import part, read
from tools.pusherworld.networks import DIT, profile_of

from cosmos_fast.files import TEMPORARY_PREFIX
from cosmos_fast.weights import dit_keys, find_checkpoint, load_dit, load_vae, vae_keys
from cosmos_fast.weights.diffusers_folder import write_descriptions
from cosmos_fast.weights.layout import DIFFUSERS_WEIGHTS
from cosmos_fast.weights.tensor_writers import Spec, write_safetensors

ASSETS: Final = Path(__file__).resolve().parents[2] / "python" / "cosmos_fast" / "assets"
SIZE_LIMIT: Final = 10_000_000
"""Bytes of all files together."""


def export(source: Path, destination: Path) -> int:
    """Replaces ``destination`` by the checkpoint of the run in ``source``; returns its bytes.

    Raises:
        ValueError: what was written is not what is read back, or too large.
    """
    report = json.loads((source / "report.json").read_text())
    with safe_open(source / "vae.safetensors", "pt") as file:
        about = file.metadata()
    statistics = json.loads(about["latents_mean"]), json.loads(about["latents_std"])
    profile = profile_of(statistics, report["num_steps"])
    dit = part(read(source / "dit_average.safetensors"), "dit.")
    vae = part(read(source / "vae.safetensors"), "average.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=destination.parent) as temporary:
        folder = Path(temporary, destination.name)
        folder.mkdir()
        write_descriptions(folder, profile)
        for name, tensors in (
            ("transformer", dit_keys.diffusers_keys(DIT).rename(dit)),
            ("vae", vae_keys.diffusers_keys(profile.vae).rename(vae)),
        ):
            held = {key: each.to(torch.bfloat16).contiguous() for key, each in tensors.items()}
            specs = {key: Spec(tuple(each.shape), torch.bfloat16) for key, each in held.items()}
            write_safetensors(folder / name / DIFFUSERS_WEIGHTS, specs, held.__getitem__)
        (folder / "README.md").write_text(_card(report))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        files = find_checkpoint(folder)
        for ours, theirs in (
            (dit, load_dit(files, "cpu", torch.bfloat16)),
            (vae, load_vae(files, "cpu", torch.bfloat16)),
        ):
            if wrong := [key for key in ours if not torch.equal(ours[key].bfloat16(), theirs[key])]:
                raise ValueError(f"{wrong} differ after writing")
        if files.profile != profile or size > SIZE_LIMIT:
            raise ValueError(f"{size} bytes of at most {SIZE_LIMIT}, read as {files.profile}")
        if destination.exists():
            shutil.rmtree(destination)
        folder.rename(destination)
    return size


def _card(report: dict[str, object]) -> str:
    return (
        "# pusherworld\n\nA toy model: a disc, driven by a planar velocity, pushes a block over a "
        "table, seen from above at 96 x 96, 10 frames a second, in chunks of 12 actions. Trained "
        "from nothing on frames that MuJoCo rendered (tools/pusherworld). It shows how worlds are "
        "used; it proves nothing about NVIDIA's checkpoints, of which it holds no part.\n\n"
        "Median distance in pixels on the validation episodes, by solver steps, beside a still "
        f"picture:\n\n```\n{json.dumps(report['validation'], indent=1)}\n```\n"
    )


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder that tools.pusherworld.train wrote")
    parser.add_argument("--to", type=Path, default=ASSETS / "pusherworld")
    arguments = parser.parse_args(words)
    print(f"{export(arguments.run, arguments.to)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
