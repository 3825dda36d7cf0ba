"""What a checkpoint implies: its description, its names or the caller say so. No guesses."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from cosmos_fast.config import VAEConfig
from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights.action_files import ACTIONS, read_actions
from cosmos_fast.weights.architecture import differences, diffusers_rope, diffusers_vae, infer_dit
from cosmos_fast.weights.dit_keys import Layout, detect
from cosmos_fast.weights.released import family_of, released_profile
from cosmos_fast.weights.sidecar import SIDECAR, read_sidecar
from cosmos_fast.weights.tensor_files import open_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_fast.config import DiTConfig, Profile
    from cosmos_fast.types import ActionSpec
    from cosmos_fast.weights.architecture import RopeScale
    from cosmos_fast.weights.layout import Candidate


def implied_profile(
    chosen: Candidate, vae: Path, given: Profile | None, ema: bool = False
) -> tuple[Layout, Profile]:
    """Whose names a transformer's tensors have, and the profile of its checkpoint.

    Args:
        chosen: the transformer.
        vae: the VAE's file; a config.json beside it describes it.
        given: the caller's word, which needs no other.
        ema: look at the moving average of the weights.

    Raises:
        CheckpointError: descriptions contradict each other or the tensors, or something that no
            tensor tells (size, rate, RoPE ratios) is said nowhere.
    """
    with open_tensors(chosen.dit) as file:
        names, _ = detect(file.entries, ema)
        inferred = infer_dit(file, ema)
    if given is not None:
        if found := "; ".join(differences(inferred, given.dit)):
            raise CheckpointError(f"{chosen.dit}: does not fit the given profile ({found})")
        return names, given
    described = chosen.home / SIDECAR
    rope = None
    beside = chosen.dit.parent / "config.json"
    if names == "diffusers" and beside.is_file():
        rope, limit = diffusers_rope(beside)
        inferred = dataclasses.replace(inferred, max_size=limit)
    vae_json = vae.parent / "config.json"
    stated = diffusers_vae(vae_json) if vae_json.is_file() else None
    actions = _actions_beside(chosen)
    if described.is_file():
        return names, _from_sidecar(described, inferred, rope, stated, actions)
    family = family_of(chosen.dit)
    profile = released_profile(chosen.dit, chosen.variant, inferred, family, actions)
    if profile is None:
        raise CheckpointError(
            f"{chosen.dit}: {inferred.num_layers} layers of width {inferred.width} and the name "
            f"{chosen.variant!r} do not tell which resolution, frame rate and RoPE ratios it was "
            f"trained with. Describe it in {described}, or give variant= (such as '480p-16fps') or "
            f"profile="
        )
    if rope is not None and rope != profile.dit.rope_scale:
        raise CheckpointError(
            f"{beside}: rope_scale = {list(rope)}, but {profile.name} has "
            f"{list(profile.dit.rope_scale)}; describe the model in {described}"
        )
    return names, dataclasses.replace(profile, vae=stated) if stated else profile


def _actions_beside(chosen: Candidate) -> ActionSpec | None:
    for folder in (chosen.dit.parent, chosen.home):
        if (folder / ACTIONS).is_file():
            return read_actions(folder / ACTIONS)
    return None


def _from_sidecar(
    path: Path,
    inferred: DiTConfig,
    rope: RopeScale | None,
    stated: VAEConfig | None,
    actions: ActionSpec | None,
) -> Profile:
    sidecar = read_sidecar(path)
    if actions is not None:
        if sidecar.actions not in (None, actions):
            raise CheckpointError(f"{path}: its actions differ from those of {ACTIONS} beside it")
        sidecar = dataclasses.replace(sidecar, actions=actions)
    ratios = sidecar.rope_scale or rope
    if ratios is None:
        raise CheckpointError(f"{path}: rope_scale is missing, and no config.json tells it either")
    if rope is not None and rope != ratios:
        raise CheckpointError(
            f"{path}: rope_scale = {list(ratios)}, but config.json beside the weights "
            f"says {list(rope)}"
        )
    if stated is not None and sidecar.vae not in (None, stated):
        raise CheckpointError(f"{path}: vae differs from the config.json beside the VAE's weights")
    dit = dataclasses.replace(
        inferred, rope_scale=ratios, max_size=sidecar.max_size or inferred.max_size
    )
    return sidecar.profile(dit, stated or sidecar.vae or VAEConfig())
