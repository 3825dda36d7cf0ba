"""Finding, verifying, naming and loading checkpoints."""

from cosmos_fast.weights.companions import (
    companion_roots,
    find_guardrail,
    find_upsampler,
    weight_bytes,
)
from cosmos_fast.weights.find import CheckpointFiles, digests, find_checkpoint, packaged_worlds
from cosmos_fast.weights.load import load_dit, load_text_encoder, load_vae, read_tensors

__all__ = [
    "CheckpointFiles",
    "companion_roots",
    "digests",
    "find_checkpoint",
    "find_guardrail",
    "find_upsampler",
    "load_dit",
    "load_text_encoder",
    "load_vae",
    "packaged_worlds",
    "read_tensors",
    "weight_bytes",
]
