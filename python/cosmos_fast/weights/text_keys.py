"""The text encoder's names: transformers' ``T5EncoderModel``, from encoders or whole T5 files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.config import T5Config
from cosmos_fast.errors import CheckpointError
from cosmos_fast.weights.key_map import KeyMap, Piece

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

EMBEDDING: Final = "shared.weight"
TIED_EMBEDDING: Final = "encoder.embed_tokens.weight"
"""The second name of the same tensor: files hold either, or both with equal values."""

_BUCKETS: Final = "relative_attention_num_buckets"
_DISTANCE: Final = "relative_attention_max_distance"
_EPSILON: Final = "layer_norm_epsilon"
_DECODER = (r"decoder\..*", r"lm_head\.weight")


def read_config(config: Mapping[str, Any], file: object) -> T5Config:
    """
    Args:
        config: what a transformers ``config.json`` holds.
        file: where it was read, for messages.

    Raises:
        CheckpointError: not T5 v1.0 (ReLU, not gated), or a size is missing or makes no sense.
    """
    if config.get("model_type") != "t5":
        raise CheckpointError(f"{file}: model_type = {config.get('model_type')!r}; t5 is needed")
    activation = config.get("feed_forward_proj", "relu")
    if activation != "relu":
        raise CheckpointError(
            f"{file}: feed_forward_proj = {activation!r}; Cosmos-Predict2 reads T5 v1.0 "
            f"(google-t5/t5-11b), whose feed-forward is 'relu', not T5 v1.1"
        )
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    sizes = {name: _size(config.get(name), name, file) for name in names}
    buckets = _size(config.get(_BUCKETS, 32), _BUCKETS, file, least=4)
    distance = _size(config.get(_DISTANCE, 128), _DISTANCE, file, least=buckets // 4 + 1)
    epsilon = config.get(_EPSILON, 1e-6)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise CheckpointError(f"{file}: {_EPSILON} = {epsilon!r}; a number such as 1e-6 is needed")
    return T5Config(**sizes, buckets=buckets, max_distance=distance, epsilon=epsilon)


def _size(value: object, name: str, file: object, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CheckpointError(f"{file}: {name} = {value!r}; a number of at least {least} is needed")
    return value


def text_keys(shape: T5Config, names: Collection[str]) -> KeyMap:
    """The layout of a T5 file; the embedding goes by whichever name is among ``names``."""
    embedding = EMBEDDING if EMBEDDING in names or TIED_EMBEDDING not in names else TIED_EMBEDDING
    targets = {ours: (Piece(ours, size),) for ours, size in _rows(shape)}
    targets[EMBEDDING] = (Piece(embedding, (shape.vocab_size, shape.d_model)),)
    return KeyMap("T5 encoder", targets, ignored=(*_DECODER, TIED_EMBEDDING.replace(".", r"\.")))


def _rows(shape: T5Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner = shape.num_heads * shape.d_kv
    yield EMBEDDING, (shape.vocab_size, shape.d_model)
    for index in range(shape.num_layers):
        attention = f"encoder.block.{index}.layer.0"
        for name in "qkv":
            yield f"{attention}.SelfAttention.{name}.weight", (inner, shape.d_model)
        yield f"{attention}.SelfAttention.o.weight", (shape.d_model, inner)
        if index == 0:
            yield (
                f"{attention}.SelfAttention.relative_attention_bias.weight",
                (shape.buckets, shape.num_heads),
            )
        yield f"{attention}.layer_norm.weight", (shape.d_model,)
        forward = f"encoder.block.{index}.layer.1"
        yield f"{forward}.DenseReluDense.wi.weight", (shape.d_ff, shape.d_model)
        yield f"{forward}.DenseReluDense.wo.weight", (shape.d_model, shape.d_ff)
        yield f"{forward}.layer_norm.weight", (shape.d_model,)
    yield "encoder.final_layer_norm.weight", (shape.d_model,)
