"""Finding, verifying, naming and loading checkpoints."""

from cosmos_fast.weights.find import CheckpointFiles, digests, find_checkpoint, packaged_worlds
from cosmos_fast.weights.load import load_dit, load_text_encoder, load_vae

__all__ = [
    "CheckpointFiles",
    "digests",
    "find_checkpoint",
    "load_dit",
    "load_text_encoder",
    "load_vae",
    "packaged_worlds",
]
