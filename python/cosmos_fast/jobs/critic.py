"""The reference's critic of best-of-N: Cosmos-Reason1-7B, found, loaded and counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_fast.errors import CheckpointError, GatedRepoError
from cosmos_fast.jobs.best_of_n import Judgement, judgement_of
from cosmos_fast.parts import choose_device
from cosmos_fast.prompt.critic import QwenCritic
from cosmos_fast.weights import find_upsampler, read_tensors
from cosmos_fast.weights.companions import REASON1
from cosmos_fast.weights.hub import HubAccess

if TYPE_CHECKING:
    import os

    import torch

    from cosmos_fast.types import Frames


class ReasoningCritic:
    """A critic for :func:`judge`: asks whether a video holds anomalies, and counts the answers.

    17 GB of weights in bfloat16; read when the first video is judged.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = REASON1,
        *,
        checkpoint_root: str | os.PathLike[str] | None = "checkpoints",
        device: str | torch.device = "auto",
        token: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        """
        Args:
            model: a folder, by itself or below ``checkpoint_root``, or a hub id, of a Qwen2.5-VL
                model.
            checkpoint_root: where to look first; None looks nowhere else.
            device: "auto" is the current CUDA device where there is one, else the CPU.
            token, local_files_only: as ``Video2World.from_pretrained``'s.

        Raises:
            CheckpointError: the model is not there, and cannot be fetched.
            GatedRepoError: the hub refuses the repository.
            InputError: no such device.
        """
        place = choose_device(device)
        roots = [] if checkpoint_root is None else [Path(checkpoint_root).expanduser()]
        access = HubAccess(token, local_files_only=local_files_only)
        try:
            folder = find_upsampler(str(model), roots, access, role="critic")
        except GatedRepoError:
            raise
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Fetch it with cosmos-fast download --prompt_refiner, or judge with a "
                f"function of your own (--critic MODULE:NAME)"
            ) from error
        self._critic = QwenCritic(folder, place, read_tensors)

    def __call__(self, frames: Frames, *, trials: int, seed: int) -> Judgement:
        """
        Raises:
            CheckpointError: the model's files are damaged.
        """
        return judgement_of(self._critic(frames, trials=trials, seed=seed))
